// What blocks of threads for few rows have in shared memory, their loads, and the query as an
// operand. Private to kernels/attention.
#pragma once

#include <cstdint>

#include "kernels/attention/attention_cuda.h"
#include "kernels/attention/attention_rows.cuh"
#include "kernels/attention/mixed_page_format.cuh"
#include "kernels/core/cuda_math.cuh"

namespace thinwire {

inline constexpr uint32_t kWarp = 0xffffffffu;
// Tiles of 16 keys that a warp has in shared memory where K or V are staged.
inline constexpr int kStages = 3;

template <typename K, typename V, int kWarps>
struct Shared {
  static constexpr int kStride = K::kDim + 4;
  union {
    struct {
      float q[kCudaRows][kStride];      // by position, codes: times steps
      float exact[kCudaRows][kStride];  // terms of the score of the exact key
    } in;
    float out[kWarps][kCudaRows][kStride];  // by position
  };
  uint32_t rows[kMaxSplitKeys / 16];  // of 16 keys: the first one's row in the pages of all heads
  float maximum[kWarps][kCudaRows];
  float sum[kWarps][kCudaRows];
  float scale[kCudaRows];  // to units of log2
  float exact_score[kCudaRows];
  float total_maximum[kCudaRows];
  float total_sum[kCudaRows];
  float exact_weight[kCudaRows];
  typename K::Layout k_layout;
  typename V::Layout v_layout;
};

// Bytes of a stage, with a word behind that is loaded and not looked at.
template <typename K, typename V>
__host__ __device__ inline int StageBytes(const AttentionCall& call) {
  return (K::kStaged ? 16 * StagedStride(call.k.row_bytes) : 0) +
         (V::kStaged ? 16 * StagedStride(call.v.row_bytes) : 0) + 16;
}

struct Nothing {};
template <typename P, bool kStaged>
struct KRowOf {
  using Type = Nothing;
};
template <typename P>
struct KRowOf<P, false> {
  using Type = typename P::KRow;
};
template <typename P, bool kStaged>
struct VRowOf {
  using Type = Nothing;
};
template <typename P>
struct VRowOf<P, false> {
  using Type = typename P::VRow;
};

// Loads of a tile's keys, and what a lane has to know of them; not of what is staged.
template <typename K, typename V, int kTile>
struct Tile {
  typename KRowOf<K, K::kStaged>::Type k[kTile / 8];
  typename VRowOf<V, V::kStaged>::Type v[kTile / 16][4];

  __device__ void LoadKeys(const uint8_t* pages, const uint32_t* rows, int first, int last, int g,
                           int t, const typename K::Layout& layout) {
#pragma unroll
    for (int j = 0; j < kTile / 8; ++j) {
      const int64_t row = rows[min(first + j / 2, last)] + 8 * (j % 2) + g;
      k[j] = K::LoadK(pages + row * layout.row_bytes(), t, layout);
    }
  }
  __device__ void LoadValues(const uint8_t* pages, const uint32_t* rows, int first, int last, int g,
                             int t, const typename V::Layout& layout) {
#pragma unroll
    for (int s = 0; s < kTile / 16; ++s) {
      const int64_t row = rows[min(first + s, last)] + 2 * t;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        v[s][i] = V::LoadV(pages + (row + i % 2 + 8 * (i / 2)) * layout.row_bytes(), g, layout);
      }
    }
  }
};

