#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

#include "kernels/core/check.h"
#include "kernels/group_codes/group_codes_internal.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/group_codes/group_codes_cpu.cc"
#include "hwy/foreach_target.h"
// After foreach_target.h.
#include "hwy/highway.h"
#include "kernels/group_codes/group_codes_inl.h"

// Every target does the same operations in the same order, fused where written so, so that all give
// the same bits.
HWY_BEFORE_NAMESPACE();
namespace thinwire {
namespace HWY_NAMESPACE {

#if HWY_TARGET == HWY_SCALAR

void EncodeGroupRange(const EncodeGroupsArgs& args, int64_t begin, int64_t end) {
  EncodeGroupsScalar(args, begin, end);
}

void DecodeGroupRange(const DecodeGroupsArgs& args, int64_t begin, int64_t end) {
  DecodeGroupsScalar(args, begin, end);
}

#else

// Which level is nearest to a magnitude: factors are those of a scale.
template <int kBits>
struct Quantizer {
  static constexpr int kLast = (1 << (kBits - 1)) - 1;

  static float Factor(int byte) {
    return kScaleTables.inverse[byte] * (static_cast<float>(kLast) + 0.5f);
  }

  // In steps between levels, from the smallest level above 0 on.
  static HWY_INLINE V Steps(V magnitude, V factor) {
    return hn::MulSub(magnitude, factor, hn::Set(F(), 0.5f));
  }

  static HWY_INLINE V Nearest(V steps) {
    return hn::Round(hn::Min(steps, hn::Set(F(), static_cast<float>(kLast))));
  }

  // The distance to it.
  HWY_INLINE V Distance(V magnitude, V factor) const {
    const V steps = Steps(magnitude, factor);
    return hn::Sub(steps, Nearest(steps));
  }

  // Its number, from the smallest of those above 0 on.
  HWY_INLINE VI Number(V magnitude, V factor) const {
    return hn::ConvertTo(I(), Nearest(Steps(magnitude, factor)));
  }
};

template <>
struct Quantizer<4> {
  static float Factor(int byte) { return kScaleTables.inverse[byte] * 8.0f; }

  static HWY_INLINE VI Eighth(V scaled) {
    const I di;
    const V raised = hn::Add(hn::Min(scaled, hn::Set(F(), kLargestEighth)), hn::Set(F(), kRaise));
    return hn::And(hn::ShiftRight<kRaisedShift>(hn::BitCast(di, raised)), hn::Set(di, 7));
  }

  HWY_INLINE V Distance(V magnitude, V factor) const {
    const V scaled = hn::Mul(magnitude, factor);
    const VI b = Eighth(scaled);
    return hn::Sub(hn::Abs(hn::Sub(scaled, center[b])), radius[b]);
  }

  HWY_INLINE VI Number(V magnitude, V factor) const {
    const I di;
    const V scaled = hn::Mul(magnitude, factor);
    const VI b = Eighth(scaled);
    const auto above = hn::RebindMask(di, hn::Ge(scaled, middle[b]));
    return hn::Sub(hn::Min(b, hn::Set(di, 6)), hn::VecFromMask(di, above));
  }

