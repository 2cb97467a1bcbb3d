// The same operations as on the CPU in the same order, fused where they are there (the CUDA files
// of this folder are compiled without contraction): the same bytes and the same bits.
#include <cmath>

#include "absl/strings/str_cat.h"
#include "kernels/core/cuda_status.h"
#include "kernels/group_codes/group_codes_cuda.cuh"

namespace thinwire {
namespace {

// 4 threads share a group: thread i has the values 16 k + 4 i + r, r < 4, and with them 4 of the 16
// chains in which errors are summed.
constexpr int kLanes = 4;
constexpr int kThreads = 256;
constexpr int kGroupsPerBlock = kThreads / kLanes;

// kSteps = size of a group / 16.
template <int kSteps>
struct Values {
  float at[kSteps][4];
};

__device__ __forceinline__ float FromLane(float value, int distance) {
  return __shfl_xor_sync(0xffffffffu, value, distance);
}

// (a, b) = (a + b, a - b)
__device__ __forceinline__ void Butterfly(float& a, float& b) {
  const float sum = a + b;
  b = a - b;
  a = sum;
}

// sqrt(size) H u, in the order of growing distances: 1 and 2 in a thread, 4 and 8 between threads,
// the rest in a thread.
template <int kSteps>
__device__ __forceinline__ void Rotate(int lane, Values<kSteps>& u) {
  const float signs[2] = {(lane & 1) != 0 ? -1.0f : 1.0f, (lane & 2) != 0 ? -1.0f : 1.0f};
#pragma unroll
  for (int k = 0; k < kSteps; ++k) {
    Butterfly(u.at[k][0], u.at[k][1]);
    Butterfly(u.at[k][2], u.at[k][3]);
    Butterfly(u.at[k][0], u.at[k][2]);
    Butterfly(u.at[k][1], u.at[k][3]);
#pragma unroll
    for (int stage = 0; stage < 2; ++stage) {
#pragma unroll
      for (int r = 0; r < 4; ++r) {
        // A product with 1 or -1 is exact: one rounding, of the sum or difference.
        u.at[k][r] = fmaf(u.at[k][r], signs[stage], FromLane(u.at[k][r], 1 << stage));
      }
    }
  }
#pragma unroll
  for (int h = 1; h < kSteps; h *= 2) {
#pragma unroll
    for (int k = 0; k < kSteps; ++k) {
      if ((k & h) != 0) continue;
#pragma unroll
      for (int r = 0; r < 4; ++r) Butterfly(u.at[k][r], u.at[k + h][r]);
    }
  }
}

// The bits of the largest |u| of the group, on all its threads: as integers, NaN is above infinity,
// and both are above all else.
template <int kSteps>
__device__ __forceinline__ uint32_t LargestMagnitude(const Values<kSteps>& u) {
  uint32_t largest = 0;
#pragma unroll
  for (int k = 0; k < kSteps; ++k) {
#pragma unroll
    for (int r = 0; r < 4; ++r) {
      largest = max(largest, __float_as_uint(u.at[k][r]) & 0x7fffffffu);
    }
  }
  largest = max(largest, __shfl_xor_sync(0xffffffffu, largest, 1));
  return max(largest, __shfl_xor_sync(0xffffffffu, largest, 2));
}

template <int kSteps, typename T>
__device__ __forceinline__ Values<kSteps> Load(const T* from, bool aligned) {
  Values<kSteps> values;
#pragma unroll
  for (int k = 0; k < kSteps; ++k) {
    Pack<T, 4> pack;
    if (aligned) {
      pack = StreamPack<4>(from + 16 * k);
    } else {
#pragma unroll
      for (int r = 0; r < 4; ++r) pack.values[r] = from[16 * k + r];
    }
#pragma unroll
    for (int r = 0; r < 4; ++r) values.at[k][r] = AsFloat(pack.values[r]);
  }
  return values;
}

template <int kBits, int kSteps>
__device__ __forceinline__ float SquaredError(const SharedTables& tables, const Values<kSteps>& u,
                                              int byte) {
  const float factor = Quantizer<kBits>::Factor(byte);
  float sums[4];
#pragma unroll
  for (int k = 0; k < kSteps; ++k) {
#pragma unroll
    for (int r = 0; r < 4; ++r) {
      const float distance = Quantizer<kBits>::Distance(tables, fabsf(u.at[k][r]), factor);
      sums[r] = k == 0 ? distance * distance : fmaf(distance, distance, sums[r]);
    }
  }
#pragma unroll
  for (int r = 0; r < 4; ++r) sums[r] += FromLane(sums[r], 2);
#pragma unroll
  for (int r = 0; r < 4; ++r) sums[r] += FromLane(sums[r], 1);
  const float scale = device_tables.scale[byte];
  return ((sums[0] + sums[2]) + (sums[1] + sums[3])) * (scale * scale);
}

__device__ __forceinline__ void StoreWord(uint32_t word, uint8_t* to) {
  if (reinterpret_cast<uintptr_t>(to) % 4 == 0) {
    *reinterpret_cast<uint32_t*>(to) = word;
    return;
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) to[i] = static_cast<uint8_t>(word >> (8 * i));
}

__device__ __forceinline__ uint32_t LoadWord(const uint8_t* from) {
  if (reinterpret_cast<uintptr_t>(from) % 4 == 0) {
    return *reinterpret_cast<const uint32_t*>(from);
  }
  uint32_t word = 0;
#pragma unroll
  for (int i = 0; i < 4; ++i) word |= static_cast<uint32_t>(from[i]) << (8 * i);
  return word;
}

// codes[k]: those of values 16 k + 4 lane + r, in byte r.
template <int kBits, int kSteps>
__device__ __forceinline__ void StoreCodes(int lane, const uint32_t (&codes)[kSteps], bool write,
                                           uint8_t* to) {
  if constexpr (kBits == 8) {
#pragma unroll
    for (int k = 0; k < kSteps; ++k) {
      if (write) StoreWord(codes[k], to + 16 * k + 4 * lane);
    }
    return;
  }
  constexpr uint32_t kLow = 0x0f0f0f0fu;
  if constexpr (kSteps == 1) {
    // The upper half of the values lies two threads further.
    const uint32_t above = __shfl_xor_sync(0xffffffffu, codes[0] & kLow, 2);
    if (write && lane < 2) StoreWord((codes[0] & kLow) | above << 4, to + 4 * lane);
  } else {
#pragma unroll
    for (int k = 0; k < kSteps / 2; ++k) {
      if (!write) continue;
      StoreWord((codes[k] & kLow) | (codes[k + kSteps / 2] & kLow) << 4, to + 16 * k + 4 * lane);
    }
  }
  uint8_t* const high = to + 8 * kSteps;
  if constexpr (kBits == 6) {
#pragma unroll
    for (int k = 0; k < kSteps; ++k) {
      // The product moves the two bits of each byte into the topmost.
      const uint32_t pairs = codes[k] >> 4 & 0x03030303u;
      if (write) high[4 * k + lane] = static_cast<uint8_t>(pairs * 0x01041040u >> 24);
    }
  }
  if constexpr (kBits == 5) {
#pragma unroll
    for (int k = 0; k < kSteps; ++k) {
      const uint32_t bits = codes[k] >> 4 & 0x01010101u;
      const uint32_t four = bits * 0x01020408u >> 24;  // their lowest bits, that of byte 0 lowest
      const uint32_t next = __shfl_down_sync(0xffffffffu, four, 1);
      if (write && lane % 2 == 0) high[2 * k + lane / 2] = static_cast<uint8_t>(four | next << 4);
    }
  }
}

template <int kBits, int kSteps>
__device__ __forceinline__ void LoadCodes(int lane, const uint8_t* from,
                                          uint32_t (&codes)[kSteps]) {
  constexpr uint32_t kLow = 0x0f0f0f0fu;
  if constexpr (kBits == 8) {
#pragma unroll
    for (int k = 0; k < kSteps; ++k) codes[k] = LoadWord(from + 16 * k + 4 * lane);
    return;
  } else if constexpr (kSteps == 1) {
    codes[0] = LoadWord(from + 4 * (lane & 1)) >> (lane < 2 ? 0 : 4) & kLow;
  } else {
#pragma unroll
    for (int k = 0; k < kSteps / 2; ++k) {
      const uint32_t word = LoadWord(from + 16 * k + 4 * lane);
      codes[k] = word & kLow;
      codes[k + kSteps / 2] = word >> 4 & kLow;
    }
  }
  const uint8_t* const high = from + 8 * kSteps;
  if constexpr (kBits == 6) {
#pragma unroll
    for (int k = 0; k < kSteps; ++k) {
      const uint32_t byte = high[4 * k + lane];
      codes[k] |=
          (byte & 0x03u) << 4 | (byte & 0x0cu) << 10 | (byte & 0x30u) << 16 | (byte & 0xc0u) << 22;
    }
  }
  if constexpr (kBits == 5) {
#pragma unroll
    for (int k = 0; k < kSteps; ++k) {
      const uint32_t four = static_cast<uint32_t>(high[2 * k + lane / 2]) >> (4 * (lane % 2));
      codes[k] |= (four & 1) << 4 | (four & 2) << 11 | (four & 4) << 18 | (four & 8) << 25;
    }
  }
}

template <int kBits, int kSteps, typename T>
__global__ void __launch_bounds__(kThreads, kSteps == 8 ? 3 : 4)
    Encode(GroupParams p, const T* x, uint8_t* codes) {
  __shared__ SharedTables tables;
  FillTables(tables);
  const int lane = threadIdx.x % kLanes;
  // All threads stay to the end: neighbours exchange values.
  const int64_t found = static_cast<int64_t>(blockIdx.x) * kGroupsPerBlock + threadIdx.x / kLanes;
  const bool inside = found < p.num_groups;
  const int64_t at = inside ? found : p.num_groups - 1;
  const int64_t row = at / p.groups_per_row;
  const int64_t group = at % p.groups_per_row;
  const T* const from = x + row * p.stride + group * (16 * kSteps) + 4 * lane;
  constexpr uint32_t kInfinity = 0x7f800000u;
  Values<kSteps> u = Load<kSteps>(from, p.aligned);
  Rotate<kSteps>(lane, u);
  uint32_t largest = LargestMagnitude<kSteps>(u);
  bool is_nan = false;
  if (__any_sync(0xffffffffu, largest >= kInfinity)) {
    Values<kSteps> smaller = Load<kSteps>(from, p.aligned);
    const bool any_infinite = LargestMagnitude<kSteps>(smaller) >= kInfinity;
#pragma unroll
    for (int k = 0; k < kSteps; ++k) {
#pragma unroll
      for (int r = 0; r < 4; ++r) smaller.at[k][r] *= 0x1p-8f;
    }
    Rotate<kSteps>(lane, smaller);
    const uint32_t largest_smaller = LargestMagnitude<kSteps>(smaller);
    if (largest >= kInfinity) {
      // Sums have overflown. The group saturates at any scale: a smaller one has the same codes.
      is_nan = any_infinite;
      largest = largest_smaller;
      u = smaller;
    }
  }
  const int first = DeviceScaleByte(fmaxf(__uint_as_float(largest) * p.norm, 1.17549435e-38f));
#pragma unroll
  for (int k = 0; k < kSteps; ++k) {
#pragma unroll
    for (int r = 0; r < 4; ++r) u.at[k][r] *= p.norm;
  }
  int best = first;
  float least = SquaredError<kBits, kSteps>(tables, u, first);
#pragma unroll
  for (int c = 1; c < Quantizer<kBits>::kCandidates; ++c) {
    const int byte = max(first - c, kLeastScaleByte);
    const float error = SquaredError<kBits, kSteps>(tables, u, byte);
    best = error < least ? byte : best;
    least = fminf(error, least);
  }
  const bool special = is_nan || largest == 0;
  const float factor = Quantizer<kBits>::Factor(best);
  uint32_t words[kSteps];
#pragma unroll
  for (int k = 0; k < kSteps; ++k) {
    words[k] = 0;
#pragma unroll
    for (int r = 0; r < 4; ++r) {
      const float value = u.at[k][r];
      const int number = Quantizer<kBits>::Number(tables, fabsf(value), factor);
      // Below 0, ~number = -1 - number counts down from the middle.
      const int code =
          (1 << (kBits - 1)) + (number ^ (static_cast<int>(__float_as_uint(value)) >> 31));
      words[k] |= (static_cast<uint32_t>(code) & 0xffu) << (8 * r);
    }
    if (special) words[k] = 0;
  }
  uint8_t* const to = codes + row * p.row_bytes;
  if (inside && lane == 0) {
    to[group] = static_cast<uint8_t>(is_nan ? kNanGroup : largest == 0 ? kZeroGroup : best);
  }
  StoreCodes<kBits, kSteps>(lane, words, inside,
                            to + p.groups_per_row + group * (2 * kBits * kSteps));
}

template <int kBits, int kSteps, typename T>
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
  Values<kSteps> u = {};  // from 0 on, since a sum of -0 would be -0
  for (int part = 0; part < parts.count; ++part) {
    const uint8_t* const from = parts.rows[part] + row * p.row_bytes;
    uint32_t codes[kSteps];
    LoadCodes<kBits, kSteps>(lane, from + p.groups_per_row + group * (2 * kBits * kSteps), codes);
    const float factor = Quantizer<kBits>::LevelFactor(from[group]);
#pragma unroll
    for (int k = 0; k < kSteps; ++k) {
#pragma unroll
      for (int r = 0; r < 4; ++r) {
        const uint32_t code = codes[k] >> (8 * r) & 0xffu;
        float level;
        if constexpr (kBits == 4) {
          level = tables.level[code];
        } else {
          // 2^23 + code, less 2^23: cheaper than a conversion, and as exact.
          level = __uint_as_float(0x4b000000u | code) - 8388608.0f - Quantizer<kBits>::kMiddle;
        }
        u.at[k][r] += factor * level;
      }
    }
  }
  Rotate<kSteps>(lane, u);
  if (!inside) return;
  T* const to = y + row * p.stride + group * (16 * kSteps) + 4 * lane;
#pragma unroll
  for (int k = 0; k < kSteps; ++k) {
    Pack<T, 4> pack = {};
    if (accumulate && p.aligned) pack = LoadPack<4>(to + 16 * k);
#pragma unroll
    for (int r = 0; r < 4; ++r) {
      float value = u.at[k][r] * p.norm;
      if (accumulate) {
        value = AsFloat(p.aligned ? pack.values[r] : to[16 * k + r]) + value;
      }
      pack.values[r] = FromFloat<T>(value);
    }
    if (p.aligned) {
      StorePack(pack, to + 16 * k);
    } else {
#pragma unroll
      for (int r = 0; r < 4; ++r) to[16 * k + r] = pack.values[r];
    }
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
  p.aligned = RowsAlign(values, 4 * DTypeBytes(values.dtype(), 1));
  return p;
}

// Calls body(bits, sixteenths of a group) with both as constants.
template <typename Body>
void WithFormat(const GroupCodesFormat& format, const Body& body) {
  WithBits(format.bits, [&](auto bits) {
    if (format.group() == 16) return body(bits, std::integral_constant<int, 1>());
    if (format.group() == 32) return body(bits, std::integral_constant<int, 2>());
    if constexpr (decltype(bits)::value == 8) {
      if (format.group() == 128) return body(bits, std::integral_constant<int, 8>());
    }
    return body(bits, std::integral_constant<int, 4>());
  });
}

unsigned NumBlocks(const GroupParams& p) {
  return static_cast<unsigned>((p.num_groups + kGroupsPerBlock - 1) / kGroupsPerBlock);
}

}  // namespace

absl::Status EncodeGroupsCuda(const EncodeGroupsArgs& args, Stream& stream) {
  const cudaStream_t native = CudaStream(stream);
  const GroupParams p = ParamsOf(args.format, args.x);
  if (p.size < kSmallestVectorGroup) {
    EncodeSmallGroups(args, p, stream);
    return CudaLaunchStatus("encode groups", stream);
  }
  WithFormat(args.format, [&](auto bits, auto steps) {
    WithFloatType(args.x.dtype(), [&](auto zero) {
      using T = decltype(zero);
      Encode<decltype(bits)::value, decltype(steps)::value, T>
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
  GroupParts parts = {};
  for (const ConstTensorView& part : args.parts) {
    parts.rows[parts.count++] = part.data<uint8_t>();
  }
  if (p.size < kSmallestVectorGroup) {
    DecodeSmallGroups(args, p, parts, stream);
    return CudaLaunchStatus("decode groups", stream);
  }
  WithFormat(args.format, [&](auto bits, auto steps) {
    WithFloatType(args.y.dtype(), [&](auto zero) {
      using T = decltype(zero);
      Decode<decltype(bits)::value, decltype(steps)::value, T>
          <<<NumBlocks(p), kThreads, 0, native>>>(p, parts, args.y.mutable_data<T>(),
                                                  args.accumulate);
    });
  });
  return CudaLaunchStatus("decode groups", stream);
}

}  // namespace thinwire
