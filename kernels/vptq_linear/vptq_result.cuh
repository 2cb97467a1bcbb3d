// What becomes of an element's sum, and kernels that follow each other closely. Private to
// kernels/vptq_linear.
#pragma once

#include <cstdint>

#include "kernels/core/cuda_math.cuh"
#include "kernels/vptq_linear/vptq_linear_cuda.h"

namespace thinwire {

// Kernels that were launched to follow this one may get ready.
__device__ inline void LetNextStart() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
__device__ inline void WaitForPrevious() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// Each operation rounds, so that all kernels have the same bits.
__device__ inline void StoreVptqResult(const VptqResult& result, int token, int64_t o,
                                       float value) {
  if (result.factors != nullptr) value = __fmul_rn(value, result.factors[token]);
  value = __fadd_rn(value, result.dots[token]);
  if (result.bias != nullptr) value = __fadd_rn(value, result.bias[o]);
  StoreFloat(result.y, result.y_dtype, token * result.y_stride + o, value);
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
