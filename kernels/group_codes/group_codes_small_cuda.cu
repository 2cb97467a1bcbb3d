// Groups of fewer than 16 values, which occur in small models only: 16 threads share a group, and
// those without a value take part in exchanges only.
#include "kernels/core/cuda_status.h"
#include "kernels/group_codes/group_codes_cuda.cuh"

namespace thinwire {
namespace {

constexpr int kLanes = 16;
constexpr int kThreads = 256;
constexpr int kGroupsPerBlock = kThreads / kLanes;

__device__ __forceinline__ float FromLane(float value, int distance) {
  return __shfl_xor_sync(0xffffffffu, value, distance);
}

// sqrt(size) H u, in the order of growing distances.
__device__ __forceinline__ float Rotated(int size, int lane, float u) {
  for (int h = 1; h < size; h *= 2) {
    const float partner = FromLane(u, h);
    u = (lane & h) != 0 ? partner - u : u + partner;
  }
  return u;
}

// The bits of the largest |u| of the group, on all its threads: as integers, NaN is above infinity,
// and both are above all else.
__device__ __forceinline__ uint32_t LargestMagnitude(float u) {
  uint32_t largest = __float_as_uint(u) & 0x7fffffffu;
#pragma unroll
  for (int h = 1; h < kLanes; h *= 2) {
    largest = max(largest, __shfl_xor_sync(0xffffffffu, largest, h));
  }
  return largest;
}

template <int kBits>
__device__ __forceinline__ float SquaredError(const SharedTables& tables, bool used,
                                              float magnitude, int byte) {
  const float distance =
      Quantizer<kBits>::Distance(tables, magnitude, Quantizer<kBits>::Factor(byte));
  float sum = used ? distance * distance : 0.0f;
#pragma unroll
  for (int half = 8; half > 0; half /= 2) sum += FromLane(sum, half);
  const float scale = device_tables.scale[byte];
  return sum * (scale * scale);
}

// Codes of a group to their places.
template <int kBits>
__device__ __forceinline__ void StoreCodes(int size, int lane, int code, bool write, uint8_t* to) {
  if constexpr (kBits == 8) {
    if (write && lane < size) to[lane] = static_cast<uint8_t>(code);
    return;
  }
  const int half = (size + 1) / 2;
  const int above = __shfl_down_sync(0xffffffffu, code, half, kLanes);
  const int high = lane + half < size ? (above & 15) << 4 : 0;
  if (write && lane < half) to[lane] = static_cast<uint8_t>((code & 15) | high);
  if constexpr (kBits > 4) {
    const int shift = threadIdx.x % 32 / kLanes * kLanes;  // of this group's part of a ballot
    const uint32_t mask = (1u << size) - 1;
    const uint32_t first = __ballot_sync(0xffffffffu, code & 16) >> shift & mask;
    if constexpr (kBits == 5) {
      if (write && lane < (size + 7) / 8) to[half + lane] = static_cast<uint8_t>(first);
    } else {
      const uint32_t second = __ballot_sync(0xffffffffu, code & 32) >> shift & mask;
      if (write && lane < (size + 3) / 4) {
        uint32_t byte = 0;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          byte |= (first >> (4 * lane + i) & 1) << (2 * i);
          byte |= (second >> (4 * lane + i) & 1) << (2 * i + 1);
        }
        to[half + lane] = static_cast<uint8_t>(byte);
      }
    }
  }
}

template <int kBits, typename T>
__global__ void __launch_bounds__(kThreads) Encode(GroupParams p, const T* x, uint8_t* codes) {
  __shared__ SharedTables tables;
  FillTables(tables);
  const int lane = threadIdx.x % kLanes;
  // All threads stay to the end: neighbours exchange values.
  const int64_t found = static_cast<int64_t>(blockIdx.x) * kGroupsPerBlock + threadIdx.x / kLanes;
  const bool inside = found < p.num_groups;
  const int64_t at = inside ? found : p.num_groups - 1;
  const int64_t row = at / p.groups_per_row;
  const int64_t group = at % p.groups_per_row;
  const bool used = lane < p.size;
  const float before = used ? AsFloat(x[row * p.stride + group * p.size + lane]) : 0.0f;
  constexpr uint32_t kInfinity = 0x7f800000u;
  float u = Rotated(p.size, lane, before);
  uint32_t largest = LargestMagnitude(u);
  const bool is_nan = LargestMagnitude(before) >= kInfinity;
  // Sums may have overflown. The group saturates at any scale: a smaller one has the same codes.
  const float smaller = Rotated(p.size, lane, before * 0x1p-8f);
  const uint32_t largest_smaller = LargestMagnitude(smaller);
  if (largest >= kInfinity) {
    largest = largest_smaller;
    u = smaller;
  }
  const float magnitude = fabsf(u) * p.norm;
  const int first = DeviceScaleByte(fmaxf(__uint_as_float(largest) * p.norm, 1.17549435e-38f));
  int best = first;
  float least = SquaredError<kBits>(tables, used, magnitude, first);
#pragma unroll
  for (int c = 1; c < Quantizer<kBits>::kCandidates; ++c) {
    const int byte = max(first - c, kLeastScaleByte);
    const float error = SquaredError<kBits>(tables, used, magnitude, byte);
    best = error < least ? byte : best;
    least = fminf(error, least);
  }
  const int number = Quantizer<kBits>::Number(tables, magnitude, Quantizer<kBits>::Factor(best));
  // Below 0, ~number = -1 - number counts down from the middle.
  const int code = (1 << (kBits - 1)) + (number ^ (static_cast<int>(__float_as_uint(u)) >> 31));
  uint8_t* const to = codes + row * p.row_bytes;
  if (inside && lane == 0) {
    to[group] = static_cast<uint8_t>(is_nan ? kNanGroup : largest == 0 ? kZeroGroup : best);
  }
  StoreCodes<kBits>(p.size, lane, is_nan || largest == 0 || !used ? 0 : code, inside,
                    to + p.groups_per_row + group * p.group_bytes);
}

// Code i of a group.
template <int kBits>
__device__ __forceinline__ int LoadCode(const uint8_t* from, int size, int i) {
  if constexpr (kBits == 8) return from[i];
  const int half = (size + 1) / 2;
  int code = i < half ? from[i] & 15 : from[i - half] >> 4;
  if constexpr (kBits == 5) code |= (from[half + i / 8] >> (i % 8) & 1) << 4;
  if constexpr (kBits == 6) code |= (from[half + i / 4] >> (2 * (i % 4)) & 3) << 4;
  return code;
}

template <int kBits, typename T>
__global__ void __launch_bounds__(kThreads)
    Decode(GroupParams p, GroupParts parts, T* y, bool accumulate) {
  __shared__ SharedTables tables;
  FillTables(tables);
  const int lane = threadIdx.x % kLanes;
  const int64_t found = static_cast<int64_t>(blockIdx.x) * kGroupsPerBlock + threadIdx.x / kLanes;
  const bool inside = found < p.num_groups;
  const int64_t at = inside ? found : p.num_groups - 1;
  const int64_t row = at / p.groups_per_row;
  const int64_t group = at % p.groups_per_row;
  const bool used = lane < p.size;
  float u = 0.0f;  // from 0 on, since a sum of -0 would be -0
  for (int part = 0; used && part < parts.count; ++part) {
    const uint8_t* const from = parts.rows[part] + row * p.row_bytes;
    const uint8_t* const codes = from + p.groups_per_row + group * p.group_bytes;
    const int code = LoadCode<kBits>(codes, p.size, lane);
    const float level =
        kBits == 4 ? tables.level[code] : static_cast<float>(code) - Quantizer<kBits>::kMiddle;
    u += Quantizer<kBits>::LevelFactor(from[group]) * level;
  }
  __syncwarp();
  float value = Rotated(p.size, lane, u) * p.norm;
  if (!inside || !used) return;
  T* const to = y + row * p.stride + group * p.size + lane;
  if (accumulate) value = AsFloat(*to) + value;
  *to = FromFloat<T>(value);
}

unsigned NumBlocks(const GroupParams& p) {
  return static_cast<unsigned>((p.num_groups + kGroupsPerBlock - 1) / kGroupsPerBlock);
}

}  // namespace

void EncodeSmallGroups(const EncodeGroupsArgs& args, const GroupParams& params, Stream& stream) {
  const cudaStream_t native = CudaStream(stream);
  WithBits(args.format.bits, [&](auto bits) {
    WithFloatType(args.x.dtype(), [&](auto zero) {
      using T = decltype(zero);
      Encode<decltype(bits)::value, T><<<NumBlocks(params), kThreads, 0, native>>>(
          params, args.x.data<T>(), args.codes.mutable_data<uint8_t>());
    });
  });
}

void DecodeSmallGroups(const DecodeGroupsArgs& args, const GroupParams& params,
                       const GroupParts& parts, Stream& stream) {
  const cudaStream_t native = CudaStream(stream);
  WithBits(args.format.bits, [&](auto bits) {
    WithFloatType(args.y.dtype(), [&](auto zero) {
      using T = decltype(zero);
      Decode<decltype(bits)::value, T><<<NumBlocks(params), kThreads, 0, native>>>(
          params, parts, args.y.mutable_data<T>(), args.accumulate);
    });
  });
}

}  // namespace thinwire
