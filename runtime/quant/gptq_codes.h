// Weights as integer codes with a scale and an integer zero for each output row and group of
// columns: what a checkpoint in the GPTQ format holds.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "kernels/core/thread_pool.h"

namespace thinwire {

// w[o, i] ~= scales[o, g] * (codes[o, i] - zeros[o, g]), g the group of column i: columns
// [group_offsets[g], group_offsets[g + 1]).
struct GptqCodes {
  int64_t out_features = 0;
  int64_t in_features = 0;
  int bits = 0;
  std::vector<int32_t> group_offsets;  // [num_groups + 1], ascending from 0 to in_features
  std::vector<uint8_t> codes;          // [out, in], each in [0, 2^bits - 1]
  std::vector<float> scales;           // [out, num_groups], > 0, finite fp16 values
  std::vector<uint8_t> zeros;          // [out, num_groups], each in [0, 2^bits - 1]

  int64_t num_groups() const { return static_cast<int64_t>(group_offsets.size()) - 1; }
};

// The codes' values, [out, in]. `pool`: whose threads share the rows, or null.
std::vector<float> Dequantize(const GptqCodes& codes, ThreadPool* pool = nullptr);

// tr((W^ - W) H (W^ - W)^T) / tr(W H W^T) for weights and their codes; 0 when the denominator is.
double RelativeError(absl::Span<const float> weights, const GptqCodes& codes,
                     absl::Span<const double> hessian, ThreadPool& pool);

// [out]: (W - W^) mean: what the coded layer's bias gains so that its output has the mean that W
// has on the same inputs. `weights` are the layer's own, not a shifted target.
std::vector<float> BiasCorrection(absl::Span<const float> weights, const GptqCodes& codes,
                                  absl::Span<const double> mean);

}  // namespace thinwire
