// Sizes of a model folder: by part of the model and by dtype.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "runtime/checkpoint/model_config.h"
#include "runtime/checkpoint/quantisation.h"

namespace thinwire {

// Weights stored as codes count once, and their scales, zeros and groups only by their bytes.
struct TensorGroup {
  int64_t num_tensors = 0;
  int64_t num_parameters = 0;
  int64_t size_bytes = 0;

  // Stored bits per parameter; 0 of nothing.
  double bits_per_weight() const;
};

// The weights of the layers' projections, without biases, and where their bytes go: a dense weight
// is all codes. Byte books (a scheme with "-c8") count as what they say, a byte for each number and
// two for each scale, not as the fp16 numbers that the file spells them in.
struct LinearGroup {
  TensorGroup total;
  int64_t codes_bytes = 0;
  int64_t scales_bytes = 0;
  int64_t zeros_bytes = 0;     // of VPTQ: the columns' offsets
  int64_t g_idx_bytes = 0;     // of VPTQ: the order in which columns are stored
  int64_t codebook_bytes = 0;  // of VPTQ

  // `bytes` of them in bits per weight; 0 of nothing.
  double bits_per_weight(int64_t bytes) const;
};

struct CheckpointSummary {
  ModelConfig config;
  int num_files = 0;
  TensorGroup total;
  // "embedding", "attention", "mlp", "norm", "head", "other".
  std::map<std::string, TensorGroup> by_part;
  // As the files spell it: "F16". A GPTQ layer, with its scales, zeros and groups, is "gptq4",
  // one of VPTQ "vptq-v8-k4096".
  std::map<std::string, TensorGroup> by_dtype;
  LinearGroup linear;
  Quantisation quantisation;
  std::string scheme;                 // as SchemeOf says
  int64_t kv_elements_per_token = 0;  // K and V of all layers
  std::vector<int> usable_tp_sizes;   // that the model's sizes and its clusters allow
};

// Reads config.json, the headers of the safetensors files, and what ReadQuantisation reads; errors
// as theirs.
absl::StatusOr<CheckpointSummary> SummarizeCheckpoint(const std::string& dir);

}  // namespace thinwire