  EightFloats middle{kFourBitTables.middle.data()};
  EightFloats center{kFourBitTables.center.data()};
  EightFloats radius{kFourBitTables.radius.data()};
};

// The sum, of numbers i % 16 first.
HWY_INLINE float SumOfSixteen(V (&sums)[16 / kLanes]) {
  if constexpr (kLanes == 4) {
    sums[0] = hn::Add(hn::Add(sums[0], sums[2]), hn::Add(sums[1], sums[3]));
  } else if constexpr (kLanes == 8) {
    sums[0] = hn::Add(sums[0], sums[1]);
  } else {
    sums[0] = hn::Add(sums[0], Partner<8>(sums[0]));
  }
  if constexpr (kLanes >= 8) sums[0] = hn::Add(sums[0], Partner<4>(sums[0]));
  sums[0] = hn::Add(sums[0], Partner<2>(sums[0]));
  return hn::GetLane(hn::Add(sums[0], Partner<1>(sums[0])));
}

template <int kBits, int64_t kSize>
HWY_INLINE float SquaredError(const Quantizer<kBits>& quantizer,
                              const V (&magnitude)[kVectors<kSize>], int byte) {
  const F d;
  const V factor = hn::Set(d, Quantizer<kBits>::Factor(byte));
  V sums[16 / kLanes];
  for (int64_t i = 0; i < kVectors<kSize>; ++i) {
    const V distance = quantizer.Distance(magnitude[i], factor);
    V& sum = sums[i % (16 / kLanes)];
    sum = i < 16 / kLanes ? hn::Mul(distance, distance) : hn::MulAdd(distance, distance, sum);
  }
  return SumOfSixteen(sums) * (kScaleTables.scale[byte] * kScaleTables.scale[byte]);
}

HWY_INLINE uint64_t EightBytes(const uint8_t* from) {
  uint64_t bytes;
  std::memcpy(&bytes, from, sizeof(bytes));
  return bytes;
}

// Codes of one byte each to their places in a group.
template <int kBits, int64_t kSize>
HWY_INLINE void PackCodes(const uint8_t* HWY_RESTRICT codes, uint8_t* HWY_RESTRICT to) {
  constexpr uint64_t kLow = 0x0f0f0f0f0f0f0f0fu;
  for (int64_t i = 0; i < kSize / 2; i += 8) {
    const uint64_t bytes =
        (EightBytes(codes + i) & kLow) | (EightBytes(codes + kSize / 2 + i) & kLow) << 4;
    std::memcpy(to + i, &bytes, sizeof(bytes));
  }
  if constexpr (kBits == 4) return;
  to += kSize / 2;
  // The product moves the bits of all bytes into the topmost, or topmost of each half.
  for (int64_t i = 0; i < kSize; i += 8) {
    const uint64_t high = EightBytes(codes + i) >> 4;
    if constexpr (kBits == 5) {
      to[i / 8] = static_cast<uint8_t>((high & 0x0101010101010101u) * 0x0102040810204080u >> 56);
    } else {
      const uint64_t pairs = high & 0x0303030303030303u;
      to[i / 4] = static_cast<uint8_t>(static_cast<uint32_t>(pairs) * 0x01041040u >> 24);
      to[i / 4 + 1] = static_cast<uint8_t>(static_cast<uint32_t>(pairs >> 32) * 0x01041040u >> 24);
    }
  }
}

// The rotated group; returns its largest magnitude, or NaN if a value is not finite.
template <int64_t kSize>
HWY_INLINE float RotateGroup(const ConstTensorView& x, int64_t element, float* HWY_RESTRICT to) {
  const F d;
  constexpr uint32_t kInfinity = 0x7f800000u;
  constexpr float kNorm = RootOfInverse<kSize>();
  V u[kVectors<kSize>];
  LoadGroup<kSize>(x, element, u);
  Rotate<kSize>(u);
  uint32_t largest = LargestMagnitude<kSize>(u);
  if (HWY_UNLIKELY(largest >= kInfinity)) {
    LoadGroup<kSize>(x, element, u);
    if (LargestMagnitude<kSize>(u) >= kInfinity) return std::numeric_limits<float>::quiet_NaN();
    // Sums have overflown. The group saturates at any scale: a smaller one has the same codes.
    for (V& v : u) v = hn::Mul(v, hn::Set(d, 0x1p-8f));
    Rotate<kSize>(u);
    largest = LargestMagnitude<kSize>(u);
  }
  for (int64_t i = 0; i < kVectors<kSize>; ++i) {
    hn::Store(hn::Mul(u[i], hn::Set(d, kNorm)), d, to + i * kLanes);
  }
  if (largest == 0) return 0.0f;
  return std::max(std::bit_cast<float>(largest) * kNorm, std::numeric_limits<float>::min());
}

// The byte of the best scale, where `first` is that of the smallest that clips nothing.
template <int kBits, int64_t kSize>
HWY_INLINE int BestScaleByte(const Quantizer<kBits>& quantizer, const float* HWY_RESTRICT u,
                             int first) {
  V magnitude[kVectors<kSize>];
  for (int64_t i = 0; i < kVectors<kSize>; ++i) {
    magnitude[i] = hn::Abs(hn::Load(F(), u + i * kLanes));
  }
  int best = first;
  float least = SquaredError<kBits, kSize>(quantizer, magnitude, first);
  for (int c = 1; c < NumScaleCandidates(kBits); ++c) {
    const int byte = std::max(first - c, kLeastScaleByte);
    const float error = SquaredError<kBits, kSize>(quantizer, magnitude, byte);
    best = error < least ? byte : best;
    least = std::min(error, least);
  }
  return best;
}

template <int kBits, int64_t kSize>
HWY_INLINE void StoreCodes(const Quantizer<kBits>& quantizer, const float* HWY_RESTRICT u, int byte,
                           uint8_t* HWY_RESTRICT to) {
  const F d;
  const I di;
  const hn::RebindToUnsigned<F> du;
  HWY_ALIGN uint8_t unpacked[kSize];
  uint8_t* const codes = kBits == 8 ? to : unpacked;
  const V factor = hn::Set(d, Quantizer<kBits>::Factor(byte));
  for (int64_t i = 0; i < kVectors<kSize>; ++i) {
    const V value = hn::Load(d, u + i * kLanes);
    const VI number = quantizer.Number(hn::Abs(value), factor);
    // Below 0, ~number = -1 - number counts down from the middle.
    const VI negative = hn::ShiftRight<31>(hn::BitCast(di, value));
    const VI code = hn::Add(hn::Set(di, 1 << (kBits - 1)), hn::Xor(number, negative));
    hn::StoreU(hn::TruncateTo(U8(), hn::BitCast(du, code)), U8(), codes + i * kLanes);
  }
  if constexpr (kBits != 8) PackCodes<kBits, kSize>(unpacked, to);
}

template <int kBits, int64_t kSize>
HWY_INLINE void UnpackCodes(const uint8_t* HWY_RESTRICT from, VI (&codes)[kVectors<kSize>]) {
  const I di;
  const U8 d8;
  if constexpr (kBits == 8) {
    for (int64_t i = 0; i < kVectors<kSize>; ++i) {
      codes[i] = hn::PromoteTo(di, hn::LoadU(d8, from + i * kLanes));
    }
  } else if constexpr (kLanes <= kSize / 2) {
    constexpr int64_t kHalf = kVectors<kSize> / 2;
    for (int64_t i = 0; i < kHalf; ++i) {
      const VI pairs = hn::PromoteTo(di, hn::LoadU(d8, from + i * kLanes));
      codes[i] = hn::And(pairs, hn::Set(di, 15));
      codes[i + kHalf] = hn::ShiftRight<4>(pairs);
    }
  } else {
    static_assert(kLanes == kSize);
    HWY_ALIGN uint8_t unpacked[kSize];
    for (int64_t i = 0; i < kSize / 2; ++i) {
      unpacked[i] = from[i] & 15;
      unpacked[i + kSize / 2] = from[i] >> 4;
    }
    codes[0] = hn::PromoteTo(di, hn::Load(d8, unpacked));
  }
  if constexpr (kBits == 5 || kBits == 6) {
    constexpr int kHigh = kBits - 4;
    const hn::RebindToUnsigned<F> du;
    const auto shifts = hn::Mul(hn::Iota(du, 0), hn::Set(du, uint32_t{kHigh}));
    for (int64_t i = 0; i < kVectors<kSize>; ++i) {
      const int64_t bit = i * kLanes * kHigh;
      uint32_t word = 0;
      std::memcpy(&word, from + kSize / 2 + bit / 8, (kLanes * kHigh + 7) / 8);
      const auto high =
          hn::And(hn::Shr(hn::Set(du, word >> (bit % 8)), shifts), hn::Set(du, (1u << kHigh) - 1));
      codes[i] = hn::Or(codes[i], hn::BitCast(di, hn::ShiftLeft<4>(high)));
    }
  }
}

template <int kBits>
struct Dequantizer {
  static constexpr float kMiddle = static_cast<float>((1 << kBits) - 1) / 2.0f;

