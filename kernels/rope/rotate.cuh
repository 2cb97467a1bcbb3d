// The rotation of pieces of heads, for kernels.
#pragma once

#include "kernels/core/vectors.cuh"

namespace thinwire {

// A block's: the cosines and sines of a token's angles, [half] each; a barrier comes after.
__device__ __forceinline__ void TakeAngles(float position, const float* inv_freq, int half,
                                           float* cosines, float* sines) {
  for (int i = threadIdx.x; i < half; i += blockDim.x) {
    // The angle is defined as an fp32 product; its cosine may be taken to any accuracy.
    sincosf(position * inv_freq[i], &sines[i], &cosines[i]);
  }
}

// a: elements of a head's lower half, b: of the upper half, whose angles these are.
template <typename T, int kCount>
__device__ __forceinline__ void RotatePair(const float* cosines, const float* sines,
                                           Pack<T, kCount>& a, Pack<T, kCount>& b) {
#pragma unroll
  for (int e = 0; e < kCount; ++e) {
    const float c = cosines[e];
    const float s = sines[e];
    const float va = AsFloat(a.values[e]);
    const float vb = AsFloat(b.values[e]);
    a.values[e] = FromFloat<T>(fmaf(-vb, s, va * c));
    b.values[e] = FromFloat<T>(fmaf(va, s, vb * c));
  }
}

}  // namespace thinwire
