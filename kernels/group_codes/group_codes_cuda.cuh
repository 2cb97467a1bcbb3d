// What the CUDA kernels of kernels/group_codes share: tables, and which level is nearest.
#pragma once

#include <cstdint>

#include "kernels/core/vectors.cuh"
#include "kernels/group_codes/group_codes_internal.h"

namespace thinwire {

inline constexpr int kMostParts = 64;

struct GroupParams {
  int64_t num_groups;  // of all rows
  int64_t groups_per_row;
  int64_t row_bytes;
  int64_t stride;  // of x or y
  int size;        // of a group
  int group_bytes;
  float norm;    // 1 / sqrt(size)
  bool aligned;  // 4 elements of x or y can be moved at once
};

struct GroupParts {
  const uint8_t* rows[kMostParts];
  int count;
};

// Groups of fewer than 16 values.
void EncodeSmallGroups(const EncodeGroupsArgs& args, const GroupParams& params, Stream& stream);
void DecodeSmallGroups(const DecodeGroupsArgs& args, const GroupParams& params,
                       const GroupParts& parts, Stream& stream);

namespace {

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
  float2 center_and_radius[8];
  float middle[8];
  float level[16];
};

__device__ __forceinline__ void FillTables(SharedTables& shared) {
  if (threadIdx.x < 8) {
    const unsigned i = threadIdx.x;
    shared.center_and_radius[i] = {device_tables.center[i], device_tables.radius[i]};
    shared.middle[i] = device_tables.middle[i];
  }
  if (threadIdx.x < 16) shared.level[threadIdx.x] = device_tables.level[threadIdx.x];
  __syncthreads();
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

// Rounds to a whole number, halves to even; |value| < 2^22. Cheaper than the instruction for it.
inline constexpr float kWhole = 12582912.0f;  // 1.5 * 2^23
inline constexpr uint32_t kWholeBits = 0x4b400000u;

// Which level is nearest to a magnitude: factors are those of a scale.
template <int kBits>
struct Quantizer {
  static constexpr int kLast = (1 << (kBits - 1)) - 1;
  static constexpr int kCandidates = NumScaleCandidates(kBits);
  static constexpr float kMiddle = static_cast<float>((1 << kBits) - 1) / 2.0f;

  // What a level, or a code less kMiddle, is multiplied with.
  static __device__ __forceinline__ float LevelFactor(int byte) {
    const float scale = device_tables.scale[byte];
    return kBits == 4 ? scale : scale * (1.0f / kMiddle);
  }

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
      const float2 center_and_radius = tables.center_and_radius[Eighth(scaled)];
      return fabsf(scaled - center_and_radius.x) - center_and_radius.y;
    } else {
      const float steps = fmaf(magnitude, factor, -0.5f);
      return steps - (fminf(steps, static_cast<float>(kLast)) + kWhole - kWhole);
    }
  }

  // Its number, from the smallest of those above 0 on, in the lowest byte.
  static __device__ __forceinline__ uint32_t NumberBits(const SharedTables& tables, float magnitude,
                                                        float factor) {
    if constexpr (kBits == 4) {
      const float scaled = magnitude * factor;
      const int b = Eighth(scaled);
      return static_cast<uint32_t>(min(b, 6) + (scaled >= tables.middle[b] ? 1 : 0));
    } else {
      static_assert(kWholeBits % 256 == 0);
      const float steps = fmaf(magnitude, factor, -0.5f);
      return __float_as_uint(fminf(steps, static_cast<float>(kLast)) + kWhole);
    }
  }

  static __device__ __forceinline__ int Number(const SharedTables& tables, float magnitude,
                                               float factor) {
    return static_cast<int>(NumberBits(tables, magnitude, factor) & 0xffu);
  }
};

// Calls body(bits) with the number of bits as a constant.
template <typename Body>
void WithBits(int bits, const Body& body) {
  switch (bits) {
    case 8:
      return body(std::integral_constant<int, 8>());
    case 6:
      return body(std::integral_constant<int, 6>());
    case 5:
      return body(std::integral_constant<int, 5>());
    default:
      return body(std::integral_constant<int, 4>());
  }
}

}  // namespace

}  // namespace thinwire
