// What becomes of an element's sum. Private to kernels/coded_linear.
#pragma once

#include <cstdint>

#include "kernels/activation/activated.cuh"
#include "kernels/coded_linear/coded_linear_cuda.h"
#include "kernels/core/cuda_math.cuh"

namespace thinwire {

// Each operation rounds, so that all kernels have the same bits.
__device__ inline float Finished(const CodedLinearCall& call, int token, int o, float value) {
  if (call.offset != nullptr) value = __fsub_rn(value, call.offset[o]);
  if (call.gains != nullptr) value = __fmul_rn(value, call.gains[token]);
  if (call.bias != nullptr) value = __fadd_rn(value, call.bias[o]);
  return value;
}

__device__ inline void StoreResult(const CodedLinearCall& call, int token, int o, float value) {
  StoreFloat(call.y, call.y_dtype, token * call.y_stride + o, Finished(call, token, o, value));
}

// Of gated calls: sums of row o of the gate and of what it lets through.
__device__ inline void StoreGated(const CodedLinearCall& call, int token, int o, float gate,
                                  float up) {
  gate = RoundedTo(call.y_dtype, Finished(call, token, o, gate));
  up = RoundedTo(call.y_dtype, Finished(call, token, call.out_features / 2 + o, up));
  StoreFloat(call.y, call.y_dtype, token * call.y_stride + o,
             __fmul_rn(Activated(call.gate, gate), up));
}

}  // namespace thinwire
