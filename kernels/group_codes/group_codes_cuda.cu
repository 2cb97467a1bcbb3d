// The same operations as on the CPU in the same order, fused where they are there (this file is
// compiled without contraction): the same bytes and the same bits.
#include <cmath>

#include "absl/strings/str_cat.h"
#include "kernels/core/cuda_status.h"
#include "kernels/core/vectors.cuh"
#include "kernels/group_codes/group_codes_internal.h"

namespace thinwire {
namespace {

// 16 threads share a group: thread i has the values i, i + 16 and so on, and with them the i-th of
// the 16 chains in which errors are summed. Where a group has fewer than 16 values, the rest of
// the threads have none.
constexpr int kLanes = 16;
constexpr int kThreads = 256;
constexpr int kGroupsPerBlock = kThreads / kLanes;
constexpr int kMostParts = 64;

// std::array has no operators on a GPU.
struct DeviceTables {
  float scale[256];
  float inverse[256];
  float middle[8];
  float center[8];
  float radius[8];
  float level[16];
  float eighth[8];  // 2^(k / 8)
};

constexpr DeviceTables MakeDeviceTables() {
  DeviceTables tables = {};
  for (int i = 0; i < 256; ++i) {
    tables.scale[i] = kScaleTables.scale[i];
    tables.inverse[i] = kScaleTables.inverse[i];
  }
  for (int i = 0; i < 8; ++i) {
    tables.middle[i] = kFourBitTables.middle[i];
    tables.center[i] = kFourBitTables.center[i];
    tables.radius[i] = kFourBitTables.radius[i];
    tables.eighth[i] = static_cast<float>(kEighths[i]);
    tables.level[7 - i] = -kFourBitLevels[i];
    tables.level[8 + i] = kFourBitLevels[i];
  }
  return tables;
}

__constant__ DeviceTables device_tables = MakeDeviceTables();

// Tables that threads index apart from each other: constant memory would take turns.
struct SharedTables {
  float middle[8];
  float center[8];
  float radius[8];
  float level[16];
};

__device__ __forceinline__ void FillTables(SharedTables& shared) {
  if (threadIdx.x < 8) {
    shared.middle[threadIdx.x] = device_tables.middle[threadIdx.x];
    shared.center[threadIdx.x] = device_tables.center[threadIdx.x];
    shared.radius[threadIdx.x] = device_tables.radius[threadIdx.x];
  }
  if (threadIdx.x < 16) shared.level[threadIdx.x] = device_tables.level[threadIdx.x];
  __syncthreads();
}

__device__ __forceinline__ float FromLane(float value, int distance) {
  return __shfl_xor_sync(0xffffffffu, value, distance);
}

// sqrt(size) H u, in the order of growing distances.
template <int kValues>
__device__ __forceinline__ void Rotate(int size, int lane, float (&u)[kValues]) {
#pragma unroll
  for (int h = 1; h < kLanes; h *= 2) {
    if (h >= size) break;
#pragma unroll
    for (int k = 0; k < kValues; ++k) {
      const float partner = FromLane(u[k], h);
      u[k] = (lane & h) != 0 ? __fsub_rn(partner, u[k]) : __fadd_rn(u[k], partner);
    }
  }
#pragma unroll
  for (int h = 1; h < kValues; h *= 2) {
#pragma unroll
    for (int k = 0; k < kValues; ++k) {
      if ((k & h) != 0) continue;
      const float sum = __fadd_rn(u[k], u[k + h]);
      u[k + h] = __fsub_rn(u[k], u[k + h]);
      u[k] = sum;
    }
  }
}

// The bits of the largest |u| of the group, on all its threads: as integers, NaN is above infinity,
// and both are above all else.
template <int kValues>
__device__ __forceinline__ uint32_t LargestMagnitude(const float (&u)[kValues]) {
  uint32_t largest = 0;
#pragma unroll
  for (int k = 0; k < kValues; ++k) {
    largest = max(largest, __float_as_uint(u[k]) & 0x7fffffffu);
  }
#pragma unroll
  for (int h = 1; h < kLanes; h *= 2) {
    largest = max(largest, __shfl_xor_sync(0xffffffffu, largest, h));
  }
  return largest;
}

// As SmallestScaleByte on the CPU.
__device__ __forceinline__ int DeviceScaleByte(float largest) {
  const uint32_t bits = __float_as_uint(largest);
  const float mantissa = __uint_as_float((bits & 0x007fffffu) | 0x3f800000u);
  int byte = 128 + 8 * (static_cast<int>(bits >> 23) - 127);
#pragma unroll
  for (int k = 0; k < 8; ++k) byte += device_tables.eighth[k] < mantissa ? 1 : 0;
  return min(max(byte, kLeastScaleByte), kLargestScaleByte);
}

// Which level is nearest to a magnitude: factors are those of a scale.
template <int kBits>
struct Quantizer {
  static constexpr int kLast = (1 << (kBits - 1)) - 1;
  static constexpr int kCandidates = NumScaleCandidates(kBits);

