#include "runtime/quantizer/output_folder.h"

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <system_error>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "kernels/core/atomic_file.h"
#include "kernels/core/mapped_file.h"
#include "kernels/core/status_macros.h"
#include "nlohmann/json.hpp"
#include "runtime/checkpoint/quant_scheme.h"
#include "runtime/checkpoint/sha256.h"
#include "runtime/json/json_file.h"
#include "runtime/quantizer/shape_plan.h"

namespace thinwire {
namespace {

namespace fs = std::filesystem;

constexpr char kDigestName[] = "model.sha256";

// Of each weight file the digest is of so many pieces, evenly spaced.
constexpr size_t kPieces = 1024;
constexpr size_t kPieceBytes = 65536;

std::string WithoutTrailingSlashes(std::string path) {
  while (path.size() > 1 && path.back() == '/') path.pop_back();
  return path;
}

// Tokenizer and generation files: small, and none of the model's weights.
bool IsCompanion(const std::string& name) {
  if (name == "config.json" || absl::EndsWith(name, ".index.json") || name == "golden.json" ||
      name == kThinwireFileName) {
    return false;
  }
  return absl::EndsWith(name, ".json") || absl::EndsWith(name, ".model") ||
         absl::EndsWith(name, ".txt") || absl::EndsWith(name, ".jinja") || name == "LICENSE";
}

// "NAME.tmp.PID": what AtomicFile leaves when its process is killed.
bool IsTemporary(absl::string_view name) { return absl::StrContains(name, ".tmp."); }

// Tells one model from another without reading all of it: names and sizes of its weight files, and
// pieces of them, or all of a file that is small. A model that was trained further differs in
// nearly every piece.
absl::StatusOr<std::string> ModelDigest(const std::string& model_dir) {
  std::vector<std::string> names = {"config.json"};
  std::error_code error;
  for (const fs::directory_entry& entry : fs::directory_iterator(model_dir, error)) {
    const std::string name = entry.path().filename().string();
    if (absl::EndsWith(name, ".safetensors")) names.push_back(name);
  }
  std::sort(names.begin(), names.end());
  Sha256 digest;
  for (const std::string& name : names) {
    TW_ASSIGN_OR_RETURN(const MappedFile file,
                        MappedFile::Open(absl::StrCat(model_dir, "/", name)));
    const absl::Span<const std::byte> bytes = file.bytes();
    const std::string head = absl::StrCat(name, " ", bytes.size(), "\n");
    digest.Update({reinterpret_cast<const std::byte*>(head.data()), head.size()});
    if (bytes.size() <= kPieces * kPieceBytes) {
      digest.Update(bytes);
      continue;
    }
    const size_t last = bytes.size() - kPieceBytes;
    for (size_t i = 0; i < kPieces; ++i) {
      const size_t begin = last / (kPieces - 1) * i;
      digest.Update(bytes.subspan(begin, kPieceBytes));
      file.DropPages(static_cast<int64_t>(begin), kPieceBytes);
    }
  }
  return digest.HexDigest();
}

absl::string_view DeviceWord(DeviceKind kind) { return kind == DeviceKind::kCuda ? "cuda" : "cpu"; }

std::string Difference(const ThinwireFile& found, const ThinwireFile& wanted) {
  const CalibrationInfo& then = found.calibration;
  const CalibrationInfo& now = wanted.calibration;
  if (found.scheme != wanted.scheme) {
    return absl::StrCat("--scheme ", SchemeName(found.scheme), ", now ", SchemeName(wanted.scheme));
  }
  if (found.algorithm != wanted.algorithm) {
    return absl::StrCat("--rptq ", found.algorithm, ", now ", wanted.algorithm);
  }
  if (found.group_size != wanted.group_size) {
    return absl::StrCat("--group-size ", found.group_size, ", now ", wanted.group_size);
  }
  if (found.seed != wanted.seed) {
    return absl::StrCat("--seed ", found.seed, ", now ", wanted.seed);
  }
  if (found.tp != wanted.tp) return absl::StrCat("--tp ", found.tp, ", now ", wanted.tp);
  if (then.nsamples != now.nsamples) {
    return absl::StrCat("--nsamples ", then.nsamples, ", now ", now.nsamples);
  }
  if (then.seqlen != now.seqlen) {
    return absl::StrCat("--seqlen ", then.seqlen, ", now ", now.seqlen);
  }
  if (then.source != now.source) {
    return absl::StrCat("--calib ", then.source, ", now ", now.source);
  }
  if (then.sha256 != now.sha256) {
    return absl::StrCat("--calib ", then.source, ", whose content has changed since");
  }
  return absl::StrCat("version ", found.tool_version, " of this tool, now ", wanted.tool_version);
}

}  // namespace

OutputFolder::OutputFolder(std::string model_dir, std::string out_dir, const ThinwireFile& made_by,
                           DeviceKind device)
    : model_dir_(std::move(model_dir)),
      out_(WithoutTrailingSlashes(std::move(out_dir))),
      partial_(out_ + ".partial"),
      made_by_(made_by),
      device_(device) {}

absl::Status OutputFolder::CheckFree() const {
  std::error_code error;
  if (!fs::exists(fs::symlink_status(out_, error))) return absl::OkStatus();
  return absl::AlreadyExistsError(
      absl::StrCat(out_, ": exists already; expected an --out that does not"));
}

absl::Status OutputFolder::Open() const {
  TW_RETURN_IF_ERROR(CheckFree());
  TW_ASSIGN_OR_RETURN(const std::string digest, ModelDigest(model_dir_));
  const std::string origin = absl::StrCat(digest, " ", DeviceWord(device_), "\n");
  const std::string digest_path = absl::StrCat(partial_, "/", kDigestName);
  std::error_code error;
  if (!fs::exists(absl::StrCat(partial_, "/", kThinwireFileName), error)) {
    fs::create_directories(partial_, error);
    if (error) {
      return absl::ErrnoToStatus(error.value(),
                                 absl::StrCat(partial_, ": cannot create the folder"));
    }
    // thinwire.json last: where it is, the digest is.
    absl::Status written = WriteFileAtomically(digest_path, origin);
    if (written.ok()) written = WriteThinwireFile(partial_, made_by_);
    if (!written.ok()) RemoveIfEmpty();
    return written;
  }
  TW_ASSIGN_OR_RETURN(const ThinwireFile found, ReadThinwireFile(partial_));
  std::string difference;
  if (found != made_by_) {
    difference = Difference(found, made_by_);
  } else {
    TW_ASSIGN_OR_RETURN(const MappedFile file, MappedFile::Open(digest_path));
    const absl::string_view text(reinterpret_cast<const char*>(file.bytes().data()),
                                 file.bytes().size());
    if (!absl::StartsWith(text, digest)) {
      difference = absl::StrCat("a --model that is not ", model_dir_, " as it is now");
    } else if (text != origin) {
      difference = absl::StrCat("another --device, now ", DeviceWord(device_));
    }
  }
  if (!difference.empty()) {
    return absl::FailedPreconditionError(
        absl::StrCat(partial_, ": was begun with ", difference,
                     "; expected the same, to go on, or that the folder is removed"));
  }
  for (const fs::directory_entry& entry : fs::directory_iterator(partial_, error)) {
    if (IsTemporary(entry.path().filename().string())) fs::remove(entry.path(), error);
  }
  // What was being refined is refined anew, if at all.
  fs::remove_all(refined(), error);
  return absl::OkStatus();
}

absl::Status OutputFolder::WriteConfig(const GptqConfig& gptq,
                                       const std::optional<VptqConfig>& vptq) const {
  TW_ASSIGN_OR_RETURN(nlohmann::json config, ReadJsonFile(model_dir_ + "/config.json"));
  if (made_by_.scheme.weight_format() == WeightFormat::kGptq) {
    config["quantization_config"] = GptqConfigJson(gptq);
  }
  if (vptq.has_value()) config["quantization_config"] = VptqConfigJson(*vptq);
  TW_RETURN_IF_ERROR(WriteFileAtomically(partial_ + "/config.json", config.dump(2) + "\n"));
  std::error_code error;
  for (const fs::directory_entry& entry : fs::directory_iterator(model_dir_, error)) {
    const std::string name = entry.path().filename().string();
    if (!entry.is_regular_file(error) || !IsCompanion(name)) continue;
    const std::string path = absl::StrCat(partial_, "/", name);
    fs::copy_file(entry.path(), path, fs::copy_options::overwrite_existing, error);
    if (error) return absl::ErrnoToStatus(error.value(), absl::StrCat("writing ", path));
  }
  return absl::OkStatus();
}

absl::Status OutputFolder::Publish() const {
  std::error_code error;
  for (const char* name : {kDigestName, kShapePlanName}) {
    fs::remove(absl::StrCat(partial_, "/", name), error);
  }
  fs::rename(partial_, out_, error);
  if (!error) return absl::OkStatus();
  return absl::ErrnoToStatus(error.value(), absl::StrCat(partial_, ": cannot rename to ", out_));
}

std::string OutputFolder::refined() const { return absl::StrCat(partial_, "/refined"); }

absl::Status OutputFolder::PublishRefined() const {
  std::error_code error;
  for (const char* name : {kDigestName, kShapePlanName}) {
    fs::remove(absl::StrCat(refined(), "/", name), error);
  }
  fs::rename(refined(), out_, error);
  if (error) {
    return absl::ErrnoToStatus(error.value(), absl::StrCat(refined(), ": cannot rename to ", out_));
  }
  fs::remove_all(partial_, error);
  return absl::OkStatus();
}

void OutputFolder::RemoveIfEmpty() const {
  std::error_code error;
  std::vector<fs::path> ours;
  for (const fs::directory_entry& entry : fs::directory_iterator(partial_, error)) {
    const std::string name = entry.path().filename().string();
    if (name != kThinwireFileName && name != kDigestName && name != kShapePlanName &&
        !IsTemporary(name) && !absl::StartsWith(name, "sites-")) {
      return;
    }
    ours.push_back(entry.path());
  }
  for (const fs::path& path : ours) fs::remove_all(path, error);
  fs::remove(partial_, error);
}

}  // namespace thinwire
