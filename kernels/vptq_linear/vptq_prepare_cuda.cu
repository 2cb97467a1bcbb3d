// Codes brought into the kernels' order, x made ready, and splits added up.
#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/core/cuda_math.cuh"
#include "kernels/core/vectors.cuh"
#include "kernels/vptq_linear/vptq_linear_cuda.h"
#include "kernels/vptq_linear/vptq_result.cuh"

namespace thinwire {
namespace {

constexpr int kPrepareThreads = 1024;

struct SumAndMax {
  float sum, max;
};
struct JoinSumAndMax {
  __device__ SumAndMax operator()(const SumAndMax& a, const SumAndMax& b) const {
    return {a.sum + b.sum, fmaxf(a.max, b.max)};
  }
};

// A block takes a token.
__global__ void __launch_bounds__(kPrepareThreads) Prepare(const VptqPrepareCall call) {
  LetNextStart();
  __shared__ SumAndMax partial[32];
  const int64_t token = blockIdx.x;
  const auto x_at = [&](int p) {
    return LoadFloat(call.x, call.dtype,
                     token * call.x_stride + (call.order == nullptr ? p : call.order[p]));
  };
  float dot = 0.0f, most = 0.0f;
#pragma unroll 4
  for (int p = threadIdx.x; p < call.in_features; p += kPrepareThreads) {
    const float x = x_at(p);
    const float scaled = call.scale == nullptr ? x : x * call.scale[p];
    if (call.offset != nullptr) dot += x * call.offset[p];
    most = fmaxf(most, fabsf(scaled));
    if (call.planes == 0) static_cast<float*>(call.to)[token * call.to_stride + p] = scaled;
  }
  SumAndMax all = {dot, most};
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) {
    all = JoinSumAndMax()(all, {__shfl_xor_sync(0xffffffffu, all.sum, distance),
                                __shfl_xor_sync(0xffffffffu, all.max, distance)});
  }
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = all;
  __syncthreads();
  all = partial[threadIdx.x % 32];
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) {
    all = JoinSumAndMax()(all, {__shfl_xor_sync(0xffffffffu, all.sum, distance),
                                __shfl_xor_sync(0xffffffffu, all.max, distance)});
  }
  if (threadIdx.x == 0) call.dots[token] = all.sum;
  if (call.planes == 0) return;
  // The largest comes into [2^14, 2^15), where fp16 has most below it.
  const int biased = static_cast<int>(__float_as_uint(all.max) >> 23 & 255u);
  const int exponent = min(max(biased - 127, -100), 127) - 14;
  const float up = __uint_as_float(static_cast<uint32_t>(127 - exponent) << 23);
  if (threadIdx.x == 0 && call.factors != nullptr) {
    call.factors[token] =
        __uint_as_float(static_cast<uint32_t>(127 + exponent) << 23) * call.book_factor;
  }
  auto* const to = static_cast<__half*>(call.to) + token * call.planes * call.to_stride;
#pragma unroll 4
  for (int p = threadIdx.x; p < call.to_stride; p += kPrepareThreads) {
    float left = 0.0f;
    if (p < call.in_features) {
      const float x = x_at(p);
      left = (call.scale == nullptr ? x : x * call.scale[p]) * up;
    }
    for (int plane = 0; plane < call.planes; ++plane) {
      const __half rounded = __float2half_rn(left);
      to[plane * call.to_stride + p] = rounded;
      left = (left - __half2float(rounded)) * 0x1p11f;
    }
  }
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
    if (place_bits > call.index_bits && TakesOtherPlace(index)) {
      place = (1 << call.index_bits) + VptqOtherPlace(index);
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
  Prepare<<<call.num_tokens, kPrepareThreads, 0, stream>>>(call);
  return cudaGetLastError();
}

bool VptqWaitsInKernels() {
  cudaFuncAttributes attributes;
  return cudaFuncGetAttributes(&attributes, Add) == cudaSuccess && attributes.ptxVersion >= 90;
}

cudaError_t LaunchVptqAdd(const VptqResult& result, bool early, cudaStream_t stream) {
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3((result.out_features + 127) / 128, result.num_tokens);
  config.blockDim = dim3(128);
  config.stream = stream;
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  config.attrs = &attribute;
  config.numAttrs = early ? 1 : 0;
  return cudaLaunchKernelEx(&config, Add, result);
}

cudaError_t LaunchVptqArrange(const VptqArrangeCall& call, cudaStream_t stream) {
  // Quads beyond 65535 do not fit in a grid's y: 2 M outputs.
  const dim3 grid((call.num_units + 3) / 4, call.num_quads);
  Arrange<<<grid, 128, 0, stream>>>(call);
  return cudaGetLastError();
}

}  // namespace thinwire
