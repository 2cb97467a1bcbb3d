// VptqLinear on the CPU. Private to this folder.
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/core/stream.h"
#include "kernels/vptq_linear/vptq_linear.h"

namespace thinwire {

// Up to this many tokens centroids are looked up for a few tokens at a time; beyond, vectors are
// laid out as a matrix for BLAS (vptq_linear_bench measures both).
inline constexpr int64_t kFewVptqTokens = 16;

absl::Status CheckVptqLinearArgs(const VptqLinearArgs& args, Device device);

// Arguments are checked, on the CPU, and neither tokens nor features are none.
absl::Status VptqLinearFewTokens(const VptqLinearArgs& args, Stream& stream);
absl::Status VptqLinearManyTokens(const VptqLinearArgs& args, Stream& stream);

// x in the order of positions times their scales, and the sums over the offsets.
struct VptqInput {
  const float* x = nullptr;     // [num_tokens, in_features]
  const float* sums = nullptr;  // [num_tokens]
  float* rest = nullptr;        // what else was asked for
};

// Fills the stream's scratch, which has `more_floats` besides.
absl::StatusOr<VptqInput> PrepareVptqInput(const VptqLinearArgs& args, int64_t more_floats,
                                           Stream& stream);

}  // namespace thinwire