  static __device__ __forceinline__ float Factor(int byte) {
    const float inverse = device_tables.inverse[byte];
    return kBits == 4 ? inverse * 8.0f : inverse * (static_cast<float>(kLast) + 0.5f);
  }

  static __device__ __forceinline__ int Eighth(float scaled) {
    const float raised = fminf(scaled, kLargestEighth) + kRaise;
    return static_cast<int>(__float_as_uint(raised) >> kRaisedShift) & 7;
  }

  // The distance to it.
  static __device__ __forceinline__ float Distance(const SharedTables& tables, float magnitude,
                                                   float factor) {
    if constexpr (kBits == 4) {
      const float scaled = magnitude * factor;
      const int b = Eighth(scaled);
      return fabsf(scaled - tables.center[b]) - tables.radius[b];
    } else {
      const float steps = fmaf(magnitude, factor, -0.5f);
      return steps - rintf(fminf(steps, static_cast<float>(kLast)));
    }
  }

  // Its number, from the smallest of those above 0 on.
  static __device__ __forceinline__ int Number(const SharedTables& tables, float magnitude,
                                               float factor) {
    if constexpr (kBits == 4) {
      const float scaled = magnitude * factor;
      const int b = Eighth(scaled);
      return min(b, 6) + (scaled >= tables.middle[b] ? 1 : 0);
    } else {
      const float steps = fmaf(magnitude, factor, -0.5f);
      return static_cast<int>(rintf(fminf(steps, static_cast<float>(kLast))));
    }
  }
};

template <int kBits, int kValues>
__device__ __forceinline__ float SquaredError(const SharedTables& tables, bool used,
                                              const float (&magnitude)[kValues], int byte) {
  const float factor = Quantizer<kBits>::Factor(byte);
  float sum = 0.0f;
#pragma unroll
  for (int k = 0; k < kValues; ++k) {
    const float distance = Quantizer<kBits>::Distance(tables, magnitude[k], factor);
    sum = k == 0 ? distance * distance : fmaf(distance, distance, sum);
  }
  if (!used) sum = 0.0f;
#pragma unroll
  for (int half = 8; half > 0; half /= 2) sum += FromLane(sum, half);
  const float scale = device_tables.scale[byte];
  return sum * (scale * scale);
}

// Codes of a group to their places: kValues == 1 also stands for groups of fewer than 16 values.
template <int kBits, int kValues>
__device__ __forceinline__ void StoreCodes(int size, int lane, const int (&codes)[kValues],
                                           bool write, uint8_t* to) {
  if constexpr (kBits == 8) {
#pragma unroll
    for (int k = 0; k < kValues; ++k) {
      if (write && lane < size) to[k * kLanes + lane] = static_cast<uint8_t>(codes[k]);
    }
    return;
  }
  const int half = (size + 1) / 2;
  if constexpr (kValues == 1) {
    // The upper half of the values lies `half` lanes further.
    const int above = __shfl_down_sync(0xffffffffu, codes[0], half, kLanes);
    const int high = lane + half < size ? (above & 15) << 4 : 0;
    if (write && lane < half) to[lane] = static_cast<uint8_t>((codes[0] & 15) | high);
  } else {
#pragma unroll
    for (int k = 0; k < kValues / 2; ++k) {
      if (!write) continue;
      to[k * kLanes + lane] =
          static_cast<uint8_t>((codes[k] & 15) | (codes[k + kValues / 2] & 15) << 4);
    }
  }
  if constexpr (kBits > 4) {
    const int shift = threadIdx.x % 32 / kLanes * kLanes;  // of this group's part of a ballot
#pragma unroll
    for (int k = 0; k < kValues; ++k) {
      const uint32_t mask = (1u << min(size, kLanes)) - 1;
      const uint32_t first = __ballot_sync(0xffffffffu, codes[k] & 16) >> shift & mask;
      if constexpr (kBits == 5) {
        uint8_t* const bytes = to + half + k * (kLanes / 8);
        if (write && lane < (min(size, kLanes) + 7) / 8) {
          bytes[lane] = static_cast<uint8_t>(first >> (8 * lane));
        }
      } else {
        const uint32_t second = __ballot_sync(0xffffffffu, codes[k] & 32) >> shift & mask;
        uint8_t* const bytes = to + half + k * (kLanes / 4);
        if (write && lane < (min(size, kLanes) + 3) / 4) {
          uint32_t byte = 0;
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            byte |= (first >> (4 * lane + i) & 1) << (2 * i);
            byte |= (second >> (4 * lane + i) & 1) << (2 * i + 1);
          }
          bytes[lane] = static_cast<uint8_t>(byte);
        }
      }
    }
  }
}

struct GroupParams {
  int64_t num_groups;  // of all rows
  int64_t groups_per_row;
  int64_t row_bytes;
  int64_t stride;  // of x or y
  int size;        // of a group
  int group_bytes;
  float norm;  // 1 / sqrt(size)
};

template <int kBits, int kValues, typename T>
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
  const T* const from = x + row * p.stride + group * p.size;
  const bool used = lane < p.size;
  float before[kValues], u[kValues];
#pragma unroll
  for (int k = 0; k < kValues; ++k) {
    before[k] = used ? AsFloat(from[k * kLanes + lane]) : 0.0f;
    u[k] = before[k];
  }
  constexpr uint32_t kInfinity = 0x7f800000u;
  Rotate<kValues>(p.size, lane, u);
  uint32_t largest = LargestMagnitude<kValues>(u);
  const bool is_nan = LargestMagnitude<kValues>(before) >= kInfinity;
  // Sums may have overflown. The group saturates at any scale: a smaller one has the same codes.
  if (__any_sync(0xffffffffu, largest >= kInfinity)) {
    float smaller[kValues];
#pragma unroll
    for (int k = 0; k < kValues; ++k) smaller[k] = before[k] * 0x1p-8f;
    Rotate<kValues>(p.size, lane, smaller);
    const uint32_t largest_smaller = LargestMagnitude<kValues>(smaller);
    if (largest >= kInfinity) {
      largest = largest_smaller;
#pragma unroll
      for (int k = 0; k < kValues; ++k) u[k] = smaller[k];
    }
  }
  const bool special = is_nan || largest == 0;
  float magnitude[kValues];
#pragma unroll
  for (int k = 0; k < kValues; ++k) magnitude[k] = fabsf(u[k]) * p.norm;
  const int first = DeviceScaleByte(fmaxf(__uint_as_float(largest) * p.norm, 1.17549435e-38f));
  int best = first;
  float least = SquaredError<kBits, kValues>(tables, used, magnitude, first);
#pragma unroll
  for (int c = 1; c < Quantizer<kBits>::kCandidates; ++c) {
    const int byte = max(first - c, kLeastScaleByte);
    const float error = SquaredError<kBits, kValues>(tables, used, magnitude, byte);
    best = error < least ? byte : best;
    least = fminf(error, least);
  }
  const float factor = Quantizer<kBits>::Factor(best);
  int numbers[kValues];
#pragma unroll
  for (int k = 0; k < kValues; ++k) {
    const int number = Quantizer<kBits>::Number(tables, magnitude[k], factor);
    // Below 0, ~number = -1 - number counts down from the middle.
    const int code =
        (1 << (kBits - 1)) + (number ^ (static_cast<int>(__float_as_uint(u[k])) >> 31));
    numbers[k] = special || !used ? 0 : code;
  }
  uint8_t* const to = codes + row * p.row_bytes;
  if (inside && lane == 0) {
    to[group] = static_cast<uint8_t>(is_nan ? kNanGroup : largest == 0 ? kZeroGroup : best);
  }
  StoreCodes<kBits, kValues>(p.size, lane, numbers, inside,
                             to + p.groups_per_row + group * p.group_bytes);
}

