#include "runtime/refine/rewritten_folder.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <filesystem>
#include <map>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/types/span.h"
#include "kernels/convert/convert.h"
#include "kernels/core/check.h"
#include "kernels/core/status_macros.h"
#include "runtime/checkpoint/safetensors.h"
#include "runtime/checkpoint/safetensors_writer.h"

namespace thinwire {
namespace {

namespace fs = std::filesystem;

// Bytes copied at a time.
constexpr size_t kCopyBytes = size_t{4} << 20;

using ByName = std::map<std::string, const Parameter*>;

// The parameter's values in `dtype`.
absl::StatusOr<std::vector<std::byte>> Rounded(const Parameter& parameter, DType dtype,
                                               const std::string& path) {
  const auto size = static_cast<int64_t>(parameter.value.size());
  std::vector<std::byte> bytes(static_cast<size_t>(DTypeBytes(dtype, size)));
  ConvertFromFloat(parameter.value.data(), bytes.data(), dtype, size);
  std::vector<float> read(parameter.value.size());
  ConvertToFloat(bytes.data(), dtype, read.data(), size);
  for (size_t i = 0; i < read.size(); ++i) {
    if (std::isfinite(read[i])) continue;
    return absl::FailedPreconditionError(
        absl::StrCat(path, ": tensor '", parameter.tensor, "' [", i, "]: --refine made it ",
                     parameter.value[i], "; expected a finite ", StoredDTypeName(dtype)));
  }
  return bytes;
}

absl::Status RewriteTensors(const std::string& from, const std::string& to,
                            const ByName& parameters) {
  TW_ASSIGN_OR_RETURN(const SafetensorsFile file, SafetensorsFile::Open(from));
  std::vector<TensorSpec> specs;
  for (const TensorInfo& info : file.tensors()) {
    if (!info.loadable) {
      return absl::UnimplementedError(absl::StrCat(from, ": tensor '", info.name,
                                                   "': expected a dtype that can be copied, found ",
                                                   info.stored_dtype));
    }
    specs.push_back({.name = info.name, .dtype = info.dtype, .shape = info.shape});
  }
  TW_ASSIGN_OR_RETURN(SafetensorsWriter writer,
                      SafetensorsWriter::Create(to, specs, file.metadata()));
  for (const TensorInfo& info : file.tensors()) {
    if (const auto found = parameters.find(info.name); found != parameters.end()) {
      TW_ASSIGN_OR_RETURN(const std::vector<std::byte> bytes,
                          Rounded(*found->second, info.dtype, to));
      TW_CHECK_EQ(static_cast<int64_t>(bytes.size()), info.size_bytes);
      TW_RETURN_IF_ERROR(writer.Append(info.name, bytes));
      continue;
    }
    const absl::Span<const std::byte> bytes =
        file.file().bytes().subspan(static_cast<size_t>(info.offset), info.size_bytes);
    for (size_t first = 0; first < bytes.size(); first += kCopyBytes) {
      const auto piece = bytes.subspan(first, kCopyBytes);
      TW_RETURN_IF_ERROR(writer.Append(info.name, piece));
      file.file().DropPages(info.offset + static_cast<int64_t>(first),
                            static_cast<int64_t>(piece.size()));
    }
  }
  return writer.Commit();
}

}  // namespace

absl::Status WriteRewrittenFolder(const std::string& from, const std::string& to,
                                  const std::vector<Parameter*>& parameters) {
  ByName by_name;
  for (const Parameter* parameter : parameters) by_name[parameter->tensor] = parameter;
  std::error_code error;
  fs::create_directories(to, error);
  if (error) {
    return absl::ErrnoToStatus(error.value(), absl::StrCat(to, ": cannot create the folder"));
  }
  std::vector<fs::path> files;
  fs::directory_iterator entries(from, error);
  if (error) return absl::ErrnoToStatus(error.value(), absl::StrCat(from, ": cannot be read"));
  for (const fs::directory_entry& entry : entries) {
    if (entry.is_regular_file(error)) files.push_back(entry.path());
  }
  std::sort(files.begin(), files.end());
  for (const fs::path& path : files) {
    const std::string name = path.filename().string();
    const std::string target = absl::StrCat(to, "/", name);
    if (absl::EndsWith(name, ".safetensors")) {
      TW_RETURN_IF_ERROR(RewriteTensors(path.string(), target, by_name));
      continue;
    }
    fs::copy_file(path, target, fs::copy_options::overwrite_existing, error);
    if (error) return absl::ErrnoToStatus(error.value(), absl::StrCat("writing ", target));
  }
  return absl::OkStatus();
}

}  // namespace thinwire
