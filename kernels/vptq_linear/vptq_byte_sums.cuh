// Sums of byte books' strips: from integers to floats in shared memory, from there to parts and
// results. Private to kernels/vptq_linear.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/vptq_linear/vptq_byte_block.h"
#include "kernels/vptq_linear/vptq_bytes_cuda.h"
#include "kernels/vptq_linear/vptq_result.cuh"

namespace thinwire::vptq {

// Where in a strip's sums of a row of x an output of the group is.
__device__ inline int PlaceOfByteSum(int row, int output) {
  return row * kByteOutputs + (output ^ row % 2 * 16 ^ row / 2 % 2 * 4);
}

// Both planes of an integer.
__device__ inline float JoinPlanes(int32_t hi, int32_t lo) {
  return static_cast<float>(hi * 256 + lo);
}

// What AddOneRow made of a strip, of both books or one.
template <bool kHasResidual>
__device__ inline void StoreByteRow(const int32_t (&c)[2][4], const float (&scales)[2][8],
                                    float factor, float* of_strip) {
  const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
#pragma unroll
  for (int e = 0; e < 2; ++e) {
    const int component = 4 * e + t;
    float value = JoinPlanes(c[0][2 * e], c[0][2 * e + 1]) * scales[0][component];
    if constexpr (kHasResidual) {
      value = fmaf(JoinPlanes(c[1][2 * e], c[1][2 * e + 1]), scales[1][component], value);
    }
    of_strip[PlaceOfByteSum(0, 8 * g + component)] = value * factor;
  }
}

// What AddRows made of a strip and one book, whose scales these are. kAdds: to what the book before
// left there. kLast: times the strip's factors, of each four rows of x.
template <bool kAdds, bool kLast, int kTiles>
__device__ inline void StoreByteTiles(const int32_t (&c)[4][kTiles][4], const float (&scales)[8],
                                      const float (&factors)[kTiles][1], float* of_strip) {
  const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
#pragma unroll
  for (int n = 0; n < kTiles; ++n) {
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      auto* const at =
          reinterpret_cast<float4*>(of_strip + PlaceOfByteSum(4 * n + t, 8 * g + 4 * k));
      float v[4] = {};
      if constexpr (kAdds) {
        const float4 before = *at;
        v[0] = before.x, v[1] = before.y, v[2] = before.z, v[3] = before.w;
      }
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int32_t(&planes)[4] = c[2 * k + e / 2][n];
        const float sum = JoinPlanes(planes[e % 2 * 2], planes[e % 2 * 2 + 1]);
        v[e] = kAdds ? fmaf(sum, scales[4 * k + e], v[e]) : sum * scales[4 * k + e];
        if constexpr (kLast) v[e] *= factors[n][0];
      }
      *at = make_float4(v[0], v[1], v[2], v[3]);
    }
  }
}

// All threads of a block: adds strips, of `count` items from `first` on, to parts, and parts where
// the block has all of them. store(token, output, value): of whole sums.
template <typename B, typename Store>
__device__ inline void AddByteStrips(const VptqBytesCall& call, const float* sums, int first,
                                     int count, int first_token, int num_tokens,
                                     const Store& store) {
  for (int i = threadIdx.x; i < count * num_tokens * kByteOutputs; i += B::kThreads) {
    const int output = i % kByteOutputs;
    const int at = i / kByteOutputs / num_tokens;
    const int token = i / kByteOutputs - at * num_tokens;
    const int of_split = (first + at) / call.num_groups;
    const int of_group = first + at - of_split * call.num_groups;
    const int64_t o = (static_cast<int64_t>(of_group) * kVptqByteRows + output / 8) * call.length +
                      output % 8 - call.skip;
    if (output % 8 >= call.length || o < 0 || o >= call.result.out_features) continue;
    const float* const from = sums + at * (B::kRoundBytes / 4);
    float value = 0.0f;
#pragma unroll
    for (int part = 0; part < B::kParts; ++part) {
      const int strips =
          min(kVptqBytePart, call.num_strips - of_split * B::kStrips - part * kVptqBytePart);
      if (strips <= 0) break;
      float of_part = 0.0f;
      for (int row = token * call.rows_of_token; row < (token + 1) * call.rows_of_token; ++row) {
        const float* const of_row =
            from + part * kVptqBytePart * B::kSums + PlaceOfByteSum(row, output);
        float sum = 0.0f;
#pragma unroll 8
        for (int s = 0; s < strips; ++s) sum += of_row[s * B::kSums];
        of_part += sum;
      }
      value += of_part;
      if (call.result.partials != nullptr) {
        KeepVptqSum(call.result, of_split * B::kParts + part, first_token + token, o, of_part);
      }
    }
    if (call.result.partials == nullptr) store(first_token + token, o, value);
  }
}

}  // namespace thinwire::vptq