struct Parts {
  const uint8_t* rows[kMostParts];
  int count;
};

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

template <int kBits, int kValues, typename T>
__global__ void __launch_bounds__(kThreads)
    Decode(GroupParams p, Parts parts, T* y, bool accumulate) {
  __shared__ SharedTables tables;
  FillTables(tables);
  const int lane = threadIdx.x % kLanes;
  const int64_t found = static_cast<int64_t>(blockIdx.x) * kGroupsPerBlock + threadIdx.x / kLanes;
  const bool inside = found < p.num_groups;
  const int64_t at = inside ? found : p.num_groups - 1;
  const int64_t row = at / p.groups_per_row;
  const int64_t group = at % p.groups_per_row;
  const bool used = lane < p.size;
  float u[kValues] = {};  // from 0 on, since a sum of -0 would be -0
  for (int part = 0; part < parts.count; ++part) {
    const uint8_t* const from = parts.rows[part] + row * p.row_bytes;
    constexpr float kMiddle = static_cast<float>((1 << kBits) - 1) / 2.0f;
    const float scale = device_tables.scale[from[group]];
    const float factor = kBits == 4 ? scale : scale * (1.0f / kMiddle);
    const uint8_t* const codes = from + p.groups_per_row + group * p.group_bytes;
#pragma unroll
    for (int k = 0; k < kValues; ++k) {
      if (!used) continue;
      const int code = LoadCode<kBits>(codes, p.size, k * kLanes + lane);
      const float level = kBits == 4 ? tables.level[code] : static_cast<float>(code) - kMiddle;
      u[k] = __fadd_rn(u[k], __fmul_rn(factor, level));
    }
  }
  Rotate<kValues>(p.size, lane, u);
  T* const to = y + row * p.stride + group * p.size;
#pragma unroll
  for (int k = 0; k < kValues; ++k) {
    if (!inside || !used) continue;
    float value = __fmul_rn(u[k], p.norm);
    if (accumulate) value = __fadd_rn(AsFloat(to[k * kLanes + lane]), value);
    to[k * kLanes + lane] = FromFloat<T>(value);
  }
}

