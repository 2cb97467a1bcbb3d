// Blocks of CodedWeights in vectors, and products of such vectors with codes of activations. A
// Highway per-target header: include it after hwy/foreach_target.h.

// Not #pragma once: each target sees the contents once.
#if defined(THINWIRE_KERNELS_CODED_LINEAR_UNPACK_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef THINWIRE_KERNELS_CODED_LINEAR_UNPACK_INL_H_
#undef THINWIRE_KERNELS_CODED_LINEAR_UNPACK_INL_H_
#else
#define THINWIRE_KERNELS_CODED_LINEAR_UNPACK_INL_H_
#endif

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "hwy/highway.h"
#include "kernels/coded_linear/coded_layout.h"

HWY_BEFORE_NAMESPACE();
namespace thinwire {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

// One 32-bit lane for each row of a panel, or of a part of one: a number, or a quad, four columns
// as four bytes.
using DI32 = hn::ScalableTag<int32_t>;
using DU32 = hn::RebindToUnsigned<DI32>;
using DF32 = hn::RebindToFloat<DI32>;
using VI32 = hn::Vec<DI32>;
using VF32 = hn::Vec<DF32>;
using Quads = hn::Vec<DU32>;

// Vectors that make a panel.
inline constexpr int kLanes = static_cast<int>(hn::MaxLanes(DI32()));
inline constexpr int kPanelVectors = static_cast<int>(kPanelRows) / kLanes;

// Quads of a row in a block.
template <int kBits>
inline constexpr int kQuads = static_cast<int>(BlockColumns(kBits)) / 4;

HWY_INLINE Quads LoadQuads(const uint8_t* HWY_RESTRICT bytes) {
#if HWY_TARGET == HWY_SCALAR
  uint32_t quad;
  std::memcpy(&quad, bytes, sizeof(quad));
  return hn::Set(DU32(), quad);
#else
  return hn::BitCast(DU32(), hn::LoadU(hn::Repartition<uint8_t, DU32>(), bytes));
#endif
}

HWY_INLINE void StoreQuads(Quads quads, uint8_t* HWY_RESTRICT bytes) {
#if HWY_TARGET == HWY_SCALAR
  std::memcpy(bytes, &quads.raw, 4);
#else
  const hn::Repartition<uint8_t, DU32> d;
  hn::StoreU(hn::BitCast(d, quads), d, bytes);
#endif
}

// The next four codes of a row of x, in every lane.
HWY_INLINE Quads BroadcastQuad(const uint8_t* HWY_RESTRICT x) {
  uint32_t quad;
  std::memcpy(&quad, x, sizeof(quad));
  return hn::Set(DU32(), quad);
}

// The codes of a block, rows kLanes * v to kLanes * (v + 1): quads[j] has those of columns 4 j to
// 4 j + 3; 8-bit codes less 128.
template <int kBits>
HWY_INLINE void UnpackBlock(const uint8_t* HWY_RESTRICT block, int v, Quads* HWY_RESTRICT quads) {
  const DU32 du32;
  const Quads bytes = LoadQuads(block + 4 * kLanes * v);
  if constexpr (kBits == 8) {
    quads[0] = bytes;
  } else if constexpr (kBits == 4) {
    const Quads mask = hn::Set(du32, 0x0f0f0f0fu);
    quads[0] = hn::And(bytes, mask);
    quads[1] = hn::And(hn::ShiftRight<4>(bytes), mask);
  } else {
#if HWY_TARGET == HWY_AVX3 || HWY_TARGET == HWY_AVX3_DL
    // The upper eight rows have the upper four bits of the same bytes.
    const __m512i both =
        _mm512_broadcast_i64x4(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(block + 64)));
    const Quads high = {_mm512_srlv_epi64(both, _mm512_set_epi64(4, 4, 4, 4, 0, 0, 0, 0))};
#else
    const Quads loaded = LoadQuads(block + 64 + 4 * kLanes * v % 32);
    const Quads high = 4 * kLanes * v >= 32 ? hn::ShiftRight<4>(loaded) : loaded;
#endif
    const Quads three = hn::Set(du32, 0x03030303u);
    const Quads four = hn::Set(du32, 0x04040404u);
    const auto join = [&](Quads low_bits, Quads high_bit) HWY_ATTR {
      return hn::Or(hn::And(low_bits, three), hn::And(high_bit, four));
    };
    quads[0] = join(bytes, hn::ShiftLeft<2>(high));
    quads[1] = join(hn::ShiftRight<2>(bytes), hn::ShiftLeft<1>(high));
    quads[2] = join(hn::ShiftRight<4>(bytes), high);
    quads[3] = join(hn::ShiftRight<6>(bytes), hn::ShiftRight<1>(high));
  }
}

