// Which query rows and keys an item of attention has. Private to kernels/attention.
#pragma once

#include <cstdint>

#include "kernels/attention/attention_cuda.h"
#include "kernels/core/cuda_math.cuh"

namespace thinwire {

inline constexpr float kLog2E = 1.44269504088896340736f;
// Below every score, in units of log2; finite, so that differences are numbers.
inline constexpr float kLowestScore = -1e30f;

// Keys [begin, end).
struct KeySpan {
  int begin;
  int end;
};

// What row `row` of an item attends to.
__device__ inline KeySpan KeysOfRow(const AttentionCall& call, const AttentionItem& item, int row) {
  const int num_tokens = call.token_offsets[item.seq + 1] - call.token_offsets[item.seq];
  const int token = (item.first_row + row) / call.group;
  const int end = call.context_lens[item.seq] - num_tokens + token + 1;
  return {call.window > 0 ? max(0, end - call.window) : 0, end};
}

// The first element of row `row`'s head in a matrix of tokens.
__device__ inline int64_t RowElement(const AttentionCall& call, int seq, int kv_head, int row,
                                     int64_t stride) {
  const int64_t token = call.token_offsets[seq] + row / call.group;
  const int64_t head = static_cast<int64_t>(kv_head) * call.group + row % call.group;
  return token * stride + head * call.head_dim;
}

__device__ inline int64_t ExactElement(const AttentionCall& call, int exact_row, int kv_head) {
  return (static_cast<int64_t>(exact_row) * call.num_kv_heads + kv_head) * call.head_dim;
}

// Where a row's partial result lies: an index into partial_weights, of pairs.
__device__ inline int64_t PartialRow(const AttentionCall& call, int partial, int kv_head, int row) {
  return (static_cast<int64_t>(partial) * call.num_kv_heads + kv_head) * kCudaRows + row;
}

}  // namespace thinwire
