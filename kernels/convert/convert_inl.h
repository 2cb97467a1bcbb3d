// fp32, fp16 and bf16 in memory as vectors of fp32, for CPU kernels. A Highway per-target header:
// include it after hwy/foreach_target.h, from files that are compiled once per target.

// Not #pragma once: each target sees the contents once.
#if defined(THINWIRE_KERNELS_CONVERT_CONVERT_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef THINWIRE_KERNELS_CONVERT_CONVERT_INL_H_
#undef THINWIRE_KERNELS_CONVERT_CONVERT_INL_H_
#else
#define THINWIRE_KERNELS_CONVERT_CONVERT_INL_H_
#endif

#include <cstddef>
#include <cstdint>

#include "hwy/highway.h"
#include "kernels/core/float16.h"

// Whether the target converts fp16 in hardware.
#undef THINWIRE_TARGET_HAS_F16C
#if (HWY_TARGET == HWY_AVX2 || HWY_TARGET == HWY_AVX3 || HWY_TARGET == HWY_AVX3_DL) && \
    !defined(HWY_DISABLE_F16C)
#define THINWIRE_TARGET_HAS_F16C 1
#else
#define THINWIRE_TARGET_HAS_F16C 0
#endif

HWY_BEFORE_NAMESPACE();
namespace thinwire {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

// The 16-bit patterns of Lanes(d) values, zero-extended. `from` needs no alignment.
template <class D>
HWY_INLINE hn::Vec<hn::RebindToUnsigned<D>> LoadBits16(D, const uint16_t* HWY_RESTRICT from) {
  const hn::Rebind<uint16_t, D> d16;
  const hn::RebindToUnsigned<D> d32;
  return hn::PromoteTo(d32, hn::LoadU(d16, from));
}

// Lanes(d) values at `from`, as fp32. d: a tag of float vectors. Exact, except that a signalling
// NaN in fp16 may become quiet.
template <class D>
HWY_INLINE hn::Vec<D> LoadFloats(D d, const float* HWY_RESTRICT from) {
  return hn::LoadU(d, from);
}

template <class D>
HWY_INLINE hn::Vec<D> LoadFloats(D d, const BFloat16* HWY_RESTRICT from) {
  const auto bits = LoadBits16(d, reinterpret_cast<const uint16_t*>(from));
  return hn::BitCast(d, hn::ShiftLeft<16>(bits));
}

template <class D>
HWY_INLINE hn::Vec<D> LoadFloats(D d, const Half* HWY_RESTRICT from) {
#if THINWIRE_TARGET_HAS_F16C
  const hn::Rebind<hwy::float16_t, D> d16;
  return hn::PromoteTo(d, hn::LoadU(d16, reinterpret_cast<const hwy::float16_t*>(from)));
#else
  const hn::RebindToUnsigned<D> du;
  const hn::RebindToSigned<D> di;
  const auto bits = LoadBits16(d, reinterpret_cast<const uint16_t*>(from));
  const auto sign = hn::ShiftLeft<16>(hn::And(bits, hn::Set(du, 0x8000u)));
  const auto magnitude = hn::And(bits, hn::Set(du, 0x7fffu));
  const auto shifted = hn::ShiftLeft<13>(magnitude);
  const auto normal = hn::Add(shifted, hn::Set(du, 112u << 23));
  const auto infinite = hn::Or(shifted, hn::Set(du, 0x7f800000u));
  const auto subnormal =
      hn::Mul(hn::ConvertTo(d, hn::BitCast(di, magnitude)), hn::Set(d, 0x1p-24f));
  const auto signed_magnitude = hn::BitCast(di, magnitude);
  const auto is_subnormal = hn::Lt(signed_magnitude, hn::Set(di, 0x0400));
  const auto is_infinite = hn::Gt(signed_magnitude, hn::Set(di, 0x7bff));
  auto result = hn::IfThenElse(hn::RebindMask(du, is_infinite), infinite, normal);
  result = hn::IfThenElse(hn::RebindMask(du, is_subnormal), hn::BitCast(du, subnormal), result);
  return hn::BitCast(d, hn::Or(result, sign));
#endif
}

// The same for the first `count` < Lanes(d) values; the other lanes are zero and nothing beyond
// `count` values is read.
template <class D, typename T>
HWY_INLINE hn::Vec<D> LoadFloatsPartial(D d, const T* HWY_RESTRICT from, size_t count) {
  HWY_ALIGN T padded[HWY_MAX_BYTES / sizeof(float)] = {};
  for (size_t i = 0; i < count; ++i) padded[i] = from[i];
  return LoadFloats(d, padded);
}

// Stores 16-bit patterns held in 32-bit lanes.
template <class D>
HWY_INLINE void StoreBits16(D, hn::Vec<hn::RebindToUnsigned<D>> bits, uint16_t* HWY_RESTRICT to) {
  const hn::Rebind<uint16_t, D> d16;
  const hn::RebindToSigned<D> di;
  hn::StoreU(hn::DemoteTo(d16, hn::BitCast(di, bits)), d16, to);
}

// Stores Lanes(d) values, rounded to nearest even; bit for bit ToHalf and ToBFloat16 of
// core/float16.h.
template <class D>
HWY_INLINE void StoreFloats(D d, hn::Vec<D> values, float* HWY_RESTRICT to) {
  hn::StoreU(values, d, to);
}

template <class D>
HWY_INLINE void StoreFloats(D d, hn::Vec<D> values, BFloat16* HWY_RESTRICT to) {
  // Highway's own demotion to bf16 truncates.
  const hn::RebindToUnsigned<D> du;
  const auto bits = hn::BitCast(du, values);
  const auto upper = hn::ShiftRight<16>(bits);
  const auto odd = hn::And(upper, hn::Set(du, 1u));
  const auto rounded = hn::ShiftRight<16>(hn::Add(bits, hn::Add(odd, hn::Set(du, 0x7fffu))));
  const auto quiet = hn::Or(upper, hn::Set(du, 0x40u));
  const auto is_nan = hn::RebindMask(du, hn::IsNaN(values));
  StoreBits16(d, hn::IfThenElse(is_nan, quiet, rounded), reinterpret_cast<uint16_t*>(to));
}

template <class D>
HWY_INLINE void StoreFloats(D d, hn::Vec<D> values, Half* HWY_RESTRICT to) {
#if THINWIRE_TARGET_HAS_F16C
  const hn::Rebind<hwy::float16_t, D> d16;
  hn::StoreU(hn::DemoteTo(d16, values), d16, reinterpret_cast<hwy::float16_t*>(to));
#else
  // The steps of ToHalf, all cases computed and the right one selected.
  const hn::RebindToUnsigned<D> du;
  const hn::RebindToSigned<D> di;
  const auto bits = hn::BitCast(du, values);
  const auto magnitude = hn::And(bits, hn::Set(du, 0x7fffffffu));
  const auto sign = hn::ShiftRight<16>(hn::Xor(bits, magnitude));
  const auto odd = hn::And(hn::ShiftRight<13>(magnitude), hn::Set(du, 1u));
  const auto rounded = hn::Add(magnitude, hn::Add(odd, hn::Set(du, 0xfffu)));
  const auto normal = hn::ShiftRight<13>(hn::Sub(rounded, hn::Set(du, 0x38000000u)));
  const auto aligned = hn::Add(hn::BitCast(d, magnitude), hn::Set(d, 0.5f));
  const auto tiny = hn::Sub(hn::BitCast(du, aligned), hn::Set(du, 0x3f000000u));
  const auto payload = hn::And(hn::ShiftRight<13>(magnitude), hn::Set(du, 0x3ffu));
  const auto nan = hn::Or(payload, hn::Set(du, 0x7e00u));
  const auto m = hn::BitCast(di, magnitude);
  const auto is_tiny = hn::RebindMask(du, hn::Lt(m, hn::Set(di, 0x38800000)));
  const auto is_large = hn::RebindMask(du, hn::Gt(m, hn::Set(di, 0x477fefff)));
  const auto is_nan = hn::RebindMask(du, hn::Gt(m, hn::Set(di, 0x7f800000)));
  auto result = hn::IfThenElse(is_tiny, tiny, normal);
  result = hn::IfThenElse(is_large, hn::Set(du, 0x7c00u), result);
  result = hn::IfThenElse(is_nan, nan, result);
  StoreBits16(d, hn::Or(result, sign), reinterpret_cast<uint16_t*>(to));
#endif
}

// The same for the first `count` < Lanes(d) values.
template <class D, typename T>
HWY_INLINE void StoreFloatsPartial(D d, hn::Vec<D> values, T* HWY_RESTRICT to, size_t count) {
  HWY_ALIGN T padded[HWY_MAX_BYTES / sizeof(float)];
  StoreFloats(d, values, padded);
  for (size_t i = 0; i < count; ++i) to[i] = padded[i];
}

// Calls body(i, count, load) for columns [i, i + count) of a row, a vector or what is left at the
// end; load(p) gives the values at p[i] on, any zeros beyond count.
template <class Body>
HWY_INLINE void ForEachVector(int64_t n, Body body) {
  const hn::ScalableTag<float> d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  int64_t i = 0;
  for (; i + lanes <= n; i += lanes) {
    body(i, static_cast<size_t>(lanes),
         [d, i](const auto* p) HWY_ATTR { return LoadFloats(d, p + i); });
  }
  if (i < n) {
    const auto rest = static_cast<size_t>(n - i);
    body(i, rest,
         [d, i, rest](const auto* p) HWY_ATTR { return LoadFloatsPartial(d, p + i, rest); });
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace thinwire
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
