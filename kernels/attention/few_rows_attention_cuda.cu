// Attention for at most eight query rows of a KV head on tensor cores: every page is read once, for
// all of them, and straight into registers.
//
// A warp takes tiles of keys in turn. Scores are Q K^T with the rows of Q split into two numbers of
// 11 bits each where they are not exact already, the upper ones in rows 0 to 7 of the operand and
// the lower ones in rows 8 to 15, which are there anyway; so scores are as if Q had 22 bits.
// Weights are split the same way into two operands. Sums are fp32 throughout.
#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/attention/attention_cuda.h"
#include "kernels/attention/attention_rows.cuh"
#include "kernels/attention/few_rows_tile.cuh"
#include "kernels/attention/mixed_page_format.cuh"
#include "kernels/attention/page_formats.cuh"
#include "kernels/core/cuda_math.cuh"
#include "kernels/core/early_launch.cuh"

namespace thinwire {
namespace {

// Sums are rescaled only when a score exceeds the maximum by more than this, in units of log2.
constexpr float kSlack = 8.0f;

// Has the second-level cache fetch the rows of `count` times 16 keys: nobody need wait, not even
// for rows that are being written.
__device__ void AskForRows(const AttentionCall& call, const uint32_t* rows, int count) {
  constexpr int kLine = 128;
  for (const AttentionSide* side : {&call.k, &call.v}) {
    const int lines = static_cast<int>(16 * side->row_bytes + kLine - 1) / kLine;
    for (int i = threadIdx.x; i < count * lines; i += blockDim.x) {
      const uint8_t* const at = side->pages + rows[i / lines] * side->row_bytes + i % lines * kLine;
      asm volatile("prefetch.global.L2 [%0];" ::"l"(at));
    }
  }
}

template <typename K, typename V, int kWarps, int kTile, int kBlocks>
__global__ void __launch_bounds__(32 * kWarps, kBlocks) FewRows(const AttentionCall call) {
  using T = typename V::Element;
  constexpr int kDim = K::kDim;
  LetNextStart();
  extern __shared__ __align__(16) unsigned char memory[];
  auto& shared = *reinterpret_cast<Shared<K, V, kWarps>*>(memory);
  const AttentionItem item = call.items[blockIdx.x];
  if (item.num_rows == 0) {
    WaitForPrevious();
    return;
  }
  const int kv_head = blockIdx.y;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int g = lane / 4, t = lane % 4;

  if (warp == 0) shared.k_layout.Read(call.k, kv_head, true);
  if (warp == 1) shared.v_layout.Read(call.v, kv_head, false);
  const int first16 = item.key_begin / 16;
  const int num16 = (item.key_end + 15) / 16 - first16;
  const int* page_ids = call.page_ids + call.page_offsets[item.seq];
  for (int i = threadIdx.x; i < num16; i += blockDim.x) {
    const int key = 16 * (first16 + i);
    const int page = key / call.page_size;
    shared.rows[i] =
        (static_cast<uint32_t>(page_ids[page]) * call.num_kv_heads + kv_head) * call.page_size +
        (key - page * call.page_size);
  }
  __syncthreads();
  AskForRows(call, shared.rows, min(num16, call.keys_ahead / 16));

  constexpr int kSteps = kTile / 16;
  const int num_tiles = (num16 + kSteps - 1) / kSteps;
  static_assert(kTile == 16 || !(K::kStaged || V::kStaged));
  const int stage_bytes = StageBytes<K, V>(call);
  unsigned char* const stages = memory + sizeof(shared) + warp * kStages * stage_bytes;
  const int v_at = K::kStaged ? 16 * StagedStride(call.k.row_bytes) : 0;  // in a stage
  const auto stage = [&](int at, int place) {
    unsigned char* const to = stages + place * stage_bytes;
    if (at < num_tiles) {
      const int64_t row = shared.rows[at];
      if constexpr (K::kStaged) {
        StageRows(call.k.pages + row * call.k.row_bytes, call.k.row_bytes, to, lane);
      }
      if constexpr (V::kStaged) {
        StageRows(call.v.pages + row * call.v.row_bytes, call.v.row_bytes, to + v_at, lane);
      }
    }
    CommitCopies();
  };
  // Of all rows together: keys that any and keys that every one of them attends to.
  const KeySpan first_row = KeysOfRow(call, item, 0);
  const KeySpan last_row = KeysOfRow(call, item, item.num_rows - 1);
  const int exact_row =
      K::kCoded && call.exact_rows != nullptr && item.key_begin == 0 && first_row.begin == 0
          ? call.exact_rows[item.seq]
          : -1;
  const bool has_exact = K::kCoded && call.exact_rows != nullptr && call.exact_rows[item.seq] >= 0;
  const int any_begin = max(first_row.begin, has_exact ? 1 : 0);
  const int any_end = min(last_row.end, item.key_end);
  const int all_begin = max(last_row.begin, has_exact ? 1 : 0);
  const int all_end = min(first_row.end, item.key_end);
  KeySpan mine = KeysOfRow(call, item, min(g, item.num_rows - 1));
  if (has_exact) mine.begin = max(mine.begin, 1);
  mine.end = min(mine.end, item.key_end);

  Tile<K, V, kTile> tile;
  const auto load_first = [&] {
    if (warp >= num_tiles) return;
    if constexpr (!K::kStaged) {
      tile.LoadKeys(call.k.pages, shared.rows, warp * kSteps, num16 - 1, g, t, shared.k_layout);
    }
    if constexpr (!V::kStaged) {
      tile.LoadValues(call.v.pages, shared.rows, warp * kSteps, num16 - 1, g, t, shared.v_layout);
    }
  };
  // A sequence that decodes has all its keys but the last from earlier steps.
  const bool decodes = call.token_offsets[item.seq + 1] - call.token_offsets[item.seq] == 1;
  const bool loads_early =
      decodes && item.key_begin + (warp + 1) * kTile < call.context_lens[item.seq];
  if (loads_early) load_first();
  const int64_t query_row = QueryRow(call, item, kv_head, g);
  WaitForPrevious();  // what makes the query, and the last keys
  if (!loads_early) load_first();
  int place = 0;
  if constexpr (K::kStaged || V::kStaged) {
    for (int i = 0; i < kStages; ++i) stage(warp + i * kWarps, i);
  }
  uint32_t q[kDim / 16][4];
  float to_log2 = call.scale * kLog2E;
  if constexpr (K::kCoded) {
    PrepareCodedQuery<K>(call, item, kv_head, exact_row, shared);
    to_log2 = shared.scale[g];
  }
  QueryOperand<K>(call, item, query_row, shared, g, t, q);

  float o[kDim / 16][4];
#pragma unroll
  for (int m = 0; m < kDim / 16; ++m) {
#pragma unroll
    for (int i = 0; i < 4; ++i) o[m][i] = 0.0f;
  }
  float maximum = kLowestScore, sum = 0.0f;

  for (int at = warp; at < num_tiles; at += kWarps) {
    const int key = item.key_begin + at * kTile;
    const unsigned char* const staged = stages + place * stage_bytes;
    if constexpr (K::kStaged || V::kStaged) {
      WaitForCopies<kStages - 1>();
      __syncwarp();
    }
    float c[kTile / 8][4];
#pragma unroll
    for (int j = 0; j < kTile / 8; ++j) {
#pragma unroll
      for (int i = 0; i < 4; ++i) c[j][i] = 0.0f;
    }
    if constexpr (K::kStaged) {
#pragma unroll
      for (int k = 0; k < kDim / 32; ++k) {
#pragma unroll
        for (int j = 0; j < kTile / 8; ++j) {
          uint32_t even[2], odd[2];
          K::KPlane(staged + j * 8 * shared.k_layout.stride, k, lane, shared.k_layout, even, odd);
          Mma<typename K::Element>(c[j], q[2 * k], even[0], even[1]);
          Mma<typename K::Element>(c[j], q[2 * k + 1], odd[0], odd[1]);
        }
      }
    } else {
#pragma unroll
      for (int s = 0; s < kDim / 16; ++s) {
#pragma unroll
        for (int j = 0; j < kTile / 8; ++j) {
          uint32_t b0, b1;
          K::KStep(tile.k[j], s, shared.k_layout, b0, b1);
          Mma<typename K::Element>(c[j], q[s], b0, b1);
        }
      }
    }
    float scores[kTile / 8][2];
#pragma unroll
    for (int j = 0; j < kTile / 8; ++j) {
      scores[j][0] = (c[j][0] + c[j][2]) * to_log2;
      scores[j][1] = (c[j][1] + c[j][3]) * to_log2;
    }
    const int next = min(at + kWarps, num_tiles - 1) * kSteps;
    if constexpr (!K::kStaged) {
      tile.LoadKeys(call.k.pages, shared.rows, next, num16 - 1, g, t, shared.k_layout);
    }

    const bool inside = key >= all_begin && key + kTile <= all_end;
    if (!inside) {
#pragma unroll
      for (int j = 0; j < kTile / 8; ++j) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const int k = key + 8 * j + 2 * t + e;
          if (k < mine.begin || k >= mine.end) scores[j][e] = -INFINITY;
        }
      }
      // What no row attends to may be anything, and zero times anything need not be zero.
      if constexpr (!V::kCoded) {
#pragma unroll
        for (int s = 0; s < kSteps; ++s) {
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            const int k = key + 16 * s + 2 * t + i % 2 + 8 * (i / 2);
            if (k < any_begin || k >= any_end) V::Clear(tile.v[s][i]);
          }
        }
      }
    }
    float largest = scores[0][0];
#pragma unroll
    for (int j = 0; j < kTile / 8; ++j) {
      largest = fmaxf(largest, fmaxf(scores[j][0], scores[j][1]));
    }
    if (__any_sync(kWarp, largest > maximum + kSlack)) {
      largest = fmaxf(largest, __shfl_xor_sync(kWarp, largest, 1));
      largest = fmaxf(largest, __shfl_xor_sync(kWarp, largest, 2));
      largest = fmaxf(largest, maximum);
      const float factor = Exp2(maximum - largest);
      maximum = largest;
      sum *= factor;
      // Of rows 2 t and 2 t + 1, which lanes 4 (2 t) and 4 (2 t + 1) have.
      const float even = __shfl_sync(kWarp, factor, 8 * t);
      const float odd = __shfl_sync(kWarp, factor, 8 * t + 4);
#pragma unroll
      for (int m = 0; m < kDim / 16; ++m) {
        o[m][0] *= even;
        o[m][1] *= odd;
        o[m][2] *= even;
        o[m][3] *= odd;
      }
    }
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
      uint32_t upper[2], lower[2];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const float first = Exp2(scores[2 * s + i][0] - maximum);
        const float second = Exp2(scores[2 * s + i][1] - maximum);
        sum += first + second;
        upper[i] = PackPair<T>(first, second);
        const float2 rounded = UnpackPair<T>(upper[i]);
        lower[i] = PackPair<T>(first - rounded.x, second - rounded.y);
      }
