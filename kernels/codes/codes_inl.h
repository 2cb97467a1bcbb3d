// Vectors of fp32 as codes of one byte, for CPU kernels. A Highway per-target header: include it
// after hwy/foreach_target.h.

// Not #pragma once: each target sees the contents once.
#if defined(THINWIRE_KERNELS_CODES_CODES_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef THINWIRE_KERNELS_CODES_CODES_INL_H_
#undef THINWIRE_KERNELS_CODES_CODES_INL_H_
#else
#define THINWIRE_KERNELS_CODES_CODES_INL_H_
#endif

#include <cstddef>
#include <cstdint>

#include "hwy/highway.h"
#include "kernels/convert/convert_inl.h"

HWY_BEFORE_NAMESPACE();
namespace thinwire {
namespace HWY_NAMESPACE {

// `count` bytes, at most Lanes(d), as floats; zeros beyond.
template <class D>
HWY_INLINE hn::Vec<D> LoadMaxCodes(D d, const uint8_t* HWY_RESTRICT from, size_t count) {
  const hn::RebindToSigned<D> di;
  const hn::Rebind<uint8_t, D> d8;
  if (count == hn::Lanes(d)) return hn::ConvertTo(d, hn::PromoteTo(di, hn::LoadU(d8, from)));
  HWY_ALIGN uint8_t padded[HWY_MAX_BYTES / sizeof(float)] = {};
  for (size_t i = 0; i < count; ++i) padded[i] = from[i];
  return hn::ConvertTo(d, hn::PromoteTo(di, hn::LoadU(d8, padded)));
}

// clamp(round(value), 0, max_code), halves to even; any code for NaN.
template <class D>
HWY_INLINE hn::Vec<hn::RebindToSigned<D>> RoundCodes(D d, hn::Vec<D> value, hn::Vec<D> max_code) {
  // The bounds are whole numbers: clamping first gives the same and converts no large number. A NaN
  // is lost in one of the two operations on some targets, on others becomes the bound of a
  // conversion.
  return hn::NearestInt(hn::Min(hn::Max(value, hn::Zero(d)), max_code));
}

// Stores `count`, at most Lanes(d), codes for values.
template <class D>
HWY_INLINE void StoreCodes(D d, hn::Vec<D> values, const uint8_t* HWY_RESTRICT max_codes,
                           uint8_t* HWY_RESTRICT to, size_t count) {
  const hn::Rebind<uint8_t, D> d8;
  const auto codes = hn::DemoteTo(d8, RoundCodes(d, values, LoadMaxCodes(d, max_codes, count)));
  if (count == hn::Lanes(d)) {
    hn::StoreU(codes, d8, to);
    return;
  }
  HWY_ALIGN uint8_t padded[HWY_MAX_BYTES / sizeof(float)];
  hn::StoreU(codes, d8, padded);
  for (size_t i = 0; i < count; ++i) to[i] = padded[i];
}

}  // namespace HWY_NAMESPACE
}  // namespace thinwire
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
