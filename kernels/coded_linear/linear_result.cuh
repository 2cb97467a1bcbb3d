// What becomes of an element's sum. Private to kernels/coded_linear.
#pragma once

#include <cstdint>

#include "kernels/coded_linear/coded_linear_cuda.h"
#include "kernels/core/cuda_math.cuh"

namespace thinwire {

// Each operation rounds, so that all kernels have the same bits.
__device__ inline void StoreResult(const CodedLinearCall& call, int token, int o, float value) {
  if (call.offset != nullptr) value = __fsub_rn(value, call.offset[o]);
  if (call.gains != nullptr) value = __fmul_rn(value, call.gains[token]);
  if (call.bias != nullptr) value = __fadd_rn(value, call.bias[o]);
  StoreFloat(call.y, call.y_dtype, token * call.y_stride + o, value);
}

}  // namespace thinwire
