// Sizes of a model folder: by part of the model and by dtype.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "runtime/checkpoint/model_config.h"

namespace thinwire {

// Weights stored as codes count once, and their scales, zeros and groups only by their bytes.
struct TensorGroup {
  int64_t num_tensors = 0;
  int64_t num_parameters = 0;
  int64_t size_bytes = 0;

  // Stored bits per parameter; 0 of nothing.
  double bits_per_weight() const;
};

struct CheckpointSummary {
  ModelConfig config;
  int num_files = 0;
  TensorGroup total;
  // "embedding", "attention", "mlp", "norm", "head", "other".
  std::map<std::string, TensorGroup> by_part;
  // As the files spell it: "F16". A GPTQ layer, with its scales, zeros and groups, is "gptq4".
  std::map<std::string, TensorGroup> by_dtype;
  int64_t kv_elements_per_token = 0;  // K and V of all layers
  std::vector<int> usable_tp_sizes;
};

// Reads config.json and the headers of the safetensors files; errors as theirs.
absl::StatusOr<CheckpointSummary> SummarizeCheckpoint(const std::string& dir);

}  // namespace thinwire
