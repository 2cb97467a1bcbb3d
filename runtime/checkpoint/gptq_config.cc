#include "runtime/checkpoint/gptq_config.h"

#include <string>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "kernels/core/status_macros.h"
#include "nlohmann/json.hpp"
#include "runtime/json/json_file.h"

namespace thinwire {
namespace {

absl::Status NotSupported(const JsonFields& fields, absl::string_view key,
                          absl::string_view supported) {
  return absl::UnimplementedError(absl::StrCat(fields.context(), ": \"", key,
                                               "\": ", DescribeJson(*fields.Get(key)),
                                               " is not supported; supported: ", supported));
}

// What changes the layout of tensors, or which of them are quantised.
absl::Status CheckLayout(const JsonFields& fields) {
  for (const char* key : {"lm_head", "is_marlin_format"}) {
    TW_ASSIGN_OR_RETURN(const bool value, fields.BoolOr(key, false));
    if (value) return NotSupported(fields, key, "false");
  }
  TW_ASSIGN_OR_RETURN(const std::string words, fields.StringOr("pack_dtype", "int32"));
  if (words != "int32") return NotSupported(fields, "pack_dtype", "int32");
  const nlohmann::json* dynamic = fields.Get("dynamic");
  if (dynamic != nullptr && !dynamic->empty()) return NotSupported(fields, "dynamic", "none");
  return absl::OkStatus();
}

absl::StatusOr<bool> ParseZerosAsTheyAre(const JsonFields& fields) {
  TW_ASSIGN_OR_RETURN(const std::string format, fields.StringOr("checkpoint_format", "gptq"));
  if (format == "gptq_v2") return true;
  if (format == "gptq" || format.empty()) return false;
  return NotSupported(fields, "checkpoint_format", "gptq, gptq_v2");
}

}  // namespace

absl::StatusOr<GptqConfig> ParseGptqConfig(const JsonFields& fields) {
  GptqConfig config;
  TW_ASSIGN_OR_RETURN(const int64_t bits, fields.Int("bits"));
  if (bits != 2 && bits != 3 && bits != 4 && bits != 8) {
    return NotSupported(fields, "bits", "2, 3, 4, 8");
  }
  config.bits = static_cast<int>(bits);
  TW_ASSIGN_OR_RETURN(config.group_size, fields.IntOr("group_size", config.group_size, -1));
  if (config.group_size == 0) return fields.Expected("group_size", "a positive integer or -1");
  TW_ASSIGN_OR_RETURN(config.desc_act, fields.BoolOr("desc_act", false));
  TW_ASSIGN_OR_RETURN(config.sym, fields.BoolOr("sym", false));
  TW_ASSIGN_OR_RETURN(config.zeros_as_they_are, ParseZerosAsTheyAre(fields));
  TW_RETURN_IF_ERROR(CheckLayout(fields));
  return config;
}

nlohmann::json GptqConfigJson(const GptqConfig& config) {
  return {{"quant_method", "gptq"},
          {"bits", config.bits},
          {"group_size", config.group_size},
          {"desc_act", config.desc_act},
          {"sym", config.sym},
          {"lm_head", false},
          {"checkpoint_format", config.zeros_as_they_are ? "gptq_v2" : "gptq"},
          {"pack_dtype", "int32"}};
}

}  // namespace thinwire
