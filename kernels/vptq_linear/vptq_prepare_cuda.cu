// Codes brought into the kernels' order, x made ready, and splits added up.
#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/core/cuda_math.cuh"
#include "kernels/core/early_launch.cuh"
#include "kernels/vptq_linear/vptq_linear_cuda.h"
#include "kernels/vptq_linear/vptq_result.cuh"
#include "kernels/vptq_linear/vptq_x.cuh"

namespace thinwire {
namespace {

// A block takes a token.
__global__ void __launch_bounds__(kVptqXThreads) Prepare(const VptqPrepareCall call) {
  LetNextStart();
  const int64_t token = blockIdx.x;
  VptqXSums sums;
  if (call.planes == 0) {
    auto* const to = static_cast<float*>(call.to) + token * call.to_stride;
    sums = MakeVptqX(call, token, [&](int p, float value) { to[p] = value; });
  } else {
    auto* const to = static_cast<__half*>(call.to) + token * call.planes * call.to_stride;
    sums = MakeVptqX(call, token, [&](int p, float value) {
      for (int plane = 0; plane < call.planes; ++plane) {
        const __half rounded = __float2half_rn(value);
        to[plane * call.to_stride + p] = rounded;
        value = (value - __half2float(rounded)) * 0x1p11f;
      }
    });
  }
  if (threadIdx.x != 0) return;
  call.dots[token] = sums.dot;
  if (call.factors != nullptr) call.factors[token] = sums.factor;
}

__global__ void __launch_bounds__(128) Add(const VptqResult result) {
  const int o = static_cast<int>(blockIdx.x) * 128 + static_cast<int>(threadIdx.x);
  const int token = blockIdx.y;
  WaitForPrevious();
  if (o >= result.out_features) return;
  const int64_t set = static_cast<int64_t>(result.num_tokens) * result.out_features;
  const float* const from = result.partials + static_cast<int64_t>(token) * result.out_features + o;
  float value = 0.0f;
#pragma unroll 4
  for (int s = 0; s < result.splits; ++s) value += from[s * set];
  StoreVptqResult(result, token, o, value);
}

// Of a phase, 8 lanes that fetch at the same time, whether this lane should take the other place of
// its centroid so that the most rows in any bank are fewest: the lanes try all 2^8 ways.
__device__ inline bool TakesOtherPlace(int index) {
  const int j = threadIdx.x % 8;
  // Rows in each bank, 4 bits each.
  uint32_t counts[8][2];
#pragma unroll
  for (int l = 0; l < 8; ++l) {
    const int of_lane = __shfl_sync(0xffffffffu, index, l, 8);
    counts[l][0] = 1u << (of_lane % 8 * 4);
    counts[l][1] = 1u << (VptqOtherPlace(of_lane) % 8 * 4);
  }
  uint32_t upper = 0;
#pragma unroll
  for (int l = 0; l < 3; ++l) upper += (j >> l & 1) != 0 ? counts[5 + l][1] : counts[5 + l][0];
  uint32_t best = 0xffffffffu;
#pragma unroll
  for (int way = 0; way < 32; ++way) {
    uint32_t sum = upper;
#pragma unroll
    for (int l = 0; l < 5; ++l) sum += counts[l][way >> l & 1];
    // Bit 3 of a count plus 8 - n: whether it is n or more.
    uint32_t cost = 0;
    cost += ((sum + 0x66666666u) & 0x88888888u) != 0;
    cost += ((sum + 0x55555555u) & 0x88888888u) != 0;
    cost += ((sum + 0x44444444u) & 0x88888888u) != 0;
    best = min(best, cost << 8 | static_cast<uint32_t>(j << 5 | way));
  }
#pragma unroll
  for (int distance = 4; distance > 0; distance /= 2) {
    best = min(best, __shfl_xor_sync(0xffffffffu, best, distance));
  }
  return (best >> j & 1u) != 0;
}

// Of a phase, where this lane should fetch its centroid so that no two lanes meet in a bank, if
// there is such a way: banks that the lanes up to each one can take together are found one after
// the other, then a way is followed back.
__device__ inline int PlaceWithoutMeeting(int index, int num_thirds) {
  // Which of 32 sets of banks 0 to 4 have bank b.
  constexpr uint32_t kHave[5] = {0xaaaaaaaau, 0xccccccccu, 0xf0f0f0f0u, 0xff00ff00u, 0xffff0000u};
  const int j = threadIdx.x % 8;
  // Whether lanes below l can take sets of banks: lane j has the sets with j as banks 5 to 7.
  uint32_t can[9];
  can[0] = j == 0 ? 1u : 0u;
  int banks[8][3];
#pragma unroll
  for (int l = 0; l < 8; ++l) {
    const int of_lane = __shfl_sync(0xffffffffu, index, l, 8);
    banks[l][0] = of_lane % 8;
    banks[l][1] = VptqOtherPlace(of_lane) % 8;
    banks[l][2] = of_lane < num_thirds ? VptqThirdPlace(of_lane) % 8 : banks[l][1];
    can[l + 1] = 0u;
#pragma unroll
    for (int c = 0; c < 3; ++c) {
      const int bank = banks[l][c];
      const int upper = bank >= 5 ? 1 << (bank - 5) : 0;
      const uint32_t without = __shfl_sync(0xffffffffu, can[l], j ^ upper, 8);
      uint32_t have = 0;
#pragma unroll
      for (int b = 0; b < 5; ++b) have = bank == b ? kHave[b] : have;
      can[l + 1] |= bank < 5 ? (can[l] & ~have) << (1 << bank) : (j & upper) != 0 ? without : 0u;
    }
  }
  const bool all = __shfl_sync(0xffffffffu, can[8], 7, 8) >> 31 != 0;
  int left = 255, mine = -1;
#pragma unroll
  for (int l = 7; l >= 0; --l) {
    int taken = -1, bank = 0;
#pragma unroll
    for (int c = 0; c < 3; ++c) {
      const int without = left & ~(1 << banks[l][c]);
      const uint32_t word = __shfl_sync(0xffffffffu, can[l], without >> 5, 8);
      if (taken < 0 && without != left && (word >> (without & 31) & 1u) != 0) {
        taken = c;
        bank = banks[l][c];
      }
    }
    if (l == j) mine = taken;
    left &= ~(1 << bank);
  }
  if (!all) return -1;
  return mine == 0   ? index
         : mine == 1 ? 4096 + VptqOtherPlace(index)
                     : 8192 + VptqThirdPlace(index);
}

// A warp makes a unit.
__global__ void __launch_bounds__(128) Arrange(const VptqArrangeCall call) {
  const int lane = threadIdx.x % 32;
  const int unit = static_cast<int>(blockIdx.x) * 4 + static_cast<int>(threadIdx.x) / 32;
  const int quad = blockIdx.y;
  if (unit >= call.num_units) return;
  const int bits = call.index_bits + call.residual_bits;
  const int place_bits = VptqPlaceBits(call.index_bits);
  const int wide = place_bits + call.residual_bits;
  uint32_t* const to =
      call.to + (static_cast<int64_t>(quad) * call.num_units + unit) * 32 * wide + lane;
  const int m = lane / 8, j = lane % 8;
  uint64_t left = 0;
  int have = 0, word = 0;
  for (int i = 0; i < 32; ++i) {
    // PlaceOfVptqCode's inverse.
    const int step = i / 2;
    const int row = kVptqQuadRows * quad + 2 * (i % 2) + m % 2;
    const int column = unit * kVptqUnitColumns + 32 * (step / 2) + 8 * (j / 2) + 4 * (step % 2) +
                       2 * (m / 2) + j % 2;
    uint32_t code = 0;
    if (row < call.num_vectors && column < call.num_columns) {
      const int64_t bit = static_cast<int64_t>(column) * bits;
      const uint32_t* const from = call.codes + row * call.row_words + bit / 32;
      code = __funnelshift_r(from[0], from[1], static_cast<uint32_t>(bit % 32));
      if (bits < 32) code &= (1u << bits) - 1u;
    }
    const int index = static_cast<int>(code & ((1u << call.index_bits) - 1u));
    int place = index;
    if (place_bits > call.index_bits) {
      place = PlaceWithoutMeeting(index, call.num_thirds);
      const bool other = TakesOtherPlace(index);
      if (place < 0) place = other ? 4096 + VptqOtherPlace(index) : index;
    }
    left |=
        static_cast<uint64_t>(static_cast<uint32_t>(place) | code >> call.index_bits << place_bits)
        << have;
    have += wide;
    while (have >= 32) {
      to[32 * word++] = static_cast<uint32_t>(left);
      left >>= 32;
      have -= 32;
    }
  }
}

}  // namespace

cudaError_t LaunchVptqPrepare(const VptqPrepareCall& call, cudaStream_t stream) {
  return LaunchKernel({dim3(call.num_tokens), dim3(kVptqXThreads), 0, stream}, call.early, Prepare,
                      call);
}

bool VptqWaitsInKernels() { return CanStartEarly(Add); }

cudaError_t LaunchVptqAdd(const VptqResult& result, bool early, cudaStream_t stream) {
  return LaunchKernel(
      {dim3((result.out_features + 127) / 128, result.num_tokens), dim3(128), 0, stream}, early,
      Add, result);
}

cudaError_t LaunchVptqArrange(const VptqArrangeCall& call, cudaStream_t stream) {
  // Quads beyond 65535 do not fit in a grid's y: 2 M outputs.
  const dim3 grid((call.num_units + 3) / 4, call.num_quads);
  Arrange<<<grid, 128, 0, stream>>>(call);
  return cudaGetLastError();
}

}  // namespace thinwire
