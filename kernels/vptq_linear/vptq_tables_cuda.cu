// VPTQ linears for few tokens with all centroids in shared memory (vptq_linear_cuda.h). A lane
// turns its code into the address of a centroid, the matrix load instruction makes 32 of these the
// operand of a product, 16 outputs by 16 columns, and x is the other operand, which a warp keeps in
// registers: no value of a weight ever passes through an instruction of its own.
//
// A warp has a strip of columns and goes through quads of vector rows; the block adds its warps'
// sums, strips in the order of the columns to those of a part, then parts. Where a row has more
// parts than a block takes in, each is a split, and splits' sums are added by a second kernel. So
// an element's sum depends on the columns alone.
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "kernels/core/block_barrier.cuh"
#include "kernels/core/cuda_math.cuh"
#include "kernels/core/early_launch.cuh"
#include "kernels/vptq_linear/vptq_linear_cuda.h"
#include "kernels/vptq_linear/vptq_result.cuh"
#include "kernels/vptq_linear/vptq_table_sums.cuh"
#include "kernels/vptq_linear/vptq_tables.cuh"
#include "kernels/vptq_linear/vptq_tables_block.h"
#include "kernels/vptq_linear/vptq_x.cuh"

namespace thinwire {
namespace vptq {
namespace {

template <int kIndexBits, int kResidualBits, int kTiles, bool kMakesX>
__global__ void __launch_bounds__(Block<kTiles>::kThreads, 1)
    TablesKernel(const __grid_constant__ VptqTablesCall call) {
  using T = Tables<kIndexBits, kResidualBits>;
  constexpr int kWarps = Block<kTiles>::kWarps, kThreads = Block<kTiles>::kThreads;
  constexpr int kHalves = Block<kTiles>::kHalves;
  constexpr bool kLags = !kMakesX;
  extern __shared__ __align__(128) unsigned char memory[];
  __shared__ uint64_t barriers[2];
  float* const sums = reinterpret_cast<float*>(memory + T::kBytes + call.num_thirds * 16);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int g = lane / 4, t = lane % 4;
  const int tokens_each = 8 * kTiles / call.planes;
  const int first_token = static_cast<int>(blockIdx.y) * tokens_each;
  const int num_tokens = min(tokens_each, call.result.num_tokens - first_token);
  const int num_rows = num_tokens * call.planes;  // of x

  const uint32_t none = gridDim.z - 1;  // 0, which the compiler does not know
  const uint32_t as_it_is = 0x3210u + none;

  const auto base = static_cast<uint32_t>(__cvta_generic_to_shared(memory));
  const uint32_t main = base + T::kResidualBytes + (kIndexBits == 8 ? lane % 8 * 16 : 0);
  const uint32_t residual = base + (kResidualBits == 8 ? lane % 8 * 16 : 0);

  // Items are quads of a split, split after split. A warp has the same strip of each split.
  const int at_once = call.items_at_once, warps_of_item = call.strips_each * call.parts_at_once;
  const int64_t num_items = static_cast<int64_t>(call.num_quads) * call.result.splits;
  // The last blocks, which may begin late, have one less where shares are not even.
  const auto items_before = [&](int64_t block) {
    return static_cast<int>(num_items / gridDim.x * block +
                            min(block, num_items % int64_t{gridDim.x}));
  };
  const int begin = items_before(blockIdx.x), end = items_before(blockIdx.x + 1);
  // The next item of this warp; counted on rather than divided, which would cost more than a round.
  int item = begin + warp / warps_of_item;
  int split = item / call.num_quads, quad = item % call.num_quads;
  int strip = 0, halves = 0;  // halves: of the strip that there are, 0 without an item
  const auto find = [&] {
    strip = split * warps_of_item + warp % warps_of_item;
    halves = warp / warps_of_item < at_once && item < end
                 ? max(0, min(kHalves, 2 * call.num_units - strip * kHalves))
                 : 0;
  };
  find();
  constexpr int kWords = (kCodes * T::kBits + 31) / 32;
  // Asks for half a unit's codes once `after` is there: what waits for the one load would else wait
  // for the other, too.
  const auto load = [&](int half, uint32_t(&words)[kWords], uint32_t after) {
    if (half + static_cast<int>(after & none) >= halves) return;
    const int64_t unit = static_cast<int64_t>(quad) * call.num_units + (strip * kHalves + half) / 2;
    const uint32_t* const from =
        call.codes + unit * (32 * T::kBits) + half % 2 * (kCodes * T::kBits / 32 * 32) + lane;
#pragma unroll
    for (int w = 0; w < kWords; ++w) words[w] = __ldcs(from + 32 * w);
  };

  // Brings what the warp will load of the next item into the second-level cache, where half a unit
  // in registers is less than what memory takes at full rate: of few bits, in few warps.
  constexpr bool kFetches = kTiles > 1 && T::kBits <= 16;
  const auto fetch_quad = [&](int of) {
    PrefetchL2(call.codes + (static_cast<int64_t>(of) * call.num_units + strip * kHalves / 2) *
                                (32 * T::kBits),
               (halves + 1) / 2 * (32 * T::kBits * 4));
  };
  const auto fetch_next = [&] {
    const int next = quad + at_once;
    if (lane != 0 || halves == 0 || next >= call.num_quads || item + at_once >= end) return;
    fetch_quad(next);
  };

  uint32_t even[kWords] = {}, odd[kWords] = {};
  if (kFetches && halves > 0 && lane == 0) fetch_quad(quad);
  load(0, even, 0);
  const auto written = static_cast<uint32_t>(__cvta_generic_to_shared(barriers));
  const uint32_t taken = written + 8;
  if (kLags && threadIdx.x == 0) {
    InitBarrier(written, kThreads);
    InitBarrier(taken, kThreads);
  }
  T::template Fill<kThreads>(call, memory);
  uint4 x[kTiles][4 * kHalves];
  VptqXSums of_x = {};
  int strip_of_x = -1;
  if constexpr (kMakesX) {
    auto* const made = reinterpret_cast<__half*>(sums);
    of_x =
        MakeVptqX(call.prepare, 0, [&](int p, float value) { made[p] = __float2half_rn(value); });
    __syncthreads();
#pragma unroll
    for (int s = 0; s < 4 * kHalves; ++s) {
      x[0][s] = s / 4 < halves ? *reinterpret_cast<const uint4*>(
                                     made + strip * kHalves * kHalfColumns + 32 * s + 8 * t)
                               : make_uint4(0, 0, 0, 0);
    }
  } else {
    WaitForPrevious();  // what makes x
  }
  __syncthreads();

  // Rounds whose sums are held, each [warps, rows of x, kQuadOutputs] at PlaceOfSum.
  const int warp_sums = num_rows * kQuadOutputs;
  const int most_held = call.sum_floats / (kWarps * warp_sums);
  // Of 16 rows of x, half of the warps add a round's while the others go on; with fewer, there are
  // no registers for that.
  AddSums<kThreads, kTiles == 1 ? 1 : 4> add(call, sums, num_tokens, kWarps * warp_sums, begin,
                                             end);
  const auto store = [&](int split, int token, int64_t o, float value) {
    if constexpr (kMakesX) {
      StoreVptqResult(call.result, 0, o, value, of_x);
    } else {
      KeepVptqSum(call.result, split, first_token + token, o, value);
    }
  };
  // Sums wait to be added until the warp has begun the next round, so that no warp waits for
  // others.
  int to_add = 0;          // rounds whose sums all warps have written or will
  uint32_t parity = 0;     // of both barriers' phases
  bool must_wait = false;  // until all warps have added what was held, before it is overwritten
  const auto add_held = [&] {
    if (to_add == 0) return;
    // Other warps add in the next round.
    const int thread = static_cast<int>(threadIdx.x) ^ (parity != 0 ? kThreads / 2 : 0);
    add(
        thread, to_add, [&] { WaitForPhase(written, parity); }, store);
    to_add = 0;
    must_wait = true;
    Arrive(taken);
  };
  int held = 0;
  for (int first = begin; first < end; first += at_once) {
    const int now = halves;
    if constexpr (kFetches) fetch_next();
    if constexpr (!kMakesX) {
      if (now > 0 && strip != strip_of_x) {
        strip_of_x = strip;
#pragma unroll
        for (int n = 0; n < kTiles; ++n) {
          const bool in_rows = 8 * n + g < num_rows;
          const auto* const from =
              static_cast<const __half*>(call.x) +
              (in_rows ? static_cast<int64_t>(first_token * call.planes + 8 * n + g) * call.x_stride
                       : 0) +
              strip * kHalves * kHalfColumns + 8 * t;
#pragma unroll
          for (int s = 0; s < 4 * kHalves; ++s) {
            x[n][s] = in_rows && s / 4 < now ? *reinterpret_cast<const uint4*>(from + 32 * s)
                                             : make_uint4(0, 0, 0, 0);
          }
        }
#pragma unroll
        for (int n = 0; n < kTiles; ++n) {
#pragma unroll
          for (uint4& v : x[n]) WaitFor(v, as_it_is);
        }
      }
    }
    float c[2][kTiles][4] = {};
#pragma unroll
    for (int half = 0; half < kHalves; half += 2) {
      load(half + 1, odd, even[kWords - 1]);
      if (half < now) AddHalf<T, kResidualBits, kTiles, false>(even, main, residual, half, x, c);
      if (kLags && half == 0) add_held();
      if (half + 2 < kHalves) {
        load(half + 2, even, odd[kWords - 1]);
      } else {
        item += at_once;
        quad += at_once;
        while (quad >= call.num_quads) {
          quad -= call.num_quads;
          ++split;
        }
        find();
        load(0, even, odd[kWords - 1]);
      }
      if (half + 1 < now) {
        AddHalf<T, kResidualBits, kTiles, true>(odd, main, residual, half + 1, x, c);
      }
    }
    if (kLags && must_wait) {
      WaitForPhase(taken, parity);
      parity ^= 1;
      must_wait = false;
    }
    if (now > 0) {
      float* const to = sums + (held * kWarps + warp) * warp_sums;
#pragma unroll
      for (int n = 0; n < kTiles; ++n) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const int row = 8 * n + 2 * t + e;
          if (row >= num_rows) continue;
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            to[PlaceOfSum(row, 8 * i + g)] = c[i / 2][n][i % 2 * 2 + e];
          }
        }
      }
    }
    ++held;
    if (held < most_held && first + at_once < end) continue;
    if constexpr (kLags) {
      to_add = held;
      Arrive(written);
    } else {
      __syncthreads();
      add(
          threadIdx.x, held, [] {}, store);
      __syncthreads();
    }
    held = 0;
  }
  if (kLags) add_held();
  LetNextStart();
}

