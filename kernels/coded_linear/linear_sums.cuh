// How sums of few tokens are added up: those of a block's warps, and those of blocks that share
// rows. Private to kernels/coded_linear.
#pragma once

#include <cstdint>

#include "kernels/coded_linear/coded_linear_cuda.h"
#include "kernels/coded_linear/linear_result.cuh"
#include "kernels/core/block_cluster.cuh"

namespace thinwire {

// Where row `row` of a token is among a warp's sums, [token, 32]: fours of rows change places so
// that a warp writes without conflicts.
__device__ inline int SumAt(int token, int row) { return 32 * token + (row ^ (token & 6) << 2); }

// Adds up what the blocks of a cluster keep, [num_pairs, num_tokens, 32] from shared address `kept`
// of each, of pairs of panels first_pair + i * stride. All threads of the cluster call it; they may
// write to kept again after.
__device__ inline void AddCluster(const CodedLinearCall& call, uint32_t kept, int num_pairs,
                                  int first_pair, int stride, int first_token, int num_tokens) {
  constexpr int kThreads = 32 * kLinearWarps;
  SyncCluster();
  const auto add_up = [&](int four) {
    float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll 4
    for (int s = 0; s < call.splits; ++s) {
      const float4 partial = LoadFromRank(kept + 16 * four, s);
      sum.x += partial.x;
      sum.y += partial.y;
      sum.z += partial.z;
      sum.w += partial.w;
    }
    return sum;
  };
  const int shift = call.gated ? 2 : 3;  // of a pair's fours of rows that have results
  const int fours = num_pairs * num_tokens << shift;
  const int first = static_cast<int>(RankInCluster()) * kThreads + static_cast<int>(threadIdx.x);
  for (int i = first; i < fours; i += call.splits * kThreads) {
    const int row = i >> shift, four = i - (row << shift);
    const float4 sum = add_up(8 * row + four);
    const float values[4] = {sum.x, sum.y, sum.z, sum.w};
    const int token = first_token + row % num_tokens;
    const int pair = first_pair + row / num_tokens * stride;
    if (call.gated) {
      const float4 up = add_up(8 * row + four + 4);
      const float ups[4] = {up.x, up.y, up.z, up.w};
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        StoreGated(call, token, 16 * pair + 4 * four + k, values[k], ups[k]);
      }
      continue;
    }
    const int o = 32 * pair + 4 * four;
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      if (o + k < call.out_features) StoreResult(call, token, o + k, values[k]);
    }
  }
  SyncCluster();
}

// Of partial results, four rows from `o` on: the blocks' in order, and the planes of a value.
__device__ inline void AddParts(const CodedLinearCall& call, int token, int o, float (&values)[4]) {
  const int64_t row = 16 * call.num_panels;
  const int64_t set = static_cast<int64_t>(call.num_tokens) * call.planes * row;
#pragma unroll
  for (int i = 0; i < 4; ++i) values[i] = 0.0f;
  for (int p = 0; p < call.planes; ++p) {
    const float* from = call.partials + (static_cast<int64_t>(token) * call.planes + p) * row + o;
    float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    constexpr int kAtATime = 8;  // on their way
    for (int first = 0; first < call.splits; first += kAtATime) {
      float4 partials[kAtATime];
#pragma unroll
      for (int s = 0; s < kAtATime; ++s) {
        if (first + s >= call.splits) break;
        partials[s] = *reinterpret_cast<const float4*>(from + (first + s) * set);
      }
#pragma unroll
      for (int s = 0; s < kAtATime; ++s) {
        if (first + s >= call.splits) break;
        sum.x += partials[s].x;
        sum.y += partials[s].y;
        sum.z += partials[s].z;
        sum.w += partials[s].w;
      }
    }
    values[0] += sum.x;
    values[1] += sum.y;
    values[2] += sum.z;
    values[3] += sum.w;
  }
}

// Adds the blocks' partial results of four results of a token, o to o + 3, and stores them.
__device__ inline void AddPartialSums(const CodedLinearCall& call, int o, int token) {
  float values[4];
  if (call.gated) {
    if (o >= call.out_features / 2) return;
    const int at = 32 * (o / 16) + o % 16;  // rows as pairs have them
    float ups[4];
    AddParts(call, token, at, values);
    AddParts(call, token, at + 16, ups);
#pragma unroll
    for (int i = 0; i < 4; ++i) StoreGated(call, token, o + i, values[i], ups[i]);
    return;
  }
  if (o >= call.out_features) return;
  AddParts(call, token, o, values);
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if (o + i < call.out_features) StoreResult(call, token, o + i, values[i]);
  }
}

}  // namespace thinwire
