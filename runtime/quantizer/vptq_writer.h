// A quantised projection as the tensors that runtime/checkpoint/vptq_tensors.h describes.
#pragma once

#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "runtime/checkpoint/safetensors_writer.h"
#include "runtime/checkpoint/vptq_config.h"
#include "runtime/quant/vptq.h"

namespace thinwire {

// Packed.
VptqLayerConfig VptqConfigOf(const VptqCodes& codes);

// The tensors of a projection, in the order in which AppendVptqLinear writes them: fp16 but for the
// indices.
std::vector<TensorSpec> VptqTensorSpecs(absl::string_view name, const VptqLayerConfig& config);

// Packs a projection and appends its tensors to `writer`, for which they were declared.
absl::Status AppendVptqLinear(SafetensorsWriter& writer, absl::string_view name,
                              const VptqCodes& codes);

}  // namespace thinwire