#pragma unroll
      for (int m = 0; m < kDim / 16; m += 2) {
        uint32_t a[2][4];
        if constexpr (V::kStaged) {
          V::VPlane(staged + v_at, m / 2, lane, shared.v_layout, a[0], a[1]);
        } else {
          V::VTile(tile.v[s], m, shared.v_layout, a[0]);
          V::VTile(tile.v[s], m + 1, shared.v_layout, a[1]);
        }
        Mma<T>(o[m], a[0], upper[0], upper[1]);
        Mma<T>(o[m + 1], a[1], upper[0], upper[1]);
        Mma<T>(o[m], a[0], lower[0], lower[1]);
        Mma<T>(o[m + 1], a[1], lower[0], lower[1]);
      }
    }
    if constexpr (!V::kStaged) {
      tile.LoadValues(call.v.pages, shared.rows, next, num16 - 1, g, t, shared.v_layout);
    }
    if constexpr (K::kStaged || V::kStaged) {
      __syncwarp();  // the stage is read
      stage(at + kStages * kWarps, place);
      place = place + 1 == kStages ? 0 : place + 1;
    }
  }

  // The warps' sums, by position.
  sum += __shfl_xor_sync(kWarp, sum, 1);
  sum += __shfl_xor_sync(kWarp, sum, 2);
  __syncthreads();  // shared.in is read
  if (t == 0) {
    shared.maximum[warp][g] = maximum;
    shared.sum[warp][g] = sum;
  }
