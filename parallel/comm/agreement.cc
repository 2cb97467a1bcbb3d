#include "parallel/comm/agreement.h"

#include <algorithm>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "kernels/core/status_macros.h"

namespace thinwire {
namespace {

struct StatusRecord {
  int32_t code = 0;
  char message[1004] = {};
};

// Names and values, each behind its length, so that any text is told from any other.
std::string Serialize(absl::Span<const NamedValue> values) {
  std::string bytes;
  const auto add = [&](const std::string& text) {
    const auto length = static_cast<uint32_t>(text.size());
    bytes.append(reinterpret_cast<const char*>(&length), sizeof(length));
    bytes += text;
  };
  for (const NamedValue& value : values) {
    add(value.name);
    add(value.value);
  }
  return bytes;
}

// What Serialize wrote; padding of zeros reads as empty names, which end the list.
std::vector<NamedValue> Parse(absl::string_view bytes) {
  const auto take = [&]() -> std::string {
    uint32_t length = 0;
    if (bytes.size() < sizeof(length)) return "";
    std::memcpy(&length, bytes.data(), sizeof(length));
    bytes.remove_prefix(sizeof(length));
    const std::string text(bytes.substr(0, length));
    bytes.remove_prefix(text.size());
    return text;
  };
  std::vector<NamedValue> values;
  while (true) {
    NamedValue value;
    value.name = take();
    if (value.name.empty()) return values;
    value.value = take();
    values.push_back(std::move(value));
  }
}

// "NAME is X on rank 1, but Y on rank 0"; empty if nothing differs.
std::string Difference(const std::vector<NamedValue>& first, const std::vector<NamedValue>& other,
                       int rank) {
  for (size_t i = 0; i < std::max(first.size(), other.size()); ++i) {
    if (i >= first.size() || i >= other.size() || first[i].name != other[i].name) {
      const auto name_of = [i](const std::vector<NamedValue>& values) -> std::string {
        return i < values.size() ? values[i].name : "nothing";
      };
      return absl::StrCat("rank ", rank, " has ", name_of(other), " where rank 0 has ",
                          name_of(first));
    }
    if (first[i].value != other[i].value) {
      return absl::StrCat(first[i].name, " is ", other[i].value, " on rank ", rank, ", but ",
                          first[i].value, " on rank 0");
    }
  }
  return "";
}

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

absl::Status AgreeOnValues(absl::Span<const NamedValue> mine, Communicator& world, Stream& stream) {
  std::string bytes = Serialize(mine);
  auto length = static_cast<int64_t>(bytes.size());
  TW_RETURN_IF_ERROR(
      world.AllReduce(TensorView(&length, DType::kI64, {1}), ReduceOp::kMax, stream));
  bytes.resize(length);
  std::string all(length * world.size(), '\0');
  TW_RETURN_IF_ERROR(world.AllGather(ConstTensorView(bytes.data(), DType::kU8, {length}),
                                     TensorView(all.data(), DType::kU8, {length * world.size()}),
                                     stream));
  const auto part = [&](int rank) {
    return Parse(absl::string_view(all).substr(rank * length, length));
  };
  const std::vector<NamedValue> first = part(0);
  for (int rank = 1; rank < world.size(); ++rank) {
    const std::string difference = Difference(first, part(rank), rank);
    if (!difference.empty()) {
      return absl::FailedPreconditionError(
          absl::StrCat(difference, "; expected the same on all ranks"));
    }
  }
  return absl::OkStatus();
}

}  // namespace thinwire
