// VPTQ linears whose books do not fit in shared memory, or have other sizes: each centroid comes
// from where the caches have it. And weights laid out as matrices for many tokens.
#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/core/cuda_math.cuh"
#include "kernels/core/vectors.cuh"
#include "kernels/vptq_linear/vptq_bytes_cuda.h"
#include "kernels/vptq_linear/vptq_linear_cuda.h"

namespace thinwire {
namespace {

constexpr int kAnyWarps = 8;
constexpr int kWidenThreads = 128;

struct Indices {
  uint32_t index, residual;
};

// Bits [at, at + width) of a lane's words, which are 32 apart.
__device__ inline uint32_t BitsAt(const uint32_t* words, int at, int width) {
  const uint32_t* const from = words + at / 32 * 32;
  const uint32_t next = at % 32 + width > 32 ? from[32] : 0u;
  return __funnelshift_r(from[0], next, static_cast<uint32_t>(at % 32)) & ((1u << width) - 1u);
}

// Of vector row `row` at column `column`, of the order of byte books' kernels.
__device__ inline Indices ByteIndicesAt(const VptqDeviceGroup& group, int row, int column) {
  const int place_bits = VptqBytePlaceBits(group.index_bits);
  const int lane = row % kVptqByteRows * 4 + column % kVptqByteChunk / kVptqByteCodes;
  const int64_t chunk = static_cast<int64_t>(row / kVptqByteRows) * group.num_units *
                            (kVptqByteStrip / kVptqByteChunk) +
                        column / kVptqByteChunk;
  const auto* const words = reinterpret_cast<const uint32_t*>(group.codes) +
                            chunk * 32 * VptqByteWords(group.index_bits, group.residual_bits) +
                            lane;
  const int code = column % kVptqByteCodes;
  const uint32_t at = BitsAt(words, code * place_bits, place_bits);
  const uint32_t residual =
      group.residual_bits == 0
          ? 0u
          : BitsAt(words, place_bits * kVptqByteCodes + code * group.residual_bits,
                   group.residual_bits);
  return {static_cast<uint32_t>(VptqByteIndexAt(group.index_bits, static_cast<int>(at))), residual};
}

// Of vector row `row` at column `column` of the group.
__device__ inline Indices IndicesAt(const VptqDeviceGroup& group, int row, int column) {
  const uint32_t mask = (1u << group.index_bits) - 1u;
  if (group.in_bytes) return ByteIndicesAt(group, row, column);
  if (group.in_tables) {
    const VptqPlace place = PlaceOfVptqCode(row % kVptqQuadRows, column % kVptqUnitColumns);
    const int place_bits = VptqPlaceBits(group.index_bits);
    const int bits = place_bits + group.residual_bits;
    const int bit = place.code * bits;
    const auto* const from =
        reinterpret_cast<const uint32_t*>(group.codes) +
        (static_cast<int64_t>(row / kVptqQuadRows) * group.num_units + column / kVptqUnitColumns) *
            (32 * bits) +
        bit / 32 * 32 + place.lane;
    const bool straddles = bit % 32 + bits > 32;
    const uint32_t code = __funnelshift_r(from[0], straddles ? from[32] : 0u, bit % 32);
    const uint32_t at = code & ((1u << place_bits) - 1u);
    const uint32_t residual = code >> place_bits & ((1u << group.residual_bits) - 1u);
    return {static_cast<uint32_t>(VptqIndexAt(group.index_bits, static_cast<int>(at))), residual};
  }
  const int bits = group.index_bits + group.residual_bits;
  const int64_t bit = static_cast<int64_t>(column) * bits;
  const auto* const from =
      reinterpret_cast<const uint32_t*>(group.codes + row * group.row_bytes) + bit / 32;
  const uint32_t code = __funnelshift_r(from[0], from[1], static_cast<uint32_t>(bit % 32));
  const uint32_t residual = group.residual_bits == 0 ? 0u : code >> group.index_bits;
  return {code & mask, residual & ((1u << group.residual_bits) - 1u)};
}

// A centroid, kStride elements of T, as floats.
template <typename T, int kStride>
__device__ inline void LoadCentroid(const void* book, uint32_t index, float (&to)[kStride]) {
  constexpr int kPart = kElementsPerVector<T> < kStride ? kElementsPerVector<T> : kStride;
#pragma unroll
  for (int i = 0; i < kStride; i += kPart) {
    const Pack<T, kPart> part =
        LoadPack<kPart>(static_cast<const T*>(book) + static_cast<int64_t>(index) * kStride + i);
#pragma unroll
    for (int k = 0; k < kPart; ++k) to[i + k] = AsFloat(part.values[k]);
  }
}

// The vector that a place of the codes means: a centroid, plus one of the residual book if there
// is.
template <typename T, int kStride>
__device__ inline void LoadVector(const VptqDeviceGroup& group, const Indices& at,
                                  float (&to)[kStride]) {
  LoadCentroid<T>(group.centroids, at.index, to);
  if (group.residual == nullptr) return;
  float residual[kStride];
  LoadCentroid<T>(group.residual, at.residual, residual);
#pragma unroll
  for (int i = 0; i < kStride; ++i) to[i] += residual[i];
}

// A block takes a vector row: its lanes columns, which it adds up at the end, lanes before warps.
template <typename T, int kStride, int kTokens>
__global__ void __launch_bounds__(32 * kAnyWarps) Any(const VptqAnyCall call) {
  const VptqDeviceGroup& group = call.group;
  __shared__ float sums[kAnyWarps][kTokens * kStride];
  const int row = blockIdx.x;
  const int first_token = static_cast<int>(blockIdx.y) * kTokens;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const float* x[kTokens];
#pragma unroll
  for (int t = 0; t < kTokens; ++t) {
    x[t] =
        call.x + min(first_token + t, call.num_tokens - 1) * call.x_stride + group.first_position;
  }
  float y[kTokens][kStride] = {};
#pragma unroll 2
  for (int c = threadIdx.x; c < group.num_columns; c += 32 * kAnyWarps) {
    const Indices at = IndicesAt(group, row, c);
    float w[kStride];
    LoadVector<T>(group, at, w);
#pragma unroll
    for (int t = 0; t < kTokens; ++t) {
      const float value = x[t][c];
#pragma unroll
      for (int i = 0; i < kStride; ++i) y[t][i] = fmaf(value, w[i], y[t][i]);
    }
  }
#pragma unroll
  for (int t = 0; t < kTokens; ++t) {
#pragma unroll
    for (int i = 0; i < kStride; ++i) {
      const float sum = ReduceWarp(y[t][i], SumOf());
      if (lane == 0) sums[warp][t * kStride + i] = sum;
    }
  }
  __syncthreads();
  for (int i = threadIdx.x; i < kTokens * kStride; i += 32 * kAnyWarps) {
    const int token = first_token + i / kStride, element = i % kStride;
    const int o = row * call.length + element - call.skip;
    if (token >= call.num_tokens || element >= call.length || o < 0 || o >= call.out_features) {
      continue;
    }
    float sum = 0.0f;
    for (int w = 0; w < kAnyWarps; ++w) sum += sums[w][i];
    call.to[static_cast<int64_t>(token) * call.out_features + o] = sum;
  }
}

template <typename T, int kStride>
cudaError_t LaunchTokens(const VptqAnyCall& call, cudaStream_t stream) {
  if (call.num_tokens == 1) {
    Any<T, kStride, 1><<<call.num_vectors, 32 * kAnyWarps, 0, stream>>>(call);
  } else {
    const dim3 grid(call.num_vectors, (call.num_tokens + 3) / 4);
    Any<T, kStride, 4><<<grid, 32 * kAnyWarps, 0, stream>>>(call);
  }
  return cudaGetLastError();
}

template <typename T>
cudaError_t LaunchStride(const VptqAnyCall& call, cudaStream_t stream) {
  if (call.length <= 4) return LaunchTokens<T, 4>(call, stream);
  if (call.length <= 8) return LaunchTokens<T, 8>(call, stream);
  return LaunchTokens<T, 16>(call, stream);
}

// A thread takes a column of a vector row, so that a warp writes neighbours.
template <typename T, int kStride>
__global__ void __launch_bounds__(kWidenThreads) Widen(const VptqWidenCall call) {
  const VptqDeviceGroup& group = call.group;
  const int c = static_cast<int>(blockIdx.x) * kWidenThreads + static_cast<int>(threadIdx.x);
  if (c >= group.num_columns) return;
  const int row = (call.first + call.skip) / call.length + static_cast<int>(blockIdx.y);
  const Indices at = IndicesAt(group, row, c);
  float w[kStride];
  LoadVector<T>(group, at, w);
  const int position = group.first_position + c;
  const int column = call.order == nullptr ? position : call.order[position];
  const float scale = (call.scale == nullptr ? 1.0f : call.scale[position]) * group.book_factor;
  const float offset = call.offset == nullptr ? 0.0f : call.offset[position];
#pragma unroll
  for (int i = 0; i < kStride; ++i) {
    const int o = row * call.length + i - call.skip - call.first;
    if (i < call.length && o >= 0 && o < call.num_rows) {
      StoreFloat(call.to, call.dtype, o * call.to_stride + column,
                 __fadd_rn(__fmul_rn(w[i], scale), offset));
    }
  }
}

// A thread takes two columns that are neighbours in the result, of 16 bits.
template <typename T, typename To, int kStride>
__global__ void __launch_bounds__(kWidenThreads) WidenPairs(const VptqWidenCall call) {
  const VptqDeviceGroup& group = call.group;
  const int c = 2 * (static_cast<int>(blockIdx.x) * kWidenThreads + static_cast<int>(threadIdx.x));
  if (c >= group.num_columns) return;
  const bool two = c + 1 < group.num_columns;
  const int row = (call.first + call.skip) / call.length + static_cast<int>(blockIdx.y);
  const Indices at[2] = {IndicesAt(group, row, c), IndicesAt(group, row, two ? c + 1 : c)};
  float w[2][kStride];
  LoadVector<T>(group, at[0], w[0]);
  LoadVector<T>(group, at[1], w[1]);
  const int position = group.first_position + c;
  float scale[2], offset[2];
#pragma unroll
  for (int k = 0; k < 2; ++k) {
    const int of = k == 0 || two ? position + k : position;
    scale[k] = (call.scale == nullptr ? 1.0f : call.scale[of]) * group.book_factor;
    offset[k] = call.offset == nullptr ? 0.0f : call.offset[of];
  }
  const int first = row * call.length - call.skip - call.first;
  To* to = static_cast<To*>(call.to) + first * call.to_stride + position;
#pragma unroll
  for (int i = 0; i < kStride; ++i, to += call.to_stride) {
    if (i >= call.length || first + i < 0 || first + i >= call.num_rows) continue;
    const auto value = [&](int k) { return __fadd_rn(__fmul_rn(w[k][i], scale[k]), offset[k]); };
    const uint32_t pair = PackPair<To>(value(0), value(1));
    if (two) {
      *reinterpret_cast<uint32_t*>(to) = pair;
    } else {
      *reinterpret_cast<uint16_t*>(to) = static_cast<uint16_t>(pair);
    }
  }
}

template <typename T, int kStride>
cudaError_t LaunchWidenPairs(const VptqWidenCall& call, int rows, cudaStream_t stream) {
  const dim3 grid((call.group.num_columns + 2 * kWidenThreads - 1) / (2 * kWidenThreads), rows);
  if (call.dtype == DType::kF16) {
    WidenPairs<T, __half, kStride><<<grid, kWidenThreads, 0, stream>>>(call);
  } else {
    WidenPairs<T, __nv_bfloat16, kStride><<<grid, kWidenThreads, 0, stream>>>(call);
  }
  return cudaGetLastError();
}

template <typename T>
cudaError_t LaunchWidenStride(const VptqWidenCall& call, cudaStream_t stream) {
  const int first = (call.first + call.skip) / call.length;
  const int last = (call.first + call.num_rows - 1 + call.skip) / call.length;
  const int rows = last - first + 1;
  if (call.order == nullptr && call.dtype != DType::kF32 && call.group.first_position % 2 == 0 &&
      call.to_stride % 2 == 0) {
    if (call.group.in_tables || (call.length > 4 && call.length <= 8)) {
      return LaunchWidenPairs<T, 8>(call, rows, stream);
    }
    return call.length <= 4 ? LaunchWidenPairs<T, 4>(call, rows, stream)
                            : LaunchWidenPairs<T, 16>(call, rows, stream);
  }
  const dim3 grid((call.group.num_columns + kWidenThreads - 1) / kWidenThreads, rows);
  if (call.group.in_tables || (call.length > 4 && call.length <= 8)) {
    Widen<T, 8><<<grid, kWidenThreads, 0, stream>>>(call);
  } else if (call.length <= 4) {
    Widen<T, 4><<<grid, kWidenThreads, 0, stream>>>(call);
  } else {
    Widen<T, 16><<<grid, kWidenThreads, 0, stream>>>(call);
  }
  return cudaGetLastError();
}

}  // namespace

cudaError_t LaunchVptqAny(const VptqAnyCall& call, cudaStream_t stream) {
  if (call.group.dtype == DType::kF16) return LaunchStride<Half>(call, stream);
  if (call.group.dtype == DType::kBF16) return LaunchStride<BFloat16>(call, stream);
  return LaunchStride<float>(call, stream);
}

cudaError_t LaunchVptqWiden(const VptqWidenCall& call, cudaStream_t stream) {
  if (call.group.dtype == DType::kF16) return LaunchWidenStride<Half>(call, stream);
  if (call.group.dtype == DType::kBF16) return LaunchWidenStride<BFloat16>(call, stream);
  return LaunchWidenStride<float>(call, stream);
}

}  // namespace thinwire