#pragma unroll
  for (int m = 0; m < kDim / 16; ++m) {
    const int position = V::VPosition(m, 0, g);
    *reinterpret_cast<float2*>(&shared.out[warp][2 * t][position]) = make_float2(o[m][0], o[m][2]);
    *reinterpret_cast<float2*>(&shared.out[warp][2 * t + 1][position]) =
        make_float2(o[m][1], o[m][3]);
  }
  __syncthreads();
  if (threadIdx.x < item.num_rows) {
    const int row = threadIdx.x;
    const bool sees_exact = exact_row >= 0 && KeysOfRow(call, item, row).begin == 0;
    const float exact = sees_exact ? shared.exact_score[row] : kLowestScore;
    float total = fmaxf(kLowestScore, exact);
    for (int w = 0; w < kWarps; ++w) total = fmaxf(total, shared.maximum[w][row]);
    float codes = 0.0f;
    for (int w = 0; w < kWarps; ++w) {
      const float factor = Exp2(shared.maximum[w][row] - total);
      codes += shared.sum[w][row] * factor;
      shared.maximum[w][row] = factor;
    }
    const float weight = sees_exact ? Exp2(exact - total) : 0.0f;
    shared.total_maximum[row] = total;
    shared.total_sum[row] = codes;
    shared.exact_weight[row] = weight;
    if (item.partial >= 0) {
      const int64_t at = PartialRow(call, item.partial, kv_head, row);
      reinterpret_cast<float2*>(call.partial_weights)[at] = make_float2(total, codes + weight);
    }
  }
  __syncthreads();
  for (int i = threadIdx.x; i < item.num_rows * kDim; i += blockDim.x) {
    const int row = i / kDim, position = i % kDim;
    float value = 0.0f;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) {
      value += shared.out[w][row][position] * shared.maximum[w][row];
    }
    int channel = position;
    if constexpr (V::kCoded) {
      const int at = kv_head * kDim + position;
      channel = call.v.order[at];
      value = call.v.step[at] * (ldexpf(value, 24 - V::Exponent(position / 16)) -
                                 call.v.zero[at] * shared.total_sum[row]);
      if (exact_row >= 0 && shared.exact_weight[row] != 0.0f) {
        const int64_t exact = ExactElement(call, exact_row, kv_head) + channel;
        value += shared.exact_weight[row] * LoadFloat(call.v.exact, DType::kF16, exact);
      }
    }
    if (item.partial >= 0) {
      call.partial_values[PartialRow(call, item.partial, kv_head, row) * kDim + channel] = value;
    } else {
      const int64_t to = RowElement(call, item.seq, kv_head, item.first_row + row, call.out_stride);
      StoreFloat(call.out, call.out_dtype, to + channel,
                 value / (shared.total_sum[row] + shared.exact_weight[row]));
    }
  }
}

