// Attention over pages of any dtype, codes of any widths, any head_dim and page size, by plain
// multiply-adds in fp32; and the kernel that folds partial results.
#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/attention/attention_cuda.h"
#include "kernels/attention/attention_rows.cuh"
#include "kernels/attention/invariant_attention_cuda.h"
#include "kernels/core/cuda_math.cuh"
#include "kernels/core/early_launch.cuh"

namespace thinwire {
namespace {

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / 32;
constexpr int kKeys = 64;  // at a time
constexpr uint32_t kWarp = 0xffffffffu;

// Element `position` of a row of floats, or its code.
struct FloatRows {
  __device__ static float Load(const AttentionCall& call, const AttentionSide&, const uint8_t* row,
                               int, int position) {
    return LoadFloat(row, call.page_dtype, position);
  }
};
struct CodedRows {
  __device__ static float Load(const AttentionCall& call, const AttentionSide& side,
                               const uint8_t* row, int kv_head, int position) {
    const KvPiece* pieces =
        side.pieces + (static_cast<int64_t>(kv_head) * call.head_dim + position) * kMaxKvPieces;
    uint32_t code = 0;
    for (int i = 0; i < kMaxKvPieces && pieces[i].size != 0; ++i) {
      const KvPiece piece = pieces[i];
      const int byte = piece.bit / 8, bit = piece.bit % 8;
      uint32_t bits = row[byte];
      if (bit + piece.size > 8) bits |= static_cast<uint32_t>(row[byte + 1]) << 8;
      code |= (bits >> bit & ((1u << piece.size) - 1u)) << piece.shift;
    }
    return static_cast<float>(code);
  }
};

struct Shared {
  float weights[kCudaRows][kKeys];
  float maximum[kCudaRows];
  float sum[kCudaRows];  // of codes' or floats' weights
  float factor[kCudaRows];
  float exact_score[kCudaRows];
  float exact_weight[kCudaRows];
  KeySpan keys[kCudaRows];
};

// kInvariant: a row's sums do not depend on the other rows of its block.
template <typename Rows, bool kInvariant>
__global__ void __launch_bounds__(kThreads) Plain(const AttentionCall call) {
  constexpr bool kCoded = sizeof(Rows) != 0 && !__is_same(Rows, FloatRows);
  __shared__ Shared shared;
  extern __shared__ float memory[];
  const int dim = call.head_dim;
  float* const q = memory;                    // [kCudaRows, dim] by K's positions, in log2 units
  float* const o = memory + kCudaRows * dim;  // [kCudaRows, dim] by V's positions
  const AttentionItem item = call.items[blockIdx.x];
  if (item.num_rows == 0) return;
  const int kv_head = blockIdx.y;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int head_at = kv_head * dim;
  const int exact_row = kCoded && call.exact_rows != nullptr ? call.exact_rows[item.seq] : -1;

  for (int row = warp; row < item.num_rows; row += kWarps) {
    const int64_t from = RowElement(call, item.seq, kv_head, item.first_row + row, call.q_stride);
    KeySpan keys = KeysOfRow(call, item, row);
    const bool sees_exact = exact_row >= 0 && keys.begin == 0 && item.key_begin == 0;
    float exact = 0.0f;
    for (int i = lane; i < dim; i += 32) {
      const int channel = kCoded ? call.k.order[head_at + i] : i;
      const float scaled = LoadFloat(call.q, call.q_dtype, from + channel) * (call.scale * kLog2E);
      const float value = kCoded ? scaled * call.k.step[head_at + i] : scaled;
      q[row * dim + i] = value;
      o[row * dim + i] = 0.0f;
      if (sees_exact) {
        const int64_t at = ExactElement(call, exact_row, kv_head) + channel;
        exact +=
            value * call.k.zero[head_at + i] + scaled * LoadFloat(call.k.exact, DType::kF16, at);
      }
    }
    for (int step = 16; step > 0; step /= 2) exact += __shfl_xor_sync(kWarp, exact, step);
    if (lane == 0) {
      if (exact_row >= 0) keys.begin = max(keys.begin, 1);
      shared.keys[row] = {max(keys.begin, item.key_begin), min(keys.end, item.key_end)};
      // The exact key is the first of the running softmax.
      shared.maximum[row] = sees_exact ? exact : kLowestScore;
      shared.exact_weight[row] = sees_exact ? 1.0f : 0.0f;
      shared.sum[row] = 0.0f;
    }
  }
  __syncthreads();
  // Where any block of rows with this split begins: keys that a row does not see change nothing.
  const int begin = kInvariant ? item.key_begin : shared.keys[0].begin;
  const int end = shared.keys[item.num_rows - 1].end;
  const int* page_ids = call.page_ids + call.page_offsets[item.seq];
  const auto row_of = [&](const AttentionSide& side, int key) {
    const int page = key / call.page_size;
    const int64_t row =
        (static_cast<int64_t>(page_ids[page]) * call.num_kv_heads + kv_head) * call.page_size +
        (key - page * call.page_size);
    return side.pages + row * side.row_bytes;
  };

  for (int first = begin; first < end; first += kKeys) {
    const int count = min(kKeys, end - first);
    for (int j = warp; j < count; j += kWarps) {
      const uint8_t* row = row_of(call.k, first + j);
      float scores[kCudaRows] = {};
      for (int i = lane; i < dim; i += 32) {
        const float k = Rows::Load(call, call.k, row, kv_head, i);
#pragma unroll
        for (int r = 0; r < kCudaRows; ++r) {
          if (r < item.num_rows) scores[r] += q[r * dim + i] * k;
        }
      }
#pragma unroll
      for (int r = 0; r < kCudaRows; ++r) {
        for (int step = 16; step > 0; step /= 2) {
          scores[r] += __shfl_xor_sync(kWarp, scores[r], step);
        }
        if (lane == 0) shared.weights[r][j] = scores[r];
      }
    }
    __syncthreads();
    for (int r = warp; r < item.num_rows; r += kWarps) {
      const KeySpan keys = shared.keys[r];
      float scores[kKeys / 32];
      float largest = shared.maximum[r];
      for (int i = 0; i < kKeys / 32; ++i) {
        const int j = lane + 32 * i;
        const bool seen = first + j >= keys.begin && first + j < keys.end && j < count;
        scores[i] = seen ? shared.weights[r][j] : -INFINITY;
        largest = fmaxf(largest, scores[i]);
      }
      for (int step = 16; step > 0; step /= 2) {
        largest = fmaxf(largest, __shfl_xor_sync(kWarp, largest, step));
      }
      float sum = 0.0f;
      for (int i = 0; i < kKeys / 32; ++i) {
        const float weight = Exp2(scores[i] - largest);
        shared.weights[r][lane + 32 * i] = weight;
        sum += weight;
      }
      for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(kWarp, sum, step);
      if (lane == 0) {
        const float factor = Exp2(shared.maximum[r] - largest);
        shared.factor[r] = factor;
        shared.sum[r] = shared.sum[r] * factor + sum;
        shared.exact_weight[r] *= factor;
        shared.maximum[r] = largest;
      }
    }
    __syncthreads();
    for (int i = threadIdx.x; i < dim; i += kThreads) {
      float sums[kCudaRows];
#pragma unroll
      for (int r = 0; r < kCudaRows; ++r) {
        sums[r] = r < item.num_rows ? o[r * dim + i] * shared.factor[r] : 0.0f;
      }
      for (int j = 0; j < count; ++j) {
        const float v = Rows::Load(call, call.v, row_of(call.v, first + j), kv_head, i);
#pragma unroll
        for (int r = 0; r < kCudaRows; ++r) {
          if (r < item.num_rows) sums[r] += shared.weights[r][j] * v;
        }
      }
      for (int r = 0; r < item.num_rows; ++r) o[r * dim + i] = sums[r];
    }
    __syncthreads();
  }

  for (int i = threadIdx.x; i < item.num_rows * dim; i += kThreads) {
    const int row = i / dim, position = i % dim;
    float value = o[i];
    int channel = position;
    if (kCoded) {
      channel = call.v.order[head_at + position];
      value = call.v.step[head_at + position] *
              (value - call.v.zero[head_at + position] * shared.sum[row]);
      if (shared.exact_weight[row] != 0.0f) {
        const int64_t at = ExactElement(call, exact_row, kv_head) + channel;
        value += shared.exact_weight[row] * LoadFloat(call.v.exact, DType::kF16, at);
      }
    }
    const float sum = shared.sum[row] + shared.exact_weight[row];
    if (item.partial >= 0) {
      const int64_t at = PartialRow(call, item.partial, kv_head, row);
      call.partial_values[at * dim + channel] = value;
      if (position == 0) {
        reinterpret_cast<float2*>(call.partial_weights)[at] = make_float2(shared.maximum[row], sum);
      }
    } else {
      const int64_t to = RowElement(call, item.seq, kv_head, item.first_row + row, call.out_stride);
      StoreFloat(call.out, call.out_dtype, to + channel, value / sum);
    }
  }
}

// One row of a block of rows: its partials are shared out among the warps, whose lanes have every
// 32nd channel. Enough loads are on their way at once for what is mostly latency.
constexpr int kCombineWarps = 4;
constexpr int kPartialsAtATime = 8;  // of a warp, on their way
constexpr int kChannelsPerPass = 128;

// kInvariant: one partial after the other, so that leading ones that have nothing, because the
// block's other rows alone attend to keys there, change no bit.
template <bool kInvariant>
__global__ void __launch_bounds__(32 * kCombineWarps, 8) Combine(const AttentionCall call) {
  LetNextStart();
  __shared__ float values[kCombineWarps][kChannelsPerPass];
  const AttentionCombine job = call.combines[blockIdx.x];
  const int kv_head = blockIdx.y;
  const int row = blockIdx.z;
  const int64_t to = row < job.num_rows
                         ? RowElement(call, job.seq, kv_head, job.first_row + row, call.out_stride)
                         : 0;
  WaitForPrevious();  // what makes the partials
  if (row >= job.num_rows) return;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const auto at_of = [&](int p) { return PartialRow(call, job.first_partial + p, kv_head, row); };
  // A warp's partials, of which the first are asked for before their weights are there.
  constexpr int kLaneChannels = kChannelsPerPass / 32, kStride = kInvariant ? 1 : kCombineWarps;
  const int first = kInvariant && warp > 0 ? job.num_partials : warp;
  float ahead[kPartialsAtATime][kLaneChannels];
  const auto ask = [&](int p, int begin) {
#pragma unroll
    for (int a = 0; a < kPartialsAtATime; ++a, p += kStride) {
      const float* const from = call.partial_values + at_of(p) * call.head_dim + begin;
#pragma unroll
      for (int i = 0; i < kLaneChannels; ++i) {
        const int channel = lane + 32 * i;
        ahead[a][i] =
            p < job.num_partials && begin + channel < call.head_dim ? from[channel] : 0.0f;
      }
    }
  };
  ask(first, 0);
  // Every warp for itself: all find the same.
  const auto* weights = reinterpret_cast<const float2*>(call.partial_weights);
  float maximum = kLowestScore;
  for (int p = lane; p < job.num_partials; p += 32) maximum = fmaxf(maximum, weights[at_of(p)].x);
  for (int step = 16; step > 0; step /= 2) {
    maximum = fmaxf(maximum, __shfl_xor_sync(0xffffffffu, maximum, step));
  }
  float sum = 0.0f;
  for (int p = kInvariant ? 0 : lane; p < job.num_partials; p += kInvariant ? 1 : 32) {
    const float2 weight = weights[at_of(p)];
    sum += weight.y * Exp2(weight.x - maximum);
  }
  if (!kInvariant) {
    for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, step);
  }
  for (int begin = 0; begin < call.head_dim; begin += kChannelsPerPass) {
    float value[kLaneChannels] = {};
    for (int p = first; p < job.num_partials; p += kPartialsAtATime * kStride) {
      if (begin > 0 || p > first) ask(p, begin);
#pragma unroll
      for (int a = 0; a < kPartialsAtATime; ++a) {
        if (p + a * kStride >= job.num_partials) break;
        const float factor = Exp2(weights[at_of(p + a * kStride)].x - maximum);
#pragma unroll
        for (int i = 0; i < kLaneChannels; ++i) value[i] += ahead[a][i] * factor;
      }
    }
#pragma unroll
    for (int i = 0; i < kLaneChannels; ++i) values[warp][lane + 32 * i] = value[i];
    __syncthreads();
    const int channel = begin + static_cast<int>(threadIdx.x);
    if (threadIdx.x < kChannelsPerPass && channel < call.head_dim) {
      float total = 0.0f;
#pragma unroll
      for (int w = 0; w < kCombineWarps; ++w) total += values[w][threadIdx.x];
      StoreFloat(call.out, call.out_dtype, to + channel, total / sum);
    }
    __syncthreads();
  }
}

template <bool kInvariant>
cudaError_t LaunchItems(const AttentionCall& call, cudaStream_t stream) {
  const auto kernel =
      call.k.order != nullptr ? Plain<CodedRows, kInvariant> : Plain<FloatRows, kInvariant>;
  const int bytes = 2 * kCudaRows * call.head_dim * static_cast<int>(sizeof(float));
  const cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  if (error != cudaSuccess) return error;
  kernel<<<dim3(call.num_items, call.num_kv_heads), kThreads, bytes, stream>>>(call);
  return cudaGetLastError();
}

template <bool kInvariant>
cudaError_t LaunchCombines(const AttentionCall& call, cudaStream_t stream) {
  if (call.num_combines == 0) return cudaSuccess;
  const dim3 grid(call.num_combines, call.num_kv_heads, kCudaRows);
  const auto kernel = Combine<kInvariant>;
  return LaunchKernel({grid, 32 * kCombineWarps, 0, stream}, CanStartEarly(kernel), kernel, call);
}

}  // namespace

cudaError_t LaunchPlain(const AttentionCall& call, cudaStream_t stream) {
  return LaunchItems<false>(call, stream);
}

cudaError_t LaunchCombine(const AttentionCall& call, cudaStream_t stream) {
  return LaunchCombines<false>(call, stream);
}

cudaError_t LaunchInvariant(const AttentionCall& call, cudaStream_t stream) {
  const cudaError_t error = LaunchItems<true>(call, stream);
  return error != cudaSuccess ? error : LaunchCombines<true>(call, stream);
}

}  // namespace thinwire
