#include "parallel/comm/agreement.h"

#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/core/status_macros.h"

namespace thinwire {
namespace {

struct StatusRecord {
  int32_t code = 0;
  char message[1004] = {};
};

}  // namespace

absl::Status AgreeOnStatus(const absl::Status& mine, Communicator& world, Stream& stream) {
  StatusRecord record;
  record.code = static_cast<int32_t>(mine.code());
  const size_t length = std::min(mine.message().size(), sizeof(record.message) - 1);
  // The message of OK has no address.
  if (length > 0) std::memcpy(record.message, mine.message().data(), length);

  constexpr auto kBytes = static_cast<int64_t>(sizeof(StatusRecord));
  std::vector<StatusRecord> all(world.size());
  const absl::Status exchanged =
      world.AllGather(ConstTensorView(&record, DType::kU8, {kBytes}),
                      TensorView(all.data(), DType::kU8, {world.size() * kBytes}), stream);
  // A rank that failed by itself says so, even where the others cannot be asked.
  if (!exchanged.ok()) return mine.ok() ? exchanged : mine;

  const auto failed = [](const StatusRecord& other) { return other.code != 0; };
  const auto first = std::find_if(all.begin(), all.end(), failed);
  if (first == all.end()) return absl::OkStatus();
  const absl::Status status(static_cast<absl::StatusCode>(first->code), first->message);
  if (std::all_of(all.begin(), all.end(), failed)) return status;
  return Annotate(status, absl::StrCat("rank ", first - all.begin()));
}

}  // namespace thinwire
