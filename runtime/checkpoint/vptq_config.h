// "quantization_config" of config.json where its "quant_method" is "vptq": which linear layers are
// vector-quantised (Liu et al., arXiv 2409.17066), and how.
#pragma once

#include <cstdint>
#include <map>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "nlohmann/json_fwd.hpp"

namespace thinwire {

class JsonFields;

// Of one linear layer.
struct VptqLayerConfig {
  int64_t in_features = 0;   // 0: not said
  int64_t out_features = 0;  // 0: not said
  int length = 0;            // v: outputs of a vector
  int index_bits = 0;        // log2 of the number of centroids
  bool residual = false;
  int residual_bits = 0;  // of their number
  // The first outlier_size columns as stored have a codebook of their own.
  int64_t outlier_size = 0;
  int outlier_length = 0;
  int outlier_bits = 0;
  int64_t num_groups = 1;  // equal runs of the other columns as stored, each with its codebooks
  bool norm = false;       // a scale and an offset for each column
  bool perm = false;       // columns are stored in an order of their own
  bool packed = true;

  // Bits of a column's index and residual index.
  int code_bits() const { return index_bits + residual_bits; }
  // "vptq-v8-k4096-r256".
  std::string Name() const;

  friend bool operator==(const VptqLayerConfig&, const VptqLayerConfig&) = default;
};

struct VptqConfig {
  std::map<std::string, VptqLayerConfig> layers;  // by module: "model.layers.0.mlp.up_proj"
  std::map<std::string, VptqLayerConfig> shared;  // by the last part of its name: "up_proj"

  // Null: the module is not quantised.
  const VptqLayerConfig* Find(absl::string_view module) const;
  // What most modules are, or "vptq".
  std::string Name() const;

  friend bool operator==(const VptqConfig&, const VptqConfig&) = default;
};

// `fields`: the object. InvalidArgument, naming the module: fields that are missing, malformed or
// contradict each other, such as a number of centroids that is no power of two. Unimplemented, by
// name: modes that no published model has.
absl::StatusOr<VptqConfig> ParseVptqConfig(const JsonFields& fields);

// The object to put into config.json.
nlohmann::json VptqConfigJson(const VptqConfig& config);

}  // namespace thinwire