GroupParams ParamsOf(const GroupCodesFormat& format, const ConstTensorView& values) {
  GroupParams p = {};
  p.groups_per_row = format.num_groups();
  p.num_groups = values.dim(0) * p.groups_per_row;
  p.row_bytes = format.row_bytes();
  p.stride = values.row_stride();
  p.size = static_cast<int>(format.group());
  p.group_bytes = static_cast<int>(format.group_bytes());
  p.norm = static_cast<float>(1.0 / std::sqrt(static_cast<double>(p.size)));
  return p;
}

// Calls body(bits, values of a thread) with both as constants.
template <typename Body>
void WithFormat(const GroupCodesFormat& format, const Body& body) {
  const auto with_size = [&](auto bits) {
    if (format.group() <= 16) return body(bits, std::integral_constant<int, 1>());
    if (format.group() == 32) return body(bits, std::integral_constant<int, 2>());
    if constexpr (decltype(bits)::value == 8) {
      if (format.group() == 128) return body(bits, std::integral_constant<int, 8>());
    }
    return body(bits, std::integral_constant<int, 4>());
  };
  switch (format.bits) {
    case 8:
      return with_size(std::integral_constant<int, 8>());
    case 6:
      return with_size(std::integral_constant<int, 6>());
    case 5:
      return with_size(std::integral_constant<int, 5>());
    default:
      return with_size(std::integral_constant<int, 4>());
  }
}

unsigned NumBlocks(const GroupParams& p) {
  return static_cast<unsigned>((p.num_groups + kGroupsPerBlock - 1) / kGroupsPerBlock);
}

}  // namespace

absl::Status EncodeGroupsCuda(const EncodeGroupsArgs& args, Stream& stream) {
  const cudaStream_t native = CudaStream(stream);
  const GroupParams p = ParamsOf(args.format, args.x);
  WithFormat(args.format, [&](auto bits, auto values) {
    WithFloatType(args.x.dtype(), [&](auto zero) {
      using T = decltype(zero);
      Encode<decltype(bits)::value, decltype(values)::value, T>
          <<<NumBlocks(p), kThreads, 0, native>>>(p, args.x.data<T>(),
                                                  args.codes.mutable_data<uint8_t>());
    });
  });
  return CudaLaunchStatus("encode groups", stream);
}

absl::Status DecodeGroupsCuda(const DecodeGroupsArgs& args, Stream& stream) {
  if (args.parts.size() > kMostParts) {
    return absl::InvalidArgumentError(absl::StrCat("decode groups: expected at most ", kMostParts,
                                                   " parts on a GPU, found ", args.parts.size()));
  }
  const cudaStream_t native = CudaStream(stream);
  const GroupParams p = ParamsOf(args.format, args.y);
  Parts parts = {};
  for (const ConstTensorView& part : args.parts) {
    parts.rows[parts.count++] = part.data<uint8_t>();
  }
  WithFormat(args.format, [&](auto bits, auto values) {
    WithFloatType(args.y.dtype(), [&](auto zero) {
      using T = decltype(zero);
      Decode<decltype(bits)::value, decltype(values)::value, T>
          <<<NumBlocks(p), kThreads, 0, native>>>(p, parts, args.y.mutable_data<T>(),
                                                  args.accumulate);
    });
  });
  return CudaLaunchStatus("decode groups", stream);
}

}  // namespace thinwire
