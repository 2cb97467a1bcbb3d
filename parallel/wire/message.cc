#include "parallel/wire/message.h"

#include <xxhash.h>

#include <cstring>

#include "absl/strings/str_format.h"
#include "kernels/core/check.h"

namespace thinwire {
namespace {

uint16_t CheckOf(const MessageKey& key, const void* rows) {
  const int64_t fields[] = {kWireVersion,
                            static_cast<int64_t>(key.site),
                            static_cast<int64_t>(key.codec.kind),
                            key.codec.bits,
                            key.sender,
                            key.num_rows,
                            key.row_bytes};
  const uint64_t seed = XXH3_64bits(fields, sizeof(fields));
  return static_cast<uint16_t>(
      XXH3_64bits_withSeed(rows, static_cast<size_t>(key.num_rows * key.row_bytes), seed));
}

}  // namespace

void SealMessage(const MessageKey& key, TensorView message) {
  TW_CHECK_EQ(message.num_elements(), key.message_bytes());
  if (message.device() != Device::Cpu()) return;
  auto* bytes = static_cast<char*>(message.mutable_raw());
  const uint16_t check = CheckOf(key, bytes);
  std::memcpy(bytes + key.num_rows * key.row_bytes, &check, sizeof(check));
}

absl::Status CheckMessage(const MessageKey& key, ConstTensorView message) {
  TW_CHECK_EQ(message.num_elements(), key.message_bytes());
  if (message.device() != Device::Cpu()) return absl::OkStatus();
  const auto* bytes = static_cast<const char*>(message.raw());
  const uint16_t expected = CheckOf(key, bytes);
  uint16_t found = 0;
  std::memcpy(&found, bytes + key.num_rows * key.row_bytes, sizeof(found));
  if (found == expected) return absl::OkStatus();
  return absl::DataLossError(absl::StrFormat(
      "message of %d bytes (%d rows of %d bytes, %s) from rank %d fails its check: expected %04x, "
      "found %04x: damaged on the way, or of a rank with another version or other flags",
      key.message_bytes(), key.num_rows, key.row_bytes, RowCodecName(key.codec), key.sender,
      expected, found));
}

}  // namespace thinwire
