// VPTQ linears for few tokens with byte books in shared memory (vptq_bytes_cuda.h). A warp has
// strips of columns and goes through groups of vector rows: a lane turns its code into the address
// of a centroid, and what it finds is an operand of products of bytes, either as it is, with x of
// one token spread (AddOneRow), or transposed, for more (AddRows). A strip's sums are integers; the
// block adds strips to parts, and parts where it has all of them, else a second kernel does. So an
// element's sum depends on the columns alone.
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "kernels/core/early_launch.cuh"
#include "kernels/vptq_linear/vptq_byte_block.h"
#include "kernels/vptq_linear/vptq_byte_sums.cuh"
#include "kernels/vptq_linear/vptq_bytes.cuh"
#include "kernels/vptq_linear/vptq_bytes_cuda.h"
#include "kernels/vptq_linear/vptq_bytes_x.cuh"
#include "kernels/vptq_linear/vptq_result.cuh"

namespace thinwire {
namespace vptq {
namespace {

struct MadeByteX {
  float factors[2], dot;
};
// Of a warp's two strips of the one token, to planes `stride` apart. A function of its own, so that
// its registers are not the kernel's.
__device__ __noinline__ MadeByteX MakeByteX(const VptqBytePrepareCall& call, int8_t* made,
                                            int stride) {
  MadeByteX x = {};
  MakeByteStrips(call, 0, static_cast<int>(threadIdx.x) / 32, x.dot, x.factors,
                 [&](int row, int p, int integer) {
                   if (row == 0) StoreByteX(made + p, stride, integer);
                 });
  return x;
}

template <int kIndexBits, int kResidualBits, int kTiles, bool kMakesX>
__global__ void __launch_bounds__(ByteBlock<kTiles>::kThreads, 1)
    BytesKernel(const __grid_constant__ VptqBytesCall call) {
  using B = ByteBlock<kTiles>;
  using Main = ByteTable<kIndexBits, 0>;
  using Residual = ByteTable<kResidualBits == 0 ? 8 : kResidualBits, Main::kWords>;
  constexpr bool kHasResidual = kResidualBits > 0;
  constexpr int kLaneWords = VptqByteWords(kIndexBits, kResidualBits);
  constexpr int kChunks = kStripChunks * B::kStripsOfWarp;
  extern __shared__ __align__(128) unsigned char memory[];
  __shared__ float dots[kByteXWarps];
  unsigned char* const residual = memory;
  constexpr int kMainAt = ByteBookBytes(kResidualBits);
  constexpr int kTableBytes = ByteTableBytes(kIndexBits, kResidualBits);
  unsigned char* const main = memory + kMainAt;
  unsigned char* const behind = memory + kTableBytes;
  auto* const sums = reinterpret_cast<float*>(behind);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int g = lane / 4, t = lane % 4;
  const uint32_t main_banks = Main::Banks(), residual_banks = Residual::Banks();
  const int tokens_each = B::kRows / call.rows_of_token;
  const int first_token = static_cast<int>(blockIdx.y) * tokens_each;
  const int num_tokens = min(tokens_each, call.result.num_tokens - first_token);
  const int num_rows = num_tokens * call.rows_of_token;
  const int first_row = first_token * call.rows_of_token;

  // Items are groups of a split, split after split.
  const int num_splits = (call.num_strips + B::kStrips - 1) / B::kStrips;
  const int64_t num_items = static_cast<int64_t>(call.num_groups) * num_splits;
  const int begin = static_cast<int>(num_items * blockIdx.x / gridDim.x);
  const int end = static_cast<int>(num_items * (blockIdx.x + 1) / gridDim.x);
  int split = begin / call.num_groups, group = begin % call.num_groups;
  const auto strip_of = [&](int of_split, int slot) {
    return of_split * B::kStrips + slot * B::kWarps + warp;
  };
  const auto codes_of = [&](int of_split, int of_group, int chunk) {
    return call.codes + ((static_cast<int64_t>(of_group) * call.num_strips +
                          strip_of(of_split, chunk / kStripChunks)) *
                             kStripChunks +
                         chunk % kStripChunks) *
                            (32 * kLaneWords);
  };
  // 0, which the compiler does not know.
  const uint32_t none = gridDim.z - 1;
  // A chunk of the current item, once `after` is there: what waits for one load would else wait for
  // the next, too. Past the last item, nothing.
  bool more = begin < end;
  const auto load = [&](auto table, int chunk, auto& words, uint32_t after) {
    using Table = decltype(table);
    const int strip = strip_of(split, chunk / kStripChunks) + static_cast<int>(after & none);
    if (strip >= (more ? call.num_strips : 0)) return;
    const uint32_t* const from = codes_of(split, group, chunk) + 32 * Table::kFirstWord + lane;
#pragma unroll
    for (int w = 0; w < Table::kWords; ++w) words[w] = __ldcs(from + 32 * w);
  };
  // Brings a strip of an item into the second-level cache: what registers hold ahead is less than
  // what memory takes at full rate.
  const auto fetch = [&](int of_item, int of_split, int of_group, int slot) {
    if (lane != 0 || of_item >= end || strip_of(of_split, slot) >= call.num_strips) return;
    PrefetchL2(codes_of(of_split, of_group, slot * kStripChunks),
               kStripChunks * 32 * kLaneWords * 4);
  };

  uint32_t main_words[2][Main::kWords] = {}, residual_words[2][Residual::kWords] = {};
  fetch(begin, split, group, 0);
  Main::template Fill<B::kThreads>(call.centroids, main);
  if constexpr (kHasResidual) Residual::template Fill<B::kThreads>(call.residual, residual);

  // x of the warp's strips, and what their integers are multiplied with.
  constexpr int kXRows = kTiles == 0 ? 1 : kTiles;
  uint32_t x[kChunks][kXRows][kChunkWords];
  float factors[kXRows][B::kStripsOfWarp];
  int split_of_x = -1;
  const auto load_x = [&](const int8_t* from, int n, int chunk, bool there) {
    const uint4 v = there ? *reinterpret_cast<const uint4*>(from) : make_uint4(0, 0, 0, 0);
    x[chunk][n][0] = v.x;
    x[chunk][n][1] = v.y;
    x[chunk][n][2] = v.z;
    x[chunk][n][3] = v.w;
  };
  uint32_t spread[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int at = 4 * (g / 2);
    spread[i] = (0x4444u & ~(0xfu << at)) | static_cast<uint32_t>(i) << at;
  }
  if constexpr (kMakesX) {
    constexpr int kStride = B::kStrips * kVptqByteStrip;
    auto* const made = reinterpret_cast<int8_t*>(behind);
    const MadeByteX of_warp = MakeByteX(call.prepare, made, kStride);
    factors[0][0] = of_warp.factors[0];
    factors[0][1] = of_warp.factors[1];
    const float dot = AddLanes(of_warp.dot);
    if (lane == 0) dots[warp] = dot;
    __syncwarp();
#pragma unroll
    for (int h = 0; h < kChunks; ++h) {
      const int strip = strip_of(0, h / kStripChunks);
      load_x(made + g % 2 * kStride + strip * kVptqByteStrip + h % kStripChunks * kVptqByteChunk +
                 16 * t,
             0, h, strip < call.num_strips);
    }
    split_of_x = 0;
  } else {
    WaitForPrevious();  // what makes x
  }
  constexpr int kLastMain = Main::kWords - 1, kLastResidual = Residual::kWords - 1;
  load(Main(), 0, main_words[0], 0);
  if constexpr (kHasResidual && kTiles == 0) load(Residual(), 0, residual_words[0], 0);
  __syncthreads();

  int held = 0;
  for (int item = begin; item < end; ++item) {
    // Else the compiler spreads all of x before the loop, which takes more registers than there
    // are.
    if constexpr (kMakesX) {
#pragma unroll
      for (int h = 0; h < kChunks; ++h) {
#pragma unroll
        for (uint32_t& v : x[h][0]) asm volatile("" : "+r"(v));
      }
    }
    const int this_split = split, this_group = group;
    int next_split = split, next_group = group + 1;
    if (next_group == call.num_groups) {
      next_group = 0;
      ++next_split;
    }
    if constexpr (!kMakesX) {
      if (split != split_of_x) {
        split_of_x = split;
        const int64_t stride = static_cast<int64_t>(call.num_strips) * kVptqByteStrip;
#pragma unroll
        for (int n = 0; n < kXRows; ++n) {
#pragma unroll
          for (int s = 0; s < B::kStripsOfWarp; ++s) {
            const int strip = strip_of(split, s);
            // Of operands, lane g has a plane of a row; of sums, lane t has a row.
            const int row = kTiles == 0 ? 0 : 4 * n + g / 2,
                      row_of_sum = kTiles == 0 ? 0 : 4 * n + t;
            const bool there = strip < call.num_strips;
            const int8_t* const from = call.prepare.to + (2 * (first_row + row) + g % 2) * stride +
                                       static_cast<int64_t>(strip) * kVptqByteStrip + 16 * t;
#pragma unroll
            for (int h = 0; h < kStripChunks; ++h) {
              load_x(from + h * kVptqByteChunk, n, s * kStripChunks + h, there && row < num_rows);
            }
            factors[n][s] =
                there && row_of_sum < num_rows
                    ? call.prepare
                          .factors[static_cast<int64_t>(first_row + row_of_sum) * call.num_strips +
                                   strip]
                    : 0.0f;
          }
        }
      }
    }
    const auto advance = [&] {
      split = next_split;
      group = next_group;
      more = item + 1 < end;
    };
    float* const to = sums + held * (B::kRoundBytes / 4);
    if constexpr (kTiles == 0) {
#pragma unroll
      for (int s = 0; s < 2; ++s) {
        const int strip = strip_of(this_split, s);
        if (s == 0) {
          fetch(item, this_split, this_group, 1);
        } else {
          fetch(item + 1, next_split, next_group, 0);
        }
        int32_t c[2][4] = {};
#pragma unroll
        for (int h = 4 * s; h < 4 * s + 4; ++h) {
          if (h + 1 == kChunks) advance();
          const uint32_t last = main_words[h % 2][kLastMain] | residual_words[h % 2][kLastResidual];
          load(Main(), (h + 1) % kChunks, main_words[(h + 1) % 2], last);
          if constexpr (kHasResidual) {
            load(Residual(), (h + 1) % kChunks, residual_words[(h + 1) % 2], last);
          }
          if (strip < call.num_strips) {
            AddOneRow<Main>(main, main_banks, main_words[h % 2], x[h][0], spread, c[0]);
            if constexpr (kHasResidual) {
              AddOneRow<Residual>(residual, residual_banks, residual_words[h % 2], x[h][0], spread,
                                  c[1]);
            }
          }
        }
        if (strip < call.num_strips) {
          StoreByteRow<kHasResidual>(c, call.scales, factors[0][s],
                                     to + (s * B::kWarps + warp) * B::kSums);
        }
      }
    } else {
      fetch(item + 1, next_split, next_group, 0);
      const bool there = strip_of(this_split, 0) < call.num_strips;
      float* const of_strip = to + warp * B::kSums;
      {
        int32_t c[4][kXRows][4] = {};
#pragma unroll
        for (int h = 0; h < kChunks; ++h) {
          const uint32_t last = main_words[h % 2][kLastMain];
          if (h + 1 < kChunks) {
            load(Main(), h + 1, main_words[(h + 1) % 2], last);
          } else if constexpr (kHasResidual) {
            load(Residual(), 0, residual_words[0], last);
          } else {
            advance();
            load(Main(), 0, main_words[0], last);
          }
          if (there) {
            AddRows<Main, kXRows>(main, main_banks, main_words[h % 2], x[h], c);
          }
        }
        if (there) {
          StoreByteTiles<false, !kHasResidual>(c, call.scales[0], factors, of_strip);
        }
      }
      if constexpr (kHasResidual) {
        int32_t c[4][kXRows][4] = {};
#pragma unroll
        for (int h = 0; h < kChunks; ++h) {
          const uint32_t last = residual_words[h % 2][kLastResidual];
          if (h + 1 < kChunks) {
            load(Residual(), h + 1, residual_words[(h + 1) % 2], last);
          } else {
            advance();
            load(Main(), 0, main_words[0], last);
          }
          if (there) {
            AddRows<Residual, kXRows>(residual, residual_banks, residual_words[h % 2], x[h], c);
          }
        }
        if (there) StoreByteTiles<true, true>(c, call.scales[1], factors, of_strip);
      }
    }
    ++held;
    if (held < call.rounds_held && item + 1 < end) continue;
    __syncthreads();
    AddByteStrips<B>(call, sums, item - (held - 1), held, first_token, num_tokens,
                     [&](int token, int64_t o, float value) {
                       if constexpr (kMakesX) {
                         float dot = 0.0f;
#pragma unroll
                         for (int w = 0; w < kByteXWarps; ++w) dot += dots[w];
                         StoreVptqResult(call.result, token, o, value, {1.0f, dot});
                       } else {
                         StoreVptqResult(call.result, token, o, value);
                       }
                     });
    __syncthreads();
    held = 0;
  }
  LetNextStart();
}

template <int kIndexBits, int kResidualBits, int kTiles, bool kMakesX>
cudaError_t LaunchBytes(const VptqBytesCall& call, cudaStream_t stream) {
  using B = ByteBlock<kTiles>;
  const auto kernel = BytesKernel<kIndexBits, kResidualBits, kTiles, kMakesX>;
  const cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, call.shared_bytes);
  if (error != cudaSuccess) return error;
  const int64_t items =
      int64_t{call.num_groups} * ((call.num_strips + B::kStrips - 1) / B::kStrips);
  const int tokens_each = B::kRows / call.rows_of_token;
  const dim3 grid(static_cast<unsigned>(std::clamp<int64_t>(items, 1, call.num_blocks)),
                  static_cast<unsigned>((call.result.num_tokens + tokens_each - 1) / tokens_each));
  return LaunchKernel({grid, dim3(B::kThreads), static_cast<size_t>(call.shared_bytes), stream},
                      call.early_launches, kernel, call);
}

template <int kIndexBits, int kResidualBits>
cudaError_t LaunchByteTiles(const VptqBytesCall& call, cudaStream_t stream) {
  if (call.makes_x) return LaunchBytes<kIndexBits, kResidualBits, 0, true>(call, stream);
  return WithByteTiles(call.rows_at_once, [&](auto tiles) {
    return LaunchBytes<kIndexBits, kResidualBits, decltype(tiles)::value, false>(call, stream);
  });
}

}  // namespace
}  // namespace vptq

cudaError_t LaunchVptqBytes(const VptqBytesCall& call, cudaStream_t stream) {
  cudaError_t error = cudaErrorInvalidValue;
  if (call.index_bits == 8) {
    if (call.residual_bits == 0) error = vptq::LaunchByteTiles<8, 0>(call, stream);
    if (call.residual_bits == 8) error = vptq::LaunchByteTiles<8, 8>(call, stream);
  } else if (call.index_bits == 12) {
    if (call.residual_bits == 0) error = vptq::LaunchByteTiles<12, 0>(call, stream);
    if (call.residual_bits == 8) error = vptq::LaunchByteTiles<12, 8>(call, stream);
  }
  if (error != cudaSuccess || call.result.partials == nullptr) return error;
  return LaunchVptqAdd(call.result, call.early_launches, stream);
}

}  // namespace thinwire