// Q of codes: times steps and powers of two, each row scaled to the upper end of fp16.
template <typename K, typename S>
__device__ void PrepareCodedQuery(const AttentionCall& call, const AttentionItem& item, int kv_head,
                                  int exact_row, S& shared) {
  const int head_at = kv_head * K::kDim;
  for (int i = threadIdx.x; i < kCudaRows * K::kDim; i += blockDim.x) {
    const int row = i / K::kDim, position = i % K::kDim;
    float q = 0.0f, exact = 0.0f;
    if (row < item.num_rows) {
      const int channel = call.k.order[head_at + position];
      const float step = call.k.step[head_at + position];
      const int64_t from =
          RowElement(call, item.seq, kv_head, item.first_row + row, call.q_stride) + channel;
      const float scaled = LoadFloat(call.q, call.q_dtype, from) * (call.scale * kLog2E);
      q = scaled * step;
      if (exact_row >= 0) {
        const int64_t at = ExactElement(call, exact_row, kv_head) + channel;
        // The zeros' share, which scores of codes leave out.
        exact =
            q * call.k.zero[head_at + position] + scaled * LoadFloat(call.k.exact, DType::kF16, at);
      }
      q = ldexpf(q, -K::Exponent(position / 16));
    }
    shared.in.q[row][position] = q;
    shared.in.exact[row][position] = exact;
  }
  __syncthreads();
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  for (int row = warp; row < kCudaRows; row += blockDim.x / 32) {
    float largest = 0.0f, exact = 0.0f;
    for (int i = lane; i < K::kDim; i += 32) {
      largest = fmaxf(largest, fabsf(shared.in.q[row][i]));
      exact += shared.in.exact[row][i];
    }
    for (int step = 16; step > 0; step /= 2) {
      largest = fmaxf(largest, __shfl_xor_sync(kWarp, largest, step));
      exact += __shfl_xor_sync(kWarp, exact, step);
    }
    // Bound the exponent: a row of zeros, or of numbers that are none, is left as it is.
    const int exponent = largest > 0.0f && largest < 1e30f ? 13 - ilogbf(largest) : 0;
    const int bounded = max(-100, min(100, exponent));
    for (int i = lane; i < K::kDim; i += 32) {
      shared.in.q[row][i] = ldexpf(shared.in.q[row][i], bounded);
    }
    if (lane == 0) {
      shared.scale[row] = ldexpf(1.0f, 24 - bounded);
      shared.exact_score[row] = exact;
    }
  }
  __syncthreads();
}

// Where row g of the query begins, in elements; before what makes the query has ended.
__device__ inline int64_t QueryRow(const AttentionCall& call, const AttentionItem& item,
                                   int kv_head, int g) {
  return g < item.num_rows ? RowElement(call, item.seq, kv_head, item.first_row + g, call.q_stride)
                           : 0;
}

// Operand a of the scores: rows 0 to 7 the upper, rows 8 to 15 the lower halves of q. row: of
// QueryRow.
template <typename K, typename S>
__device__ void QueryOperand(const AttentionCall& call, const AttentionItem& item, int64_t row,
                             const S& shared, int g, int t, uint32_t (&a)[K::kDim / 16][4]) {
  using T = typename K::Element;
  if constexpr (!K::kCoded) {
    if (call.q_in_vectors) {
      // A lane's positions of two steps lie together.
      const auto* from = reinterpret_cast<const uint4*>(static_cast<const T*>(call.q) + row) + t;
      uint4 words[K::kDim / 32];
#pragma unroll
      for (int i = 0; i < K::kDim / 32; ++i) {
        words[i] = g < item.num_rows ? from[4 * i] : make_uint4(0, 0, 0, 0);
      }
#pragma unroll
      for (int i = 0; i < K::kDim / 32; ++i) {
        a[2 * i][0] = words[i].x;
        a[2 * i][2] = words[i].y;
        a[2 * i + 1][0] = words[i].z;
        a[2 * i + 1][2] = words[i].w;
        a[2 * i][1] = a[2 * i][3] = a[2 * i + 1][1] = a[2 * i + 1][3] = 0u;
      }
      return;
    }
  }
#pragma unroll
  for (int s = 0; s < K::kDim / 16; ++s) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float q[2];
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int position = K::KPosition(s, half, e, t);
        if constexpr (K::kCoded) {
          q[e] = shared.in.q[g][position];
        } else {
          q[e] = g < item.num_rows ? LoadFloat(call.q, call.q_dtype, row + position) : 0.0f;
        }
      }
      const uint32_t upper = PackPair<T>(q[0], q[1]);
      const float2 rounded = UnpackPair<T>(upper);
      a[s][2 * half] = upper;
      a[s][2 * half + 1] = K::kCoded ? PackPair<T>(q[0] - rounded.x, q[1] - rounded.y) : 0u;
    }
  }
}

}  // namespace thinwire