template <typename K, typename V, int kWarps, int kTile, int kBlocks>
cudaError_t Launch(const AttentionCall& call, cudaStream_t stream) {
  const int stages = K::kStaged || V::kStaged ? kWarps * kStages * StageBytes<K, V>(call) : 0;
  const int bytes = static_cast<int>(sizeof(Shared<K, V, kWarps>)) + stages;
  const auto kernel = FewRows<K, V, kWarps, kTile, kBlocks>;
  const cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  if (error != cudaSuccess) return error;
  return LaunchKernel(
      {dim3(call.num_items, call.num_kv_heads), 32 * kWarps, static_cast<size_t>(bytes), stream},
      CanStartEarly(kernel), kernel, call);
}

template <typename T>
cudaError_t LaunchFloats(const AttentionCall& call, cudaStream_t stream) {
  using Wide = FloatPages<T, 128>;
  using Narrow = FloatPages<T, 64>;
  // Where there are blocks for each multiprocessor at most, all of a block's keys are on their way.
  if (call.head_dim == 128 && call.wide_blocks) return Launch<Wide, Wide, 8, 16, 1>(call, stream);
  return call.head_dim == 128 ? Launch<Wide, Wide, 4, 16, 3>(call, stream)
                              : Launch<Narrow, Narrow, 4, 16, 4>(call, stream);
}

template <typename K>
cudaError_t LaunchCodes(const AttentionCall& call, int v_bits, cudaStream_t stream) {
  constexpr int kTile = K::kStaged || __is_same(K, CodePages8) ? 16 : 32;
  if (v_bits == 0) return Launch<K, MixedPages<128>, 8, 16, 2>(call, stream);
  if (v_bits == 8) return Launch<K, CodePages8, 8, 16, 2>(call, stream);
  if (v_bits == 4) return Launch<K, CodePages4, 8, kTile, 2>(call, stream);
  return Launch<K, CodePages3, 8, kTile, 2>(call, stream);
}

}  // namespace

bool FewRowsFit(const AttentionCall& call) {
  if (call.page_size % 16 != 0) return false;
  if (call.k.order == nullptr) {
    return call.page_dtype != DType::kF32 && (call.head_dim == 64 || call.head_dim == 128);
  }
  return call.head_dim == 64 || call.head_dim == 128;
}

cudaError_t LaunchFewRows(const AttentionCall& call, CodeWidths widths, cudaStream_t stream) {
  if (call.k.order == nullptr) {
    return call.page_dtype == DType::kF16 ? LaunchFloats<__half>(call, stream)
                                          : LaunchFloats<__nv_bfloat16>(call, stream);
  }
  if (call.head_dim == 64) {
    return Launch<MixedPages<64>, MixedPages<64>, 8, 16, 2>(call, stream);
  }
  if (widths.k_bits == 0) return LaunchCodes<MixedPages<128>>(call, widths.v_bits, stream);
  if (widths.k_bits == 8) return LaunchCodes<CodePages8>(call, widths.v_bits, stream);
  if (widths.k_bits == 4) return LaunchCodes<CodePages4>(call, widths.v_bits, stream);
  return LaunchCodes<CodePages3>(call, widths.v_bits, stream);
}

}  // namespace thinwire
