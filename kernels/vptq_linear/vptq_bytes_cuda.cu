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
#include "kernels/vptq_linear/vptq_bytes.cuh"
#include "kernels/vptq_linear/vptq_bytes_cuda.h"
#include "kernels/vptq_linear/vptq_bytes_x.cuh"
#include "kernels/vptq_linear/vptq_result.cuh"

namespace thinwire {
namespace vptq {
namespace {

// kTiles: 0 for one row of x, else four rows each.
template <int kTiles>
struct ByteBlock {
  static constexpr int kWarps = kTiles == 4 ? 8 : 16;
  static constexpr int kThreads = 32 * kWarps;
  static constexpr int kRows = kTiles == 0 ? 1 : 4 * kTiles;
  static constexpr int kStripsOfWarp = kTiles == 0 ? 2 : 1;
  static constexpr int kStrips = kWarps * kStripsOfWarp;
  static constexpr int kParts = kStrips / kVptqBytePart;
  static constexpr int kSums = kRows * kByteOutputs;  // of a strip
  static constexpr int kRoundBytes = kStrips * kSums * 4;
};
static_assert(ByteBlock<0>::kWarps == kByteXWarps);
// What x of one row is made in, before sums are.
static_assert(ByteBlock<0>::kRoundBytes >= 8 * 1024);
constexpr int kByteXBytes = ByteBlock<0>::kStrips * kVptqByteStrip * 2;
constexpr int kByteStaticBytes = 256;
constexpr int kMostRoundsHeld = 8;

__host__ __device__ constexpr int ByteTableBytes(int index_bits, int residual_bits) {
  return ByteBookBytes(index_bits) + ByteBookBytes(residual_bits);
}

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
  // A chunk of the current item; past the last item, nothing.
  bool more = begin < end;
  const auto load = [&](auto table, int chunk, auto& words) {
    using Table = decltype(table);
    if (!more || strip_of(split, chunk / kStripChunks) >= call.num_strips) return;
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
  load(Main(), 0, main_words[0]);
  if constexpr (kHasResidual && kTiles == 0) load(Residual(), 0, residual_words[0]);
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
          load(Main(), (h + 1) % kChunks, main_words[(h + 1) % 2]);
          if constexpr (kHasResidual)
            load(Residual(), (h + 1) % kChunks, residual_words[(h + 1) % 2]);
          if (strip < call.num_strips) {
            AddOneRow<Main>(main, main_banks, main_words[h % 2], x[h][0], spread, c[0]);
            if constexpr (kHasResidual) {
              AddOneRow<Residual>(residual, residual_banks, residual_words[h % 2], x[h][0], spread,
                                  c[1]);
            }
          }
        }
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const int component = 4 * e + t;
          float value =
              static_cast<float>(c[0][2 * e] * 256 + c[0][2 * e + 1]) * call.scales[0][component];
          if constexpr (kHasResidual) {
            value = fmaf(static_cast<float>(c[1][2 * e] * 256 + c[1][2 * e + 1]),
                         call.scales[1][component], value);
          }
          if (strip < call.num_strips) {
            to[(s * B::kWarps + warp) * B::kSums + PlaceOfByteSum(0, 8 * g + component)] =
                value * factors[0][s];
          }
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
          if (h + 1 < kChunks) {
            load(Main(), h + 1, main_words[(h + 1) % 2]);
          } else if constexpr (kHasResidual) {
            load(Residual(), 0, residual_words[0]);
          } else {
            advance();
            load(Main(), 0, main_words[0]);
          }
          if (there) {
            AddRows<Main, kXRows>(main, main_banks, main_words[h % 2], x[h], c);
          }
        }
        if (there) {
#pragma unroll
          for (int n = 0; n < kXRows; ++n) {
#pragma unroll
            for (int k = 0; k < 2; ++k) {
              float v[4];
#pragma unroll
              for (int e = 0; e < 4; ++e) {
                const int32_t(&planes)[4] = c[2 * k + e / 2][n];
                v[e] = static_cast<float>(planes[e % 2 * 2] * 256 + planes[e % 2 * 2 + 1]) *
                       call.scales[0][4 * k + e];
                if constexpr (!kHasResidual) v[e] *= factors[n][0];
              }
              *reinterpret_cast<float4*>(of_strip + PlaceOfByteSum(4 * n + t, 8 * g + 4 * k)) =
                  make_float4(v[0], v[1], v[2], v[3]);
            }
          }
        }
      }
      if constexpr (kHasResidual) {
        int32_t c[4][kXRows][4] = {};
#pragma unroll
        for (int h = 0; h < kChunks; ++h) {
          if (h + 1 < kChunks) {
            load(Residual(), h + 1, residual_words[(h + 1) % 2]);
          } else {
            advance();
            load(Main(), 0, main_words[0]);
          }
          if (there) {
            AddRows<Residual, kXRows>(residual, residual_banks, residual_words[h % 2], x[h], c);
          }
        }
        if (there) {
#pragma unroll
          for (int n = 0; n < kXRows; ++n) {
#pragma unroll
            for (int k = 0; k < 2; ++k) {
              auto* const at =
                  reinterpret_cast<float4*>(of_strip + PlaceOfByteSum(4 * n + t, 8 * g + 4 * k));
              const float4 before = *at;
              float v[4] = {before.x, before.y, before.z, before.w};
#pragma unroll
              for (int e = 0; e < 4; ++e) {
                const int32_t(&planes)[4] = c[2 * k + e / 2][n];
                v[e] = fmaf(static_cast<float>(planes[e % 2 * 2] * 256 + planes[e % 2 * 2 + 1]),
                            call.scales[1][4 * k + e], v[e]) *
                       factors[n][0];
              }
              *at = make_float4(v[0], v[1], v[2], v[3]);
            }
          }
        }
      }
    }
    ++held;
    if (held < call.rounds_held && item + 1 < end) continue;
    __syncthreads();
    const int first_held = item - (held - 1);
    for (int i = threadIdx.x; i < held * num_tokens * kByteOutputs; i += B::kThreads) {
      const int output = i % kByteOutputs;
      const int at = i / kByteOutputs / num_tokens;
      const int token = i / kByteOutputs - at * num_tokens;
      const int of_split = (first_held + at) / call.num_groups;
      const int of_group = first_held + at - of_split * call.num_groups;
      const int64_t o =
          (static_cast<int64_t>(of_group) * kVptqByteRows + output / 8) * call.length + output % 8 -
          call.skip;
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
      if (call.result.partials != nullptr) continue;
      if constexpr (kMakesX) {
        float dot = 0.0f;
#pragma unroll
        for (int w = 0; w < kByteXWarps; ++w) dot += dots[w];
        StoreVptqResult(call.result, 0, o, value, {1.0f, dot});
      } else {
        StoreVptqResult(call.result, first_token + token, o, value);
      }
    }
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

