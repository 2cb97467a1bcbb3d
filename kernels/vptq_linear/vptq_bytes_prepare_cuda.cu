// Codes for byte books brought into the kernels' order, and x made into integers.
#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/core/early_launch.cuh"
#include "kernels/vptq_linear/vptq_bytes_cuda.h"
#include "kernels/vptq_linear/vptq_bytes_x.cuh"

namespace thinwire {
namespace {

// A block takes a token.
__global__ void __launch_bounds__(32 * vptq::kByteXWarps)
    PrepareBytes(const VptqBytePrepareCall call) {
  LetNextStart();
  __shared__ float dots[vptq::kByteXWarps];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int64_t token = blockIdx.x, stride = static_cast<int64_t>(call.num_strips) * kVptqByteStrip;
  const int rows = call.dtype == DType::kF32 ? 2 : 1;
  int8_t* const to = call.to + token * rows * 2 * stride;
  float* const factors_to = call.factors + token * rows * call.num_strips;
  float dot = 0.0f;
  for (int first = warp; first < call.num_strips; first += 2 * vptq::kByteXWarps) {
    float factors[2];
    vptq::MakeByteStrips(call, token, first, dot, factors, [&](int row, int p, int integer) {
      vptq::StoreByteX(to + row * 2 * stride + p, stride, integer);
    });
#pragma unroll
    for (int s = 0; s < 2; ++s) {
      const int strip = first + s * vptq::kByteXWarps;
      if (lane != 0 || strip >= call.num_strips) continue;
      factors_to[strip] = factors[s];
      if (rows == 2) factors_to[call.num_strips + strip] = factors[s] * vptq::kByteSecondRow;
    }
  }
  dot = vptq::AddLanes(dot);
  if (lane == 0) dots[warp] = dot;
  __syncthreads();
  if (threadIdx.x != 0) return;
  dot = 0.0f;
  for (const float of_warp : dots) dot += of_warp;
  call.dots[token] = dot;
}

constexpr int kArrangeWarps = 4;
// After this many lanes were moved, one meets another.
constexpr int kMostMoves = 96;

// Sets places[k], k < 16, of what 16 lanes fetch at once, so that they meet in few pairs of banks:
// each takes a copy in a pair that nobody has, or another's, which then looks for another copy.
__device__ inline void PlaceLanes(const uint16_t (&indices)[16], uint32_t there,
                                  uint16_t (&places)[16]) {
  uint64_t owners = 0;  // 4 bits a pair
  uint32_t taken = 0;
  for (int lane = 0; lane < 16; ++lane) {
    places[lane] = indices[lane];
    if ((there >> lane & 1u) == 0) continue;
    int who = lane, left = -1;
    for (int move = 0; move < kMostMoves; ++move) {
      const int index = indices[who];
      int copy = 0;
      while (copy < 4 && (taken >> (VptqBytePlace(index, copy) % 16) & 1u) != 0) ++copy;
      if (copy < 4) {
        const int place = VptqBytePlace(index, copy);
        places[who] = static_cast<uint16_t>(place);
        taken |= 1u << (place % 16);
        owners &= ~(uint64_t{15} << (place % 16 * 4));
        owners |= static_cast<uint64_t>(who) << (place % 16 * 4);
        break;
      }
      copy = (move * 7 + move / 4 + who) % 4;
      if (VptqBytePlace(index, copy) % 16 == left) copy = (copy + 1) % 4;
      const int place = VptqBytePlace(index, copy);
      places[who] = static_cast<uint16_t>(place);
      left = place % 16;
      const int other = static_cast<int>(owners >> (left * 4) & 15u);
      owners &= ~(uint64_t{15} << (left * 4));
      owners |= static_cast<uint64_t>(who) << (left * 4);
      // The other keeps its place, where it meets this one, until it has found one.
      who = other;
    }
  }
}

// A warp makes a chunk: its lanes first choose places, of 16 lanes and one code each, then put
// together the words of one lane.
__global__ void __launch_bounds__(32 * kArrangeWarps) ArrangeBytes(const VptqByteArrangeCall call) {
  __shared__ uint32_t codes[kArrangeWarps][32][kVptqByteCodes + 1];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int chunk = static_cast<int>(blockIdx.x) * kArrangeWarps + warp;
  const int group = blockIdx.y;
  if (chunk >= call.num_chunks) return;
  const int bits = call.index_bits + call.residual_bits;
  const int place_bits = VptqBytePlaceBits(call.index_bits);
  const int code = lane % kVptqByteCodes, half = lane / kVptqByteCodes;
  uint16_t indices[16], places[16];
  uint8_t residuals[16];
  uint32_t there = 0;
  for (int k = 0; k < 16; ++k) {
    const int row = group * kVptqByteRows + 4 * half + k / 4;
    const int column = chunk * kVptqByteChunk + 16 * (k % 4) + code;
    uint32_t value = 0;
    if (row < call.num_vectors && column < call.num_columns) {
      const int64_t bit = static_cast<int64_t>(column) * bits;
      const uint32_t* const from = call.codes + row * call.row_words + bit / 32;
      value = __funnelshift_r(from[0], from[1], static_cast<uint32_t>(bit % 32));
      there |= 1u << k;
    }
    indices[k] = static_cast<uint16_t>(value & ((1u << call.index_bits) - 1u));
    places[k] = indices[k];
    residuals[k] =
        static_cast<uint8_t>(value >> call.index_bits & ((1u << call.residual_bits) - 1u));
  }
  if (call.index_bits == 12) PlaceLanes(indices, there, places);
  for (int k = 0; k < 16; ++k) {
    codes[warp][16 * half + k][code] = places[k] | static_cast<uint32_t>(residuals[k]) << 16;
  }
  __syncwarp();
  uint32_t* to = call.to +
                 (static_cast<int64_t>(group) * call.num_chunks + chunk) * 32 *
                     VptqByteWords(call.index_bits, call.residual_bits) +
                 lane;
  const auto put = [&](int width, int shift) {
    uint64_t left = 0;
    int have = 0;
    for (int i = 0; i < kVptqByteCodes; ++i) {
      const uint32_t value = codes[warp][lane][i] >> shift & ((1u << width) - 1u);
      left |= static_cast<uint64_t>(value) << have;
      have += width;
      if (have < 32) continue;
      *to = static_cast<uint32_t>(left);
      to += 32;
      left >>= 32;
      have -= 32;
    }
  };
  put(place_bits, 0);
  if (call.residual_bits > 0) put(call.residual_bits, 16);
}

}  // namespace

cudaError_t LaunchVptqBytePrepare(const VptqBytePrepareCall& call, cudaStream_t stream) {
  return LaunchKernel({dim3(call.num_tokens), dim3(32 * vptq::kByteXWarps), 0, stream}, call.early,
                      PrepareBytes, call);
}

cudaError_t LaunchVptqByteArrange(const VptqByteArrangeCall& call, cudaStream_t stream) {
  // Groups beyond 65535 do not fit in a grid's y: 4 M outputs.
  const dim3 grid((call.num_chunks + kArrangeWarps - 1) / kArrangeWarps, call.num_groups);
  ArrangeBytes<<<grid, 32 * kArrangeWarps, 0, stream>>>(call);
  return cudaGetLastError();
}

}  // namespace thinwire