// Byte by byte.
HWY_INLINE Quads SubBytes(Quads a, Quads b) {
#if HWY_TARGET == HWY_SCALAR
  uint32_t difference = 0;
  for (int shift = 0; shift < 32; shift += 8) {
    difference |= (((a.raw >> shift) - (b.raw >> shift)) & 255) << shift;
  }
  return hn::Set(DU32(), difference);
#else
  const hn::Repartition<uint8_t, DU32> d;
  return hn::BitCast(DU32(), hn::Sub(hn::BitCast(d, a), hn::BitCast(d, b)));
#endif
}

// sum plus, in each lane, the products of the unsigned bytes of x and the signed bytes of w.
// kNarrow: those are from -64 to 64.
template <bool kNarrow>
HWY_INLINE VI32 AddDot(VI32 sum, Quads x, Quads w) {
#if HWY_TARGET == HWY_AVX3_DL
  // All processors of this target have the instruction, but Highway 1.0.3 does not say so to the
  // compiler, which then refuses the intrinsic.
  asm("vpdpbusd %2, %1, %0" : "+v"(sum.raw) : "v"(x.raw), "vm"(w.raw));
  return sum;
#elif HWY_TARGET == HWY_SCALAR
  int32_t dot = 0;
  for (int shift = 0; shift < 32; shift += 8) {
    dot += static_cast<int32_t>(x.raw >> shift & 255) * static_cast<int8_t>(w.raw >> shift & 255);
  }
  return hn::Add(sum, hn::Set(DI32(), dot));
#else
#if HWY_TARGET == HWY_AVX3
  if constexpr (kNarrow) {
    const __m512i pairs = _mm512_maddubs_epi16(x.raw, w.raw);
    return VI32{_mm512_add_epi32(sum.raw, _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)))};
  }
#elif HWY_TARGET == HWY_AVX2
  if constexpr (kNarrow) {
    const __m256i pairs = _mm256_maddubs_epi16(x.raw, w.raw);
    return VI32{_mm256_add_epi32(sum.raw, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))};
  }
#endif
  const hn::Repartition<int16_t, DI32> di16;
  const DI32 di32;
  const auto x16 = hn::BitCast(di16, x);
  const auto w16 = hn::BitCast(di16, w);
  const auto x_even = hn::And(x16, hn::Set(di16, int16_t{255}));
  const auto x_odd = hn::BitCast(di16, hn::And(hn::ShiftRight<8>(x), hn::Set(DU32(), 0x00ff00ffu)));
  const auto w_even = hn::ShiftRight<8>(hn::ShiftLeft<8>(w16));
  const auto w_odd = hn::ShiftRight<8>(w16);
  // A product fits into 16 bits, the sum of two does not.
  const auto even = hn::BitCast(di32, hn::Mul(x_even, w_even));
  const auto odd = hn::BitCast(di32, hn::Mul(x_odd, w_odd));
  const auto upper = hn::Add(hn::ShiftRight<16>(even), hn::ShiftRight<16>(odd));
  const auto lower = hn::Add(hn::ShiftRight<16>(hn::ShiftLeft<16>(even)),
                             hn::ShiftRight<16>(hn::ShiftLeft<16>(odd)));
  return hn::Add(sum, hn::Add(upper, lower));
#endif
}

// zeros: those of a panel's rows in one group. What to subtract from the codes of UnpackBlock.
template <int kBits>
HWY_INLINE VI32 LoadZeros(const uint8_t* HWY_RESTRICT zeros, int v) {
  const hn::Rebind<uint8_t, DI32> d8;
  const VI32 loaded = hn::PromoteTo(DI32(), hn::LoadU(d8, zeros + kLanes * v));
  return kBits == 8 ? hn::Sub(loaded, hn::Set(DI32(), 128)) : loaded;
}

// Zeros as AddPairs takes them: both halves of a lane.
HWY_INLINE VI32 PairOfZeros(VI32 zeros) {
  const VI32 lower = hn::And(zeros, hn::Set(DI32(), 0xffff));
  return hn::Or(lower, hn::ShiftLeft<16>(zeros));
}

// sum plus, in each lane, the products of the lower and of the upper 16 bits of a and b, signed.
HWY_INLINE VI32 AddPairs(VI32 sum, VI32 a, VI32 b) {
#if HWY_TARGET == HWY_AVX3_DL
  asm("vpdpwssd %2, %1, %0" : "+v"(sum.raw) : "v"(a.raw), "vm"(b.raw));  // as in AddDot
  return sum;
#elif HWY_TARGET == HWY_AVX3
  return VI32{_mm512_add_epi32(sum.raw, _mm512_madd_epi16(a.raw, b.raw))};
#elif HWY_TARGET == HWY_AVX2
  return VI32{_mm256_add_epi32(sum.raw, _mm256_madd_epi16(a.raw, b.raw))};
#else
  const auto lower = [](VI32 v) HWY_ATTR { return hn::ShiftRight<16>(hn::ShiftLeft<16>(v)); };
  const VI32 upper = hn::Mul(hn::ShiftRight<16>(a), hn::ShiftRight<16>(b));
  return hn::Add(sum, hn::Add(hn::Mul(lower(a), lower(b)), upper));
#endif
}

}  // namespace HWY_NAMESPACE
}  // namespace thinwire
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