// Calls f(kTiles).
template <typename F>
auto WithByteTiles(int rows_at_once, const F& f) {
  if (rows_at_once == 1) return f(std::integral_constant<int, 0>());
  if (rows_at_once == 8) return f(std::integral_constant<int, 2>());
  return f(std::integral_constant<int, 4>());
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

bool HasVptqByteTables(int length, int index_bits, int residual_bits, int64_t shared_memory_bytes) {
  const bool known =
      (index_bits == 8 || index_bits == 12) && (residual_bits == 0 || residual_bits == 8);
  return known && length <= 8 &&
         vptq::ByteTableBytes(index_bits, residual_bits) + vptq::ByteBlock<4>::kRoundBytes +
                 vptq::kByteStaticBytes <=
             shared_memory_bytes;
}

void PlanVptqBytes(VptqBytesCall& call) {
  const int rows = call.result.num_tokens * call.rows_of_token;
  const int parts = (call.num_strips + kVptqBytePart - 1) / kVptqBytePart;
  call.rows_at_once = rows == 1 ? 1 : rows <= 8 ? 8 : 16;
  vptq::WithByteTiles(call.rows_at_once, [&](auto tiles) {
    using B = vptq::ByteBlock<decltype(tiles)::value>;
    call.result.splits = parts <= B::kParts ? 1 : parts;
    const int table_bytes = vptq::ByteTableBytes(call.index_bits, call.residual_bits);
    const int left = call.shared_memory_bytes - table_bytes - vptq::kByteStaticBytes;
    call.rounds_held = std::clamp(left / B::kRoundBytes, 1, vptq::kMostRoundsHeld);
    call.shared_bytes =
        table_bytes + std::max(call.rounds_held * B::kRoundBytes, vptq::kByteXBytes);
  });
  call.makes_x = rows == 1 && call.result.splits == 1;
}

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
