// Groups of 16 values and more on a GPU: kLanes threads share one, 4 or, with groups of 64 and
// more, 2, thread i of them having the values 16 k + kRun i + r, r < kRun = 16 / kLanes, and with
// them kRun of the 16 chains in which errors are summed. Fewer threads exchange less, and do less
// twice; more need fewer registers. The same operations as on the CPU in the same order, fused
// where they are there (files that include this are compiled without contraction): the same bytes
// and the same bits.
#pragma once

#include "kernels/group_codes/group_codes_cuda.cuh"
#include "kernels/group_codes/group_words.cuh"

namespace thinwire {
namespace {

inline constexpr int kGroupThreads = 256;  // of a block
inline constexpr int kGroupsPerBlock = kGroupThreads / kLanes;

// What depends on the scale byte, by its position in an octave: threads index it apart from each
// other, as they do the rest.
struct LaneTables : SharedTables {
  struct Octave {
    float scale;   // of bytes 128 to 135: from 1 on
    float factor;  // Quantizer::Factor
    float level;   // Quantizer::LevelFactor
    float next;    // the mantissa from which on the next byte's scale is needed
  };
  Octave octaves[8];
};

template <int kBits>
__device__ __forceinline__ void FillLaneTables(LaneTables& tables) {
  if (threadIdx.x >= 16 && threadIdx.x < 24) {
    const int i = static_cast<int>(threadIdx.x) - 16;
    tables.octaves[i] = {device_tables.scale[128 + i], Quantizer<kBits>::Factor(128 + i),
                         Quantizer<kBits>::LevelFactor(128 + i),
                         i < 7 ? device_tables.eighth[i + 1] : 2.0f};
  }
  FillTables(tables);
}

// value * 2^(octaves of `byte` above 128's), for bytes from 1 to 254: the bits of a product, since
// all of these stay normal.
__device__ __forceinline__ float InOctave(float value, int byte) {
  return __int_as_float(__float_as_int(value) + ((byte >> 3) - 16) * (1 << 23));
}
__device__ __forceinline__ float BelowOctave(float value, int byte) {
  return __int_as_float(__float_as_int(value) - ((byte >> 3) - 16) * (1 << 23));
}

// As DeviceScaleByte: of the thresholds between octaves, eighth j of the mantissas has the one that
// is its own, and those before it are passed.
__device__ __forceinline__ int LaneScaleByte(const LaneTables& tables, float largest) {
  const uint32_t bits = __float_as_uint(largest);
  const float mantissa = __uint_as_float((bits & 0x007fffffu) | 0x3f800000u);
  const int j = static_cast<int>(bits >> 20 & 7u);
  const int byte = 128 + 8 * (static_cast<int>(bits >> 23) - 127) + j + (mantissa > 1.0f ? 1 : 0) +
                   (tables.octaves[j].next < mantissa ? 1 : 0);
  return min(max(byte, kLeastScaleByte), kLargestScaleByte);
}

// kSteps = size of a group / 16.
template <int kSteps, int kThreads = kLanes>
struct Values {
  static constexpr int kRun = 16 / kThreads;
  float at[kSteps][kRun];
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

// sqrt(size) H u, in the order of growing distances: below kRun in a thread, below 16 between
// threads, the rest in a thread.
template <int kSteps, int kThreads>
__device__ __forceinline__ void Rotate(int lane, Values<kSteps, kThreads>& u) {
  constexpr int kRun = 16 / kThreads;
#pragma unroll
  for (int k = 0; k < kSteps; ++k) {
#pragma unroll
    for (int h = 1; h < kRun; h *= 2) {
#pragma unroll
      for (int r = 0; r < kRun; ++r) {
        if ((r & h) == 0) Butterfly(u.at[k][r], u.at[k][r + h]);
      }
    }
#pragma unroll
    for (int h = 1; h < kThreads; h *= 2) {
      const float sign = (lane & h) != 0 ? -1.0f : 1.0f;
#pragma unroll
      for (int r = 0; r < kRun; ++r) {
        // A product with 1 or -1 is exact: one rounding, of the sum or difference.
        u.at[k][r] = fmaf(u.at[k][r], sign, FromLane(u.at[k][r], h));
      }
    }
  }
#pragma unroll
  for (int h = 1; h < kSteps; h *= 2) {
#pragma unroll
    for (int k = 0; k < kSteps; ++k) {
      if ((k & h) != 0) continue;
#pragma unroll
      for (int r = 0; r < kRun; ++r) Butterfly(u.at[k][r], u.at[k + h][r]);
    }
  }
}

// The largest of |a| and |b|; NaN if one is.
__device__ __forceinline__ float LargerMagnitude(float a, float b) {
  float larger;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(larger) : "f"(fabsf(a)), "f"(fabsf(b)));
  return larger;
}

// The bits of the largest |u| of the group, on all its threads: as integers, NaN is above infinity,
// and both are above all else.
template <int kSteps, int kThreads>
__device__ __forceinline__ uint32_t LargestMagnitude(const Values<kSteps, kThreads>& u) {
  float largest = 0.0f;
#pragma unroll
  for (int k = 0; k < kSteps; ++k) {
#pragma unroll
    for (int r = 0; r < 16 / kThreads; ++r) largest = LargerMagnitude(largest, u.at[k][r]);
  }
#pragma unroll
  for (int h = 1; h < kThreads; h *= 2) largest = LargerMagnitude(largest, FromLane(largest, h));
  return __float_as_uint(largest);
}

template <int kSteps, int kThreads, typename T>
__device__ __forceinline__ Values<kSteps, kThreads> Load(const T* from, bool aligned) {
  constexpr int kRun = 16 / kThreads;
  Values<kSteps, kThreads> values;
#pragma unroll
  for (int k = 0; k < kSteps; ++k) {
    Pack<T, kRun> pack;
    if (aligned) {
      pack = StreamPack<kRun>(from + 16 * k);
    } else {
#pragma unroll
      for (int r = 0; r < kRun; ++r) pack.values[r] = from[16 * k + r];
    }
#pragma unroll
    for (int r = 0; r < kRun; ++r) values.at[k][r] = AsFloat(pack.values[r]);
  }
  return values;
}

// 1 / sqrt(size) where that is a power of two, by which factors are multiplied instead of values
// then: products are the same (and those of values so small that they are not, nothing to a step);
// else 0.
template <int kSteps>
inline constexpr float kExactNorm = kSteps == 4   ? 0.125f
                                    : kSteps == 1 ? 0.25f
                                                  : 0.0f;

// Of a scale: for values as Rotate leaves them where kExactNorm, else for rotated values.
struct LaneScale {
  float scale;
  float factor;
};

template <int kSteps>
__device__ __forceinline__ LaneScale ScaleOf(const LaneTables& tables, int byte) {
  const LaneTables::Octave octave = tables.octaves[byte & 7];
  const float factor = BelowOctave(octave.factor, byte);
  return {InOctave(octave.scale, byte),
          kExactNorm<kSteps> > 0.0f ? factor * kExactNorm<kSteps> : factor};
}

template <int kBits, int kSteps, int kThreads>
__device__ __forceinline__ float SquaredError(const LaneTables& tables,
                                              const Values<kSteps, kThreads>& u,
                                              const LaneScale& of) {
  constexpr int kRun = 16 / kThreads;
  float sums[kRun];
#pragma unroll
  for (int k = 0; k < kSteps; ++k) {
#pragma unroll
    for (int r = 0; r < kRun; ++r) {
      const float distance = Quantizer<kBits>::Distance(tables, fabsf(u.at[k][r]), of.factor);
      sums[r] = k == 0 ? distance * distance : fmaf(distance, distance, sums[r]);
    }
  }
  // Chains 8 apart, then 4.
#pragma unroll
  for (int h = kThreads / 2; h > 0; h /= 2) {
#pragma unroll
    for (int r = 0; r < kRun; ++r) sums[r] += FromLane(sums[r], h);
  }
  if constexpr (kRun == 8) {
#pragma unroll
    for (int r = 0; r < 4; ++r) sums[r] += sums[r + 4];
  }
  return ((sums[0] + sums[2]) + (sums[1] + sums[3])) * (of.scale * of.scale);
}

// Byte i of the result is byte (selector >> 4 i & 7) of a (0 to 3) and b (4 to 7), or, with 8 more,
// 8 times its topmost bit.
__device__ __forceinline__ uint32_t Permuted(uint32_t a, uint32_t b, uint32_t selector) {
  uint32_t result;
  asm("prmt.b32 %0, %1, %2, %3;" : "=r"(result) : "r"(a), "r"(b), "r"(selector));
  return result;
}

// The lowest byte of each of 4 words.
__device__ __forceinline__ uint32_t LowBytes(const uint32_t (&words)[4]) {
  return Permuted(Permuted(words[0], words[1], 0x0040), Permuted(words[2], words[3], 0x0040),
                  0x5410);
}

// 0xff for each of 4 that is below 0 or -0, else 0.
__device__ __forceinline__ uint32_t SignBytes(const float* values) {
  return Permuted(Permuted(__float_as_uint(values[0]), __float_as_uint(values[1]), 0x00fb),
                  Permuted(__float_as_uint(values[2]), __float_as_uint(values[3]), 0x00fb), 0x5410);
}

// A thread's codes of a group and the group's scale byte.
template <int kSteps, int kThreads = kLanes>
struct GroupCode {
  uint32_t words[kWords<kSteps, kThreads>];
  uint8_t scale;
};

// Encodes the group whose values kRun lane and on are at `from`. All threads of the warp take part;
// norm is 1 / sqrt(size), aligned as in GroupParams.
template <int kBits, int kSteps, int kThreads = kLanes, typename T>
__device__ __forceinline__ GroupCode<kSteps, kThreads> EncodeGroup(const LaneTables& tables,
                                                                   int lane, const T* from,
                                                                   float norm, bool aligned) {
  constexpr uint32_t kInfinity = 0x7f800000u;
  constexpr uint32_t kEach = 0x01010101u;
  constexpr int kRun = 16 / kThreads;
  Values<kSteps, kThreads> u = Load<kSteps, kThreads>(from, aligned);
  Rotate(lane, u);
  uint32_t largest = LargestMagnitude(u);
  bool is_nan = false;
  if (__any_sync(0xffffffffu, largest >= kInfinity)) {
    Values<kSteps, kThreads> smaller = Load<kSteps, kThreads>(from, aligned);
    const bool any_infinite = LargestMagnitude(smaller) >= kInfinity;
#pragma unroll
    for (int k = 0; k < kSteps; ++k) {
#pragma unroll
      for (int r = 0; r < kRun; ++r) smaller.at[k][r] *= 0x1p-8f;
    }
    Rotate(lane, smaller);
    const uint32_t largest_smaller = LargestMagnitude(smaller);
    if (largest >= kInfinity) {
      // Sums have overflown. The group saturates at any scale: a smaller one has the same codes.
      is_nan = any_infinite;
      largest = largest_smaller;
      u = smaller;
    }
  }
  const int first = LaneScaleByte(tables, fmaxf(__uint_as_float(largest) * norm, 1.17549435e-38f));
  float top = __uint_as_float(largest);
  if constexpr (kExactNorm<kSteps> == 0.0f) {
    top *= norm;
#pragma unroll
    for (int k = 0; k < kSteps; ++k) {
#pragma unroll
      for (int r = 0; r < kRun; ++r) u.at[k][r] *= norm;
    }
  }
  int best = first;
  float least = SquaredError<kBits>(tables, u, ScaleOf<kSteps>(tables, first));
#pragma unroll
  for (int c = 1; c < Quantizer<kBits>::kCandidates; ++c) {
    const int byte = max(first - c, kLeastScaleByte);
    const LaneScale of = ScaleOf<kSteps>(tables, byte);
    // What the largest value alone adds to the error. Sums of squares only grow, rounded ones too:
    // where that is no less than the least error, this scale cannot be better; nor can the next,
    // which clip more of it. Not looked at where it hardly ever is.
    if (c > (kBits > 5 ? 0 : 2)) {
      const float clipped = Quantizer<kBits>::Distance(tables, top, of.factor);
      if (__all_sync(0xffffffffu, clipped * clipped * (of.scale * of.scale) >= least)) break;
    }
    const float error = SquaredError<kBits>(tables, u, of);
    best = error < least ? byte : best;
    least = fminf(error, least);
  }
  const bool special = is_nan || largest == 0;
  const float factor = ScaleOf<kSteps>(tables, best).factor;
  GroupCode<kSteps, kThreads> coded;
#pragma unroll
  for (int i = 0; i < kWords<kSteps, kThreads>; ++i) {
    const float* const four = &u.at[i / (kRun / 4)][4 * (i % (kRun / 4))];
    uint32_t numbers[4];
#pragma unroll
    for (int r = 0; r < 4; ++r) {
      numbers[r] = Quantizer<kBits>::NumberBits(tables, fabsf(four[r]), factor);
    }
    // Number i of the levels above 0 has code 2^(bits - 1) + i, and of those below, 2^(bits - 1) -
    // 1 - i: all bits the other way round.
    const uint32_t word =
        LowBytes(numbers) ^ kEach << (kBits - 1) ^ (SignBytes(four) & kEach * ((1u << kBits) - 1));
    coded.words[i] = special ? 0 : word;
  }
  coded.scale = static_cast<uint8_t>(is_nan ? kNanGroup : largest == 0 ? kZeroGroup : best);
  return coded;
}

// u += the levels of a thread's codes, times kExactNorm where there is one. kFirst: u = 0 + them,
// at once (a sum that begins with -0 would be another).
template <int kBits, bool kFirst = false, int kSteps, int kThreads>
__device__ __forceinline__ void AddLevels(const LaneTables& tables, int scale_byte,
                                          const uint32_t (&codes)[kWords<kSteps, kThreads>],
                                          Values<kSteps, kThreads>& u) {
  float factor = InOctave(tables.octaves[scale_byte & 7].level, scale_byte);
  if constexpr ((kExactNorm < kSteps >> 0.0f)) factor *= kExactNorm<kSteps>;
  if (scale_byte == kZeroGroup) factor = 0.0f;
  if (scale_byte == kNanGroup) factor = __uint_as_float(0x7fc00000u);
#pragma unroll
  for (int i = 0; i < kWords<kSteps, kThreads>; ++i) {
#pragma unroll
    for (int r = 0; r < 4; ++r) {
      float level;
      if constexpr (kBits == 4) {
        level = tables.level[codes[i] >> (8 * r) & 0xffu];
      } else {
        // 2^15 + code, by its bits, less 2^15: cheaper than a conversion, and as exact.
        const uint32_t raised = Permuted(codes[i], 0x47000000u, 0x7404u | r << 4);
        level = __uint_as_float(raised) - (32768.0f + Quantizer<kBits>::kMiddle);
      }
      float& value = u.at[i / (4 / kThreads)][4 * (i % (4 / kThreads)) + r];
      value = kFirst ? fmaf(factor, level, 0.0f) : value + factor * level;
    }
  }
}

// y, or y + it, of a thread's values (the sums of AddLevels, rotated back), from `to`: 4 lane and
// on of the group.
template <int kSteps, int kThreads, typename T>
__device__ __forceinline__ void StoreValues(Values<kSteps, kThreads>& u, float norm,
                                            bool accumulate, bool aligned, T* to) {
  constexpr int kRun = 16 / kThreads;
#pragma unroll
  for (int k = 0; k < kSteps; ++k) {
    Pack<T, kRun> pack = {};
    if (accumulate && aligned) pack = LoadPack<kRun>(to + 16 * k);
#pragma unroll
    for (int r = 0; r < kRun; ++r) {
      float value = kExactNorm<kSteps> > 0.0f ? u.at[k][r] : u.at[k][r] * norm;
      if (accumulate) value = AsFloat(aligned ? pack.values[r] : to[16 * k + r]) + value;
      pack.values[r] = FromFloat<T>(value);
    }
    if (aligned) {
      StorePack(pack, to + 16 * k);
    } else {
#pragma unroll
      for (int r = 0; r < kRun; ++r) to[16 * k + r] = pack.values[r];
    }
  }
}

}  // namespace
}  // namespace thinwire
