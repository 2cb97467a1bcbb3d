#include "runtime/checkpoint/folder_digest.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <system_error>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/types/span.h"
#include "kernels/core/mapped_file.h"
#include "kernels/core/status_macros.h"
#include "runtime/checkpoint/sha256.h"
#include "runtime/checkpoint/synthetic_model.h"

namespace thinwire {
namespace {

constexpr int64_t kHeadBytes = 256 << 10;
constexpr int64_t kBlockBytes = 4 << 10;
constexpr int64_t kNumBlocks = 16;

bool IsOfTheModel(const std::string& name) {
  return name == "config.json" || name == "thinwire.json" || absl::EndsWith(name, ".index.json") ||
         absl::EndsWith(name, ".safetensors");
}

absl::StatusOr<std::string> DigestFile(const std::string& path) {
  TW_ASSIGN_OR_RETURN(const MappedFile file, MappedFile::Open(path));
  const auto size = static_cast<int64_t>(file.bytes().size());
  Sha256 hash;
  hash.Update(absl::MakeConstSpan(reinterpret_cast<const std::byte*>(&size), sizeof(size)));
  hash.Update(file.bytes().subspan(0, std::min(size, kHeadBytes)));
  for (int64_t block = 1; size > kHeadBytes && block <= kNumBlocks; ++block) {
    const int64_t begin =
        std::max(kHeadBytes + (size - kHeadBytes) * block / kNumBlocks - kBlockBytes, int64_t{0});
    hash.Update(file.bytes().subspan(begin, std::min(kBlockBytes, size - begin)));
  }
  return hash.HexDigest().substr(0, 16);
}

absl::StatusOr<std::vector<FileDigest>> DigestSynthetic(const std::string& model) {
  TW_ASSIGN_OR_RETURN(const std::vector<SyntheticTensor> tensors, SyntheticTensors(model));
  Sha256 hash;
  TW_ASSIGN_OR_RETURN(const std::string config, SyntheticConfigText(model));
  hash.Update(
      absl::MakeConstSpan(reinterpret_cast<const std::byte*>(config.data()), config.size()));
  for (const SyntheticTensor& tensor : tensors) {
    const std::string line = absl::StrCat(tensor.info.name, " ", tensor.info.DebugString(), "\n");
    hash.Update(absl::MakeConstSpan(reinterpret_cast<const std::byte*>(line.data()), line.size()));
  }
  return std::vector<FileDigest>{{model, hash.HexDigest().substr(0, 16)}};
}

}  // namespace

absl::StatusOr<std::vector<FileDigest>> DigestFolder(const std::string& dir) {
  if (IsSyntheticModel(dir)) return DigestSynthetic(dir);
  std::vector<FileDigest> digests;
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(dir, error)) {
    const std::string name = entry.path().filename().string();
    if (!IsOfTheModel(name)) continue;
    TW_ASSIGN_OR_RETURN(std::string digest, DigestFile(entry.path().string()));
    digests.push_back({name, std::move(digest)});
  }
  if (error) return absl::NotFoundError(absl::StrCat(dir, ": ", error.message()));
  std::sort(digests.begin(), digests.end(),
            [](const FileDigest& a, const FileDigest& b) { return a.name < b.name; });
  return digests;
}

}  // namespace thinwire
