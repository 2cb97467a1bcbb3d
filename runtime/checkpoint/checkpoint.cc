#include "runtime/checkpoint/checkpoint.h"

#include <algorithm>
#include <filesystem>
#include <map>
#include <system_error>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "kernels/core/status_macros.h"
#include "nlohmann/json.hpp"
#include "runtime/checkpoint/block_copy.h"
#include "runtime/checkpoint/rptq_file.h"
#include "runtime/checkpoint/synthetic_model.h"
#include "runtime/json/json_file.h"

namespace thinwire {
namespace {

namespace fs = std::filesystem;

constexpr char kIndexName[] = "model.safetensors.index.json";
constexpr char kSingleName[] = "model.safetensors";
constexpr char kSuffix[] = ".safetensors";

bool IsPlainName(absl::string_view name) {
  return !name.empty() && name != "." && name != ".." && !absl::StrContains(name, '/') &&
         !absl::StrContains(name, absl::string_view("\0", 1));
}

bool IsPickle(const std::string& name) {
  return absl::EndsWith(name, ".bin") || absl::EndsWith(name, ".pt") ||
         absl::EndsWith(name, ".pth") || absl::EndsWith(name, ".ckpt");
}

// The file names in `dir`, sorted.
absl::StatusOr<std::vector<std::string>> ListFolder(const std::string& dir) {
  std::error_code error;
  const fs::file_status status = fs::status(dir, error);
  if (status.type() == fs::file_type::not_found) {
    return absl::NotFoundError(absl::StrCat(dir, ": expected a model folder, found nothing"));
  }
  if (!error && status.type() != fs::file_type::directory) {
    return absl::FailedPreconditionError(absl::StrCat(dir, ": expected a folder, found a file"));
  }
  std::vector<std::string> names;
  fs::directory_iterator entry(dir, error);
  while (!error && entry != fs::directory_iterator()) {
    names.push_back(entry->path().filename().string());
    entry.increment(error);
  }
  if (error) return absl::ErrnoToStatus(error.value(), absl::StrCat(dir, ": cannot be listed"));
  std::sort(names.begin(), names.end());
  return names;
}

absl::Status NoSafetensors(const std::string& dir, const std::vector<std::string>& names) {
  const auto pickle = std::find_if(names.begin(), names.end(), IsPickle);
  if (pickle == names.end()) {
    return absl::NotFoundError(absl::StrCat(dir, ": expected *.safetensors files, found none"));
  }
  return absl::NotFoundError(
      absl::StrCat(dir, ": expected *.safetensors files, found ", *pickle,
                   ": pickles are never read, since they can run any code; convert the folder "
                   "where you trust it: "
                   "python3 -c 'from transformers import AutoModelForCausalLM as M; "
                   "M.from_pretrained(\"",
                   dir, "\").save_pretrained(\"", dir, "\", safe_serialization=True)'"));
}

// The block's range of one dimension, whole if not given.
absl::StatusOr<Range> ResolveRange(const std::optional<Range>& range, int64_t size,
                                   absl::string_view what) {
  if (!range.has_value()) return Range{0, size};
  if (range->begin < 0 || range->begin > range->end || range->end > size) {
    return absl::InvalidArgumentError(absl::StrCat("expected ", what, " within [0, ", size,
                                                   "), found [", range->begin, ", ", range->end,
                                                   ")"));
  }
  return *range;
}

}  // namespace

absl::Status Checkpoint::AddFile(const std::string& path) {
  TW_ASSIGN_OR_RETURN(SafetensorsFile file, SafetensorsFile::Open(path));
  files_.push_back(std::move(file));
  const auto file_index = static_cast<int>(files_.size()) - 1;
  const absl::Span<const TensorInfo> tensors = files_.back().tensors();
  for (size_t i = 0; i < tensors.size(); ++i) {
    const auto [it, inserted] =
        tensors_.try_emplace(tensors[i].name, Location{file_index, static_cast<int>(i)});
    if (!inserted) {
      return absl::InvalidArgumentError(absl::StrCat(
          dir_, ": tensor ", QuotedForMessage(tensors[i].name), ": expected in one file, found in ",
          files_[it->second.file].path(), " and ", path));
    }
  }
  return absl::OkStatus();
}

absl::Status Checkpoint::AddIndexedFiles(const std::string& index_path) {
  TW_ASSIGN_OR_RETURN(const nlohmann::json index, ReadJsonFile(index_path));
  TW_ASSIGN_OR_RETURN(const JsonFields fields, JsonFields::Create(index, index_path));
  const nlohmann::json* map = fields.Get("weight_map");
  if (map == nullptr || !map->is_object() || map->empty()) {
    return fields.Expected("weight_map", "an object of tensor names and file names");
  }
  std::map<std::string, int> file_indices;
  for (const auto& [tensor, entry] : map->items()) {
    if (!entry.is_string() || !IsPlainName(entry.get_ref<const std::string&>())) {
      return absl::InvalidArgumentError(absl::StrCat(
          index_path, ": \"weight_map\": tensor ", QuotedForMessage(tensor),
          ": expected the name of a file in this folder, found ", DescribeJson(entry)));
    }
    const auto& name = entry.get_ref<const std::string&>();
    if (!file_indices.try_emplace(name, static_cast<int>(files_.size())).second) continue;
    TW_RETURN_IF_ERROR(Annotate(AddFile(absl::StrCat(dir_, "/", name)),
                                absl::StrCat(index_path, ": tensor ", QuotedForMessage(tensor))));
  }
  for (const auto& [tensor, entry] : map->items()) {
    const auto& name = entry.get_ref<const std::string&>();
    const auto it = tensors_.find(tensor);
    if (it == tensors_.end() || it->second.file != file_indices[name]) {
      return absl::DataLossError(absl::StrCat(
          index_path, ": tensor ", QuotedForMessage(tensor), ": expected in ", name, ", found ",
          it == tensors_.end() ? "in no file"
                               : absl::StrCat("in ", files_[it->second.file].path())));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<Checkpoint> Checkpoint::Open(const std::string& dir) {
  Checkpoint checkpoint;
  checkpoint.dir_ = dir;
  if (IsSyntheticModel(dir)) {
    TW_ASSIGN_OR_RETURN(checkpoint.synthetic_, SyntheticTensors(dir));
    for (size_t i = 0; i < checkpoint.synthetic_.size(); ++i) {
      checkpoint.tensors_[checkpoint.synthetic_[i].info.name] = {-1, static_cast<int>(i)};
    }
    return checkpoint;
  }
  TW_ASSIGN_OR_RETURN(const std::vector<std::string> names, ListFolder(dir));
  if (std::binary_search(names.begin(), names.end(), kIndexName)) {
    TW_RETURN_IF_ERROR(checkpoint.AddIndexedFiles(absl::StrCat(dir, "/", kIndexName)));
    return checkpoint;
  }
  if (std::binary_search(names.begin(), names.end(), kSingleName)) {
    TW_RETURN_IF_ERROR(checkpoint.AddFile(absl::StrCat(dir, "/", kSingleName)));
    return checkpoint;
  }
  for (const std::string& name : names) {
    if (!absl::EndsWith(name, kSuffix) || name == kRptqFileName) continue;
    TW_RETURN_IF_ERROR(checkpoint.AddFile(absl::StrCat(dir, "/", name)));
  }
  if (checkpoint.files_.empty()) return NoSafetensors(dir, names);
  return checkpoint;
}

absl::StatusOr<Checkpoint> Checkpoint::OpenFile(const std::string& path) {
  Checkpoint checkpoint;
  checkpoint.dir_ = std::filesystem::path(path).parent_path().string();
  TW_RETURN_IF_ERROR(checkpoint.AddFile(path));
  return checkpoint;
}

const TensorInfo& Checkpoint::InfoAt(const Location& location) const {
  return location.file < 0 ? synthetic_[location.tensor].info
                           : files_[location.file].tensors()[location.tensor];
}

const TensorInfo* Checkpoint::Find(absl::string_view name) const {
  const auto it = tensors_.find(name);
  return it == tensors_.end() ? nullptr : &InfoAt(it->second);
}

const std::string& Checkpoint::PathOf(absl::string_view name) const {
  const auto it = tensors_.find(name);
  return it == tensors_.end() || it->second.file < 0 ? dir_ : files_[it->second.file].path();
}

std::vector<absl::string_view> Checkpoint::Names() const {
  std::vector<absl::string_view> names;
  names.reserve(tensors_.size());
  for (const auto& [name, location] : tensors_) names.push_back(name);
  std::sort(names.begin(), names.end());
  return names;
}

int64_t Checkpoint::total_bytes() const {
  int64_t total = 0;
  for (const SafetensorsFile& file : files_) {
    for (const TensorInfo& tensor : file.tensors()) total += tensor.size_bytes;
  }
  for (const SyntheticTensor& tensor : synthetic_) total += tensor.info.size_bytes;
  return total;
}

absl::StatusOr<Checkpoint::Location> Checkpoint::Locate(
    absl::string_view name, absl::Span<const int64_t> expected_shape) const {
  const auto it = tensors_.find(name);
  if (it == tensors_.end()) {
    return absl::NotFoundError(absl::StrCat(dir_, ": expected tensor ", QuotedForMessage(name), " ",
                                            ShapeString(expected_shape), ", found none"));
  }
  const TensorInfo& tensor = InfoAt(it->second);
  if (absl::MakeConstSpan(tensor.shape) != expected_shape) {
    return absl::InvalidArgumentError(
        absl::StrCat(PathOf(name), ": tensor ", QuotedForMessage(name), ": expected shape ",
                     ShapeString(expected_shape), ", found ", tensor.DebugString()));
  }
  return it->second;
}

absl::Status Checkpoint::Read(absl::string_view name, absl::Span<const int64_t> expected_shape,
                              const TensorSlice& slice, TensorView out) const {
  TW_ASSIGN_OR_RETURN(const Location at, Locate(name, expected_shape));
  return ReadBlock(at, InfoAt(at), /*plane=*/0, slice, out);
}

absl::Status Checkpoint::ReadPlane(absl::string_view name, absl::Span<const int64_t> expected_shape,
                                   int64_t plane, const TensorSlice& slice, TensorView out) const {
  TW_CHECK_EQ(expected_shape.size(), 3u);
  TW_CHECK(plane >= 0 && plane < expected_shape[0]);
  TW_ASSIGN_OR_RETURN(const Location at, Locate(name, expected_shape));
  TensorInfo matrix = InfoAt(at);
  matrix.shape.erase(matrix.shape.begin());
  matrix.size_bytes /= expected_shape[0];
  matrix.offset += plane * matrix.size_bytes;
  return ReadBlock(at, matrix, plane, slice, out);
}

absl::Status Checkpoint::ReadBlock(const Location& location, const TensorInfo& tensor,
                                   int64_t plane, const TensorSlice& slice, TensorView out) const {
  const std::string context =
      absl::StrCat(PathOf(tensor.name), ": tensor ", QuotedForMessage(tensor.name));
  const auto rank = static_cast<int>(tensor.shape.size());
  if (!tensor.loadable || rank < 1 || rank > 2) {
    return absl::UnimplementedError(
        absl::StrCat(context, ": expected a vector or matrix of a dtype that can be loaded, found ",
                     tensor.DebugString()));
  }
  if (tensor.dtype != out.dtype() && !(IsFloat(tensor.dtype) && IsFloat(out.dtype()))) {
    return absl::InvalidArgumentError(absl::StrCat(context, ": expected a dtype that converts to ",
                                                   DTypeName(out.dtype()), ", found ",
                                                   tensor.DebugString()));
  }
  const bool matrix = rank == 2;
  absl::StatusOr<Range> rows = ResolveRange(slice.rows, tensor.shape[0], "rows");
  if (!rows.ok()) return Annotate(rows.status(), context);
  absl::StatusOr<Range> columns =
      ResolveRange(slice.columns, matrix ? tensor.shape[1] : 1, "columns");
  if (!columns.ok()) return Annotate(columns.status(), context);
  if (out.rank() != rank || out.dim(0) != rows->size() ||
      (matrix && out.dim(1) != columns->size())) {
    std::vector<int64_t> block = {rows->size()};
    if (matrix) block.push_back(columns->size());
    return absl::InvalidArgumentError(absl::StrCat(context, ": expected an output of shape ",
                                                   ShapeString(block), ", found ",
                                                   out.DebugString()));
  }
  if (location.file >= 0) {
    CopyBlock(files_[location.file].file(), tensor, *rows, *columns, out);
  } else {
    SyntheticTensor synthetic = synthetic_[location.tensor];
    synthetic.info = tensor;
    synthetic.seed += static_cast<uint64_t>(plane) << 48;
    FillSynthetic(synthetic, *rows, *columns, out);
  }
  return absl::OkStatus();
}

}  // namespace thinwire