template <int kIndexBits, int kResidualBits, int kTiles, bool kMakesX>
cudaError_t Launch(const VptqTablesCall& call, cudaStream_t stream) {
  const auto kernel = TablesKernel<kIndexBits, kResidualBits, kTiles, kMakesX>;
  const cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, call.shared_bytes);
  if (error != cudaSuccess) return error;
  const int64_t items = static_cast<int64_t>(call.num_quads) * call.result.splits;
  const int64_t rounds = (items + call.items_at_once - 1) / call.items_at_once;
  const int tokens_each = 8 * kTiles / call.planes;
  const dim3 grid(static_cast<unsigned>(std::clamp<int64_t>(rounds, 1, call.num_blocks)),
                  static_cast<unsigned>((call.result.num_tokens + tokens_each - 1) / tokens_each));
  return LaunchKernel(
      {grid, dim3(Block<kTiles>::kThreads), static_cast<size_t>(call.shared_bytes), stream},
      call.early_launches, kernel, call);
}

template <int kIndexBits, int kResidualBits>
cudaError_t LaunchTiles(const VptqTablesCall& call, cudaStream_t stream) {
  if (call.makes_x) return Launch<kIndexBits, kResidualBits, 1, true>(call, stream);
  return WithTiles(call, [&](auto tiles) {
    return Launch<kIndexBits, kResidualBits, decltype(tiles)::value, false>(call, stream);
  });
}

}  // namespace
}  // namespace vptq

cudaError_t LaunchVptqTables(const VptqTablesCall& call, cudaStream_t stream) {
  cudaError_t error = cudaErrorInvalidValue;
  if (call.index_bits == 8) {
    if (call.residual_bits == 0) error = vptq::LaunchTiles<8, 0>(call, stream);
    if (call.residual_bits == 8) error = vptq::LaunchTiles<8, 8>(call, stream);
  } else if (call.index_bits == 12) {
    if (call.residual_bits == 0) error = vptq::LaunchTiles<12, 0>(call, stream);
    if (call.residual_bits == 8) error = vptq::LaunchTiles<12, 8>(call, stream);
    if (call.residual_bits == 12) error = vptq::LaunchTiles<12, 12>(call, stream);
  }
  if (error != cudaSuccess || call.result.partials == nullptr) return error;
  return LaunchVptqAdd(call.result, call.early_launches, stream);
}

}  // namespace thinwire
