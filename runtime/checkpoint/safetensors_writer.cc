#include "runtime/checkpoint/safetensors_writer.h"

#include <utility>

#include "absl/container/flat_hash_set.h"
#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "kernels/core/check.h"
#include "kernels/core/status_macros.h"
#include "nlohmann/json.hpp"
#include "runtime/checkpoint/safetensors.h"
#include "runtime/json/json_file.h"

namespace thinwire {
namespace {

using nlohmann::json;

constexpr size_t kMaxHeaderBytes = 100'000'000;  // the format's own limit
constexpr size_t kDataAlignment = 8;

std::string JsonString(const std::string& text) {
  return json(text).dump(-1, ' ', false, json::error_handler_t::replace);
}

std::string Header(absl::Span<const TensorSpec> tensors,
                   const std::map<std::string, std::string>& metadata) {
  std::string header = "{";
  if (!metadata.empty()) {
    absl::StrAppend(&header, "\"__metadata__\":{",
                    absl::StrJoin(metadata, ",",
                                  [](std::string* out, const auto& entry) {
                                    absl::StrAppend(out, JsonString(entry.first), ":",
                                                    JsonString(entry.second));
                                  }),
                    "}");
  }
  int64_t offset = 0;
  for (const TensorSpec& tensor : tensors) {
    const int64_t end = offset + TensorBytes(tensor);
    absl::StrAppend(&header, header.size() > 1 ? "," : "", JsonString(tensor.name),
                    ":{\"dtype\":\"", StoredDTypeName(tensor.dtype), "\",\"shape\":[",
                    absl::StrJoin(tensor.shape, ","), "],\"data_offsets\":[", offset, ",", end,
                    "]}");
    offset = end;
  }
  header += "}";
  // The length before it has 8 bytes, too.
  header.resize((header.size() + kDataAlignment - 1) / kDataAlignment * kDataAlignment, ' ');
  return header;
}

}  // namespace

int64_t TensorBytes(const TensorSpec& spec) {
  int64_t elements = 1;
  for (const int64_t size : spec.shape) {
    TW_CHECK_GE(size, 0);
    elements *= size;
  }
  return DTypeBytes(spec.dtype, elements);
}

SafetensorsWriter::SafetensorsWriter(AtomicFile file, std::string path,
                                     std::vector<TensorSpec> tensors)
    : file_(std::move(file)), path_(std::move(path)), tensors_(std::move(tensors)) {}

absl::StatusOr<SafetensorsWriter> SafetensorsWriter::Create(
    const std::string& path, std::vector<TensorSpec> tensors,
    const std::map<std::string, std::string>& metadata) {
  absl::flat_hash_set<absl::string_view> names = {"__metadata__"};
  for (const TensorSpec& tensor : tensors) {
    if (!names.insert(tensor.name).second) {
      return absl::InvalidArgumentError(absl::StrCat(
          path, ": expected each tensor once (and none named \"__metadata__\"), found ",
          QuotedForMessage(tensor.name)));
    }
  }
  const std::string header = Header(tensors, metadata);
  if (header.size() > kMaxHeaderBytes) {
    return absl::InvalidArgumentError(absl::StrCat(
        path, ": expected a header of at most ", kMaxHeaderBytes, " bytes, found ", header.size()));
  }
  std::string length(8, '\0');
  for (size_t i = 0; i < length.size(); ++i) {
    length[i] = static_cast<char>(uint64_t{header.size()} >> (8 * i));
  }
  TW_ASSIGN_OR_RETURN(AtomicFile file, AtomicFile::Create(path));
  TW_RETURN_IF_ERROR(file.Write(absl::StrCat(length, header)));
  SafetensorsWriter writer(std::move(file), path, std::move(tensors));
  writer.SkipComplete();
  return writer;
}

void SafetensorsWriter::SkipComplete() {
  while (next_ < tensors_.size() && written_ == TensorBytes(tensors_[next_])) {
    ++next_;
    written_ = 0;
  }
}

absl::Status SafetensorsWriter::Append(absl::string_view name, absl::Span<const std::byte> bytes) {
  if (bytes.empty()) return absl::OkStatus();
  TW_CHECK_LT(next_, tensors_.size());
  TW_CHECK_EQ(absl::string_view(tensors_[next_].name), name);
  const auto size = static_cast<int64_t>(bytes.size());
  TW_CHECK_LE(written_ + size, TensorBytes(tensors_[next_]));
  const absl::string_view text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  TW_RETURN_IF_ERROR(
      Annotate(file_.Write(text), absl::StrCat(path_, ": tensor ", QuotedForMessage(name))));
  written_ += size;
  SkipComplete();
  return absl::OkStatus();
}

absl::Status SafetensorsWriter::Commit() {
  TW_CHECK_EQ(next_, tensors_.size());
  return file_.Commit();
}

}  // namespace thinwire
