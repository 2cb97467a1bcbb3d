// Wire's blocks: bytes gathered from many places, sent as they are.
#include <cstring>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "kernels/core/check.h"
#include "kernels/core/status_macros.h"
#include "parallel/wire/recording.h"
#include "parallel/wire/wire.h"

namespace thinwire {
namespace {

int64_t HeadBytes(const Wire::Block& block) { return static_cast<int64_t>(block.head.size()); }

MessageKey KeyOf(const Wire::Block& block, int sender) {
  return {.site = block.site,
          .sender = sender,
          .num_rows = 1,
          .row_bytes = HeadBytes(block) + block.payload_bytes};
}

}  // namespace

absl::Status Wire::SendBlock(const Block& block,
                             absl::FunctionRef<absl::Status(TensorView payload)> write, int peer,
                             Stream& stream) {
  const MessageKey key = KeyOf(block, world_->rank());
  Recording recording(ledger_, world_, block.site, block.logical_bytes);
  recording.AddMetadata(HeadBytes(block) + MessageKey::kCheckBytes);
  const auto run = [&]() -> absl::Status {
    TW_ASSIGN_OR_RETURN(const TensorView message,
                        Bytes(outgoing_, key.message_bytes(), Device::Cpu()));
    std::memcpy(message.mutable_raw(), block.head.data(), block.head.size());
    TW_RETURN_IF_ERROR(write(Part(message, HeadBytes(block), block.payload_bytes)));
    SealMessage(key, message);
    recording.InTransfer();
    return world_->Send(message, peer, stream);
  };
  return recording.Done(run());
}

absl::Status Wire::RecvBlock(const Block& block,
                             absl::FunctionRef<absl::Status(ConstTensorView payload)> read,
                             int peer, Stream& stream) {
  const MessageKey key = KeyOf(block, peer);
  Recording recording(ledger_, world_, block.site, 0, 0);
  const auto run = [&]() -> absl::Status {
    TW_ASSIGN_OR_RETURN(const TensorView message,
                        Bytes(incoming_, key.message_bytes(), Device::Cpu()));
    recording.InTransfer();
    TW_RETURN_IF_ERROR(world_->Recv(message, peer, stream));
    recording.InCodec();
    TW_RETURN_IF_ERROR(CheckMessage(key, message));
    if (std::memcmp(message.raw(), block.head.data(), block.head.size()) != 0) {
      return absl::DataLossError(absl::StrCat("message of ", key.message_bytes(),
                                              " bytes from rank ", peer,
                                              " is whole, but another one than expected"));
    }
    return read(Part(message, HeadBytes(block), block.payload_bytes));
  };
  return recording.Done(run());
}

}  // namespace thinwire
