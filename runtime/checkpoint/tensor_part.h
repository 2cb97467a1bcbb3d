// What a tensor is in a decoder, by the names that OPT and LLaMA checkpoints have. Private to this
// folder.
#pragma once

#include <cstdint>

#include "absl/strings/string_view.h"
#include "runtime/checkpoint/checkpoint.h"
#include "runtime/checkpoint/model_config.h"
#include "runtime/checkpoint/vptq_config.h"

namespace thinwire {

bool IsMatrix(const TensorInfo& tensor);

// Whether `name` is a tensor of a GPTQ layer other than its bias; `part` is which.
bool IsGptqTensor(const Checkpoint& checkpoint, absl::string_view name, absl::string_view* part);

// Whether `name` is a tensor of a VPTQ layer other than its bias; `part` is which.
bool IsVptqTensor(const ModelConfig& config, absl::string_view name, absl::string_view* part,
                  const VptqLayerConfig** layer);

// How tensor parallelism cuts a tensor, by its name.
enum class Cut { kWhole, kOutputs, kHeadOutputs, kKvOutputs, kInputs, kHeadInputs, kVocab };

Cut CutOf(absl::string_view name);

// Output and input features of the projection that a tensor belongs to.
struct Features {
  int64_t outputs = 0;
  int64_t inputs = 0;
};

Features FeaturesOf(absl::string_view name, const ModelConfig& config);

// The decoder layer that a tensor is of ("...layers.12.mlp..."); -1: of none.
int64_t LayerOf(absl::string_view name);

}  // namespace thinwire
