// What becomes of an element's sum. Private to kernels/vptq_linear.
#pragma once

#include <cstdint>

#include "kernels/core/cuda_math.cuh"
#include "kernels/vptq_linear/vptq_linear_cuda.h"

namespace thinwire {

// Of a token's x: what sums of planes and books are multiplied with, and x times the offsets.
struct VptqXSums {
  float factor, dot;
};

// Each operation rounds, so that all kernels have the same bits.
__device__ inline void StoreVptqResult(const VptqResult& result, int token, int64_t o, float value,
                                       const VptqXSums& of_x) {
  value = __fadd_rn(__fmul_rn(value, of_x.factor), of_x.dot);
  if (result.bias != nullptr) value = __fadd_rn(value, result.bias[o]);
  StoreFloat(result.y, result.y_dtype, token * result.y_stride + o, value);
}

__device__ inline void StoreVptqResult(const VptqResult& result, int token, int64_t o,
                                       float value) {
  const float factor = result.factors == nullptr ? 1.0f : result.factors[token];
  StoreVptqResult(result, token, o, value, {factor, result.dots[token]});
}

// A split's sum: the result, or kept for LaunchVptqAdd.
__device__ inline void KeepVptqSum(const VptqResult& result, int split, int token, int64_t o,
                                   float sum) {
  if (result.partials == nullptr) {
    StoreVptqResult(result, token, o, sum);
  } else {
    result
        .partials[(static_cast<int64_t>(split) * result.num_tokens + token) * result.out_features +
                  o] = sum;
  }
}

}  // namespace thinwire
