// "quantization_config" of config.json where its "quant_method" is "gptq".
#pragma once

#include <cstdint>

#include "absl/status/statusor.h"
#include "nlohmann/json_fwd.hpp"

namespace thinwire {

class JsonFields;

struct GptqConfig {
  int bits = 4;              // 2, 3, 4 or 8
  int64_t group_size = 128;  // input channels that share a scale; -1: all
  // Act-order: a group's channels are anywhere, as the tensor g_idx says. Otherwise g_idx, if it is
  // there, is i / group_size.
  bool desc_act = false;
  bool sym = false;  // every zero is 2^(bits - 1)
  // "checkpoint_format" is "gptq_v2": zeros are stored as they are; otherwise ("gptq") less one.
  bool zeros_as_they_are = false;

  friend bool operator==(const GptqConfig&, const GptqConfig&) = default;
};

// `fields`: the object; what it leaves out is false, 128 or "gptq". InvalidArgument: missing or
// malformed fields. Unimplemented, by name: other layouts ("marlin"), other widths, widths by
// module ("dynamic"), a quantised lm_head, words of other sizes ("pack_dtype").
absl::StatusOr<GptqConfig> ParseGptqConfig(const JsonFields& fields);

// The object to put into config.json.
nlohmann::json GptqConfigJson(const GptqConfig& config);

}  // namespace thinwire
