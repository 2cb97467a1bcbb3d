#include "runtime/checkpoint/thinwire_file.h"

#include <algorithm>

#include "absl/status/status.h"
#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "kernels/core/atomic_file.h"
#include "kernels/core/status_macros.h"
#include "nlohmann/json.hpp"
#include "runtime/json/json_file.h"

namespace thinwire {
namespace {

constexpr int64_t kMaxTp = 1 << 16;
constexpr size_t kSha256Digits = 64;

absl::StatusOr<QuantScheme> ReadScheme(const JsonFields& fields) {
  TW_ASSIGN_OR_RETURN(const std::string name, fields.String("scheme"));
  absl::StatusOr<QuantScheme> scheme = ParseScheme(name);
  if (!scheme.ok()) {
    return Annotate(scheme.status(), absl::StrCat(fields.context(), ": \"scheme\""));
  }
  const std::pair<const char*, int> widths[] = {{"weight_bits", scheme->weight_bits},
                                                {"act_bits", scheme->act_bits},
                                                {"kv_bits", scheme->kv_bits}};
  for (const auto& [key, bits] : widths) {
    TW_ASSIGN_OR_RETURN(const int64_t found, fields.Int(key));
    if (found != bits) {
      return fields.Expected(key, absl::StrCat(bits, ", as \"scheme\" (", name, ") says"));
    }
  }
  return scheme;
}

absl::StatusOr<CalibrationInfo> ReadCalibration(const JsonFields& fields) {
  CalibrationInfo info;
  TW_ASSIGN_OR_RETURN(info.source, fields.String("source"));
  TW_ASSIGN_OR_RETURN(info.sha256, fields.String("sha256"));
  if (info.sha256.size() != kSha256Digits ||
      !std::all_of(info.sha256.begin(), info.sha256.end(), absl::ascii_isxdigit)) {
    return fields.Expected("sha256", "64 hex digits");
  }
  TW_ASSIGN_OR_RETURN(info.nsamples, fields.Int("nsamples"));
  TW_ASSIGN_OR_RETURN(info.seqlen, fields.Int("seqlen"));
  return info;
}

absl::Status CheckVersion(const JsonFields& fields) {
  TW_ASSIGN_OR_RETURN(const int64_t version, fields.Int("format_version"));
  if (version <= kThinwireFormatVersion) return absl::OkStatus();
  return absl::UnimplementedError(absl::StrCat(
      fields.context(), ": \"format_version\": expected at most ", kThinwireFormatVersion,
      ", found ", version, ": made by a newer version of thinwire"));
}

absl::Status CheckAlgorithm(const JsonFields& fields, absl::string_view algorithm) {
  for (const char* known : {"default", "reference", "per-tensor", "vptq-reference",
                            "vptq-no-scaling", "vptq-no-invariances", "vptq-no-feedback"}) {
    if (algorithm == known) return absl::OkStatus();
  }
  return absl::UnimplementedError(
      absl::StrCat(fields.context(),
                   ": \"algorithm\": expected \"default\", \"reference\", \"per-tensor\" or one of "
                   "vptq's, found ",
                   QuotedForMessage(algorithm)));
}

}  // namespace

absl::StatusOr<ThinwireFile> ReadThinwireFile(const std::string& dir) {
  const std::string path = absl::StrCat(dir, "/", kThinwireFileName);
  TW_ASSIGN_OR_RETURN(const nlohmann::json value, ReadJsonFile(path));
  TW_ASSIGN_OR_RETURN(const JsonFields fields, JsonFields::Create(value, path));
  TW_RETURN_IF_ERROR(CheckVersion(fields));
  ThinwireFile file;
  TW_ASSIGN_OR_RETURN(file.scheme, ReadScheme(fields));
  TW_ASSIGN_OR_RETURN(file.algorithm, fields.String("algorithm"));
  TW_RETURN_IF_ERROR(CheckAlgorithm(fields, file.algorithm));
  TW_ASSIGN_OR_RETURN(file.group_size, fields.Int("group_size", -1));
  if (file.group_size == 0) return fields.Expected("group_size", "a positive integer or -1");
  TW_ASSIGN_OR_RETURN(file.act_order, fields.BoolOr("act_order", file.act_order));
  TW_ASSIGN_OR_RETURN(file.first_token_exact,
                      fields.BoolOr("first_token_exact", file.first_token_exact));
  TW_ASSIGN_OR_RETURN(const int64_t tp, fields.Int("tp", 0, kMaxTp));
  file.tp = static_cast<int>(tp);
  TW_ASSIGN_OR_RETURN(file.seed, fields.Int("seed", 0));
  TW_ASSIGN_OR_RETURN(file.tool_version, fields.String("tool_version"));
  if (fields.Has("calibration")) {
    TW_ASSIGN_OR_RETURN(const JsonFields calibration, fields.Object("calibration"));
    TW_ASSIGN_OR_RETURN(file.calibration, ReadCalibration(calibration));
  }
  return file;
}

absl::Status WriteThinwireFile(const std::string& dir, const ThinwireFile& file) {
  nlohmann::ordered_json json = {{"format_version", kThinwireFormatVersion},
                                 {"tool_version", file.tool_version},
                                 {"scheme", SchemeName(file.scheme)},
                                 {"weight_bits", file.scheme.weight_bits},
                                 {"act_bits", file.scheme.act_bits},
                                 {"kv_bits", file.scheme.kv_bits},
                                 {"group_size", file.group_size},
                                 {"algorithm", file.algorithm},
                                 {"act_order", file.act_order},
                                 {"first_token_exact", file.first_token_exact},
                                 {"tp", file.tp},
                                 {"seed", file.seed}};
  if (file.calibration != CalibrationInfo()) {
    json["calibration"] = {{"source", file.calibration.source},
                           {"sha256", file.calibration.sha256},
                           {"nsamples", file.calibration.nsamples},
                           {"seqlen", file.calibration.seqlen}};
  }
  // A source may be a file name of any bytes.
  const std::string text =
      json.dump(2, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
  return WriteFileAtomically(absl::StrCat(dir, "/", kThinwireFileName), absl::StrCat(text, "\n"));
}

absl::Status CheckTpAllowed(const ThinwireFile& file, int tp, absl::string_view context) {
  if (file.tp == 0 || (tp >= 1 && file.tp % tp == 0)) return absl::OkStatus();
  std::vector<int> allowed;
  for (int size = 1; size <= file.tp; ++size) {
    if (file.tp % size == 0) allowed.push_back(size);
  }
  return absl::InvalidArgumentError(
      absl::StrCat(context, ": --tp: expected one of ", absl::StrJoin(allowed, ", "),
                   ", since its channels were put in order inside ", file.tp,
                   " blocks when it was quantised, ", "found ", tp));
}

}  // namespace thinwire
