// Non-linearities of one value on a GPU: every kernel that applies one has the same bits.
#pragma once

#include <cuda_runtime.h>

#include "kernels/activation/activation.h"

namespace thinwire {

// x / (1 + exp(-v)), where v has the sign of x: the exponential is of -|v|, so that it cannot
// overflow.
__device__ __forceinline__ float TimesLogistic(float x, float v) {
  const float e = expf(-fabsf(v));
  return x * ((x < 0.0f ? e : 1.0f) / (1.0f + e));
}

template <ActivationKind kKind>
__device__ __forceinline__ float Activated(float x) {
  if constexpr (kKind == ActivationKind::kRelu) return x < 0.0f ? 0.0f : x;  // keeps NaN
  // -infinity, where the functions below would be -infinity * 0, stands for the smallest finite
  // value.
  if (x < -3.402823466e38f) x = -3.402823466e38f;
  if constexpr (kKind == ActivationKind::kSilu) return TimesLogistic(x, x);
  if constexpr (kKind == ActivationKind::kGelu) {
    // 1 + erf(z) = erfc(-z), which does not cancel.
    return x * (0.5f * erfcf(x * -0.70710678118654752f));
  }
  // (1 + tanh(u)) / 2 = 1 / (1 + exp(-2u)), 2u = 2 sqrt(2/pi) (x + 0.044715 x^3).
  const float factor = fmaf(x * x, 0.044715f, 1.0f);
  return TimesLogistic(x, 1.595769122f * x * factor);
}

__device__ inline float Activated(ActivationKind kind, float x) {
  switch (kind) {
    case ActivationKind::kRelu:
      return Activated<ActivationKind::kRelu>(x);
    case ActivationKind::kSilu:
      return Activated<ActivationKind::kSilu>(x);
    case ActivationKind::kGelu:
      return Activated<ActivationKind::kGelu>(x);
    case ActivationKind::kGeluTanh:
      break;
  }
  return Activated<ActivationKind::kGeluTanh>(x);
}

}  // namespace thinwire