  static float Factor(int byte) { return kScaleTables.scale[byte] * (1.0f / kMiddle); }

  HWY_INLINE V operator()(VI code) const {
    return hn::Sub(hn::ConvertTo(F(), code), hn::Set(F(), kMiddle));
  }
};

template <>
struct Dequantizer<4> {
  Dequantizer() {
    for (int64_t i = 0; i < 8; ++i) {
      all[i] = -kFourBitLevels[7 - i];
      all[8 + i] = kFourBitLevels[i];
    }
  }

  static float Factor(int byte) { return kScaleTables.scale[byte]; }

  HWY_INLINE V operator()(VI code) const {
    const F d;
    const I di;
    if constexpr (kLanes == 16) {
      return hn::TableLookupLanes(hn::Load(d, all), hn::IndicesFromVec(d, code));
    } else {
      // -1 below the middle, where ~code counts down from it.
      const VI sign = hn::VecFromMask(di, hn::Gt(hn::Set(di, 8), code));
      const V magnitude = levels[hn::And(hn::Xor(code, sign), hn::Set(di, 7))];
      return hn::Xor(magnitude, hn::BitCast(d, hn::ShiftLeft<31>(sign)));
    }
  }

  HWY_ALIGN float all[16];
  EightFloats levels{kFourBitLevels};
};

template <int kBits, int64_t kSize>
void EncodeGroupsOf(const EncodeGroupsArgs& args, int64_t begin, int64_t end) {
  constexpr int64_t kBytes = kSize * kBits / 8;
  // Each step of one group waits for its last, so that the steps of several take turns.
  constexpr int64_t kAtOnce = 8;
  HWY_ALIGN float u[kAtOnce][kSize];
  int scale_bytes[kAtOnce];
  const Quantizer<kBits> quantizer;
  const int64_t num_groups = args.format.num_groups();
  int64_t t = begin / num_groups;
  int64_t g = begin % num_groups;
  for (int64_t at = begin; at < end;) {
    const int64_t count = std::min({kAtOnce, num_groups - g, end - at});
    const int64_t element = t * args.x.row_stride() + g * kSize;
    for (int64_t i = 0; i < count; ++i) {
      const float largest = RotateGroup<kSize>(args.x, element + i * kSize, u[i]);
      scale_bytes[i] = largest == 0.0f       ? kZeroGroup
                       : std::isnan(largest) ? kNanGroup
                                             : SmallestScaleByte(largest);
    }
    const auto is_special = [](int byte) { return byte == kZeroGroup || byte == kNanGroup; };
    for (int64_t i = 0; i < count; ++i) {
      if (is_special(scale_bytes[i])) continue;
      scale_bytes[i] = BestScaleByte<kBits, kSize>(quantizer, u[i], scale_bytes[i]);
    }
    uint8_t* const row = args.codes.mutable_data<uint8_t>() + t * args.format.row_bytes();
    for (int64_t i = 0; i < count; ++i) {
      uint8_t* const codes = row + num_groups + (g + i) * kBytes;
      row[g + i] = static_cast<uint8_t>(scale_bytes[i]);
      if (is_special(scale_bytes[i])) {
        std::memset(codes, 0, kBytes);
      } else {
        StoreCodes<kBits, kSize>(quantizer, u[i], scale_bytes[i], codes);
      }
    }
    at += count;
    g += count;
    if (g == num_groups) {
      g = 0;
      ++t;
    }
  }
}

template <int kBits, int64_t kSize>
void DecodeGroupsOf(const DecodeGroupsArgs& args, int64_t begin, int64_t end) {
  constexpr int64_t kBytes = kSize * kBits / 8;
  const F d;
  const Dequantizer<kBits> dequantizer;
  const int64_t num_groups = args.format.num_groups();
  const int64_t row_bytes = args.format.row_bytes();
  int64_t t = begin / num_groups;
  int64_t g = begin % num_groups;
  for (int64_t at = begin; at < end; ++at) {
    V u[kVectors<kSize>];
    // From 0 on, since a sum of -0 would be -0.
    for (V& v : u) v = hn::Zero(d);
    for (const ConstTensorView& part : args.parts) {
      const uint8_t* const row = static_cast<const uint8_t*>(part.raw()) + t * row_bytes;
      const V factor = hn::Set(d, Dequantizer<kBits>::Factor(row[g]));
      VI codes[kVectors<kSize>];
      UnpackCodes<kBits, kSize>(row + num_groups + g * kBytes, codes);
      for (int64_t i = 0; i < kVectors<kSize>; ++i) {
        u[i] = hn::Add(u[i], hn::Mul(factor, dequantizer(codes[i])));
      }
    }
    Rotate<kSize>(u);
    const int64_t element = t * args.y.row_stride() + g * kSize;
    for (V& v : u) v = hn::Mul(v, hn::Set(d, RootOfInverse<kSize>()));
    if (args.accumulate) {
      V before[kVectors<kSize>];
      LoadGroup<kSize>(args.y, element, before);
      for (int64_t i = 0; i < kVectors<kSize>; ++i) u[i] = hn::Add(before[i], u[i]);
    }
    StoreGroup<kSize>(args.y, element, u);
    if (++g == num_groups) {
      g = 0;
      ++t;
    }
  }
}

// Calls body with the numbers of bits and channels in a group as constants.
template <typename Body>
HWY_INLINE void WithFormat(const GroupCodesFormat& format, const Body& body) {
  const auto with_size = [&](auto bits) {
    switch (format.group()) {
      case 16:
        return body(bits, std::integral_constant<int64_t, 16>());
      case 32:
        return body(bits, std::integral_constant<int64_t, 32>());
      case 64:
        return body(bits, std::integral_constant<int64_t, 64>());
      default:
        // Of 8 bits only.
        TW_CHECK(format.group() == 128 && format.bits == 8);
        return body(std::integral_constant<int, 8>(), std::integral_constant<int64_t, 128>());
    }
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

void EncodeGroupRange(const EncodeGroupsArgs& args, int64_t begin, int64_t end) {
  WithFormat(args.format, [&](auto bits, auto size) {
    EncodeGroupsOf<decltype(bits)::value, decltype(size)::value>(args, begin, end);
  });
}

void DecodeGroupRange(const DecodeGroupsArgs& args, int64_t begin, int64_t end) {
  WithFormat(args.format, [&](auto bits, auto size) {
    DecodeGroupsOf<decltype(bits)::value, decltype(size)::value>(args, begin, end);
  });
}

#endif  // HWY_TARGET == HWY_SCALAR

}  // namespace HWY_NAMESPACE
}  // namespace thinwire
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace thinwire {
namespace {

HWY_EXPORT(EncodeGroupRange);
HWY_EXPORT(DecodeGroupRange);

// Below this many elements, waking another thread costs more than it saves.
constexpr int64_t kEncodedPerThread = 8192;
constexpr int64_t kDecodedPerThread = 32768;

int64_t Grain(const GroupCodesFormat& format, int64_t elements) {
  return std::max<int64_t>(1, elements / format.group());
}

}  // namespace

void EncodeGroupsCpu(const EncodeGroupsArgs& args, Stream& stream) {
  const bool scalar = args.format.group() < kSmallestVectorGroup;
  stream.pool().ParallelFor(args.x.dim(0) * args.format.num_groups(),
                            Grain(args.format, kEncodedPerThread), [&](int64_t begin, int64_t end) {
                              if (scalar) return EncodeGroupsScalar(args, begin, end);
                              HWY_DYNAMIC_DISPATCH(EncodeGroupRange)(args, begin, end);
                            });
}

void DecodeGroupsCpu(const DecodeGroupsArgs& args, Stream& stream) {
  const bool scalar = args.format.group() < kSmallestVectorGroup;
  stream.pool().ParallelFor(args.y.dim(0) * args.format.num_groups(),
                            Grain(args.format, kDecodedPerThread), [&](int64_t begin, int64_t end) {
                              if (scalar) return DecodeGroupsScalar(args, begin, end);
                              HWY_DYNAMIC_DISPATCH(DecodeGroupRange)(args, begin, end);
                            });
}

}  // namespace thinwire
#endif  // HWY_ONCE
