// Groups of values in vectors: loading, rotating and storing them. A Highway per-target header:
// include it after hwy/foreach_target.h.

// Not #pragma once: each target sees the contents once.
#if defined(THINWIRE_KERNELS_GROUP_CODES_GROUP_CODES_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef THINWIRE_KERNELS_GROUP_CODES_GROUP_CODES_INL_H_
#undef THINWIRE_KERNELS_GROUP_CODES_GROUP_CODES_INL_H_
#else
#define THINWIRE_KERNELS_GROUP_CODES_GROUP_CODES_INL_H_
#endif

#include <cstdint>

#include "hwy/highway.h"
#include "kernels/convert/convert_inl.h"
#include "kernels/core/tensor_view.h"

HWY_BEFORE_NAMESPACE();
namespace thinwire {
namespace HWY_NAMESPACE {

#if HWY_TARGET != HWY_SCALAR

using F = hn::ScalableTag<float>;
using I = hn::RebindToSigned<F>;
using U8 = hn::Rebind<uint8_t, F>;
using V = hn::Vec<F>;
using VI = hn::Vec<I>;

constexpr int64_t kLanes = hn::MaxLanes(F());
static_assert(HWY_NATIVE_FMA);
static_assert(kLanes == 4 || kLanes == 8 || kLanes == 16);

// A group of kSize values.
template <int64_t kSize>
inline constexpr int64_t kVectors = kSize / kLanes;

template <int64_t kSize>
constexpr float RootOfInverse() {
  return kSize == 16   ? 0.25f
         : kSize == 32 ? 0.17677669529663689f
         : kSize == 64 ? 0.125f
                       : 0.088388347648318447f;
}

// u[i ^ h], for h < kLanes.
template <int64_t kDistance>
HWY_INLINE V Partner(V v) {
  if constexpr (kDistance == 1) {
    return hn::Shuffle2301(v);
  } else if constexpr (kDistance == 2) {
    return hn::Shuffle1032(v);
  } else if constexpr (2 * kDistance == kLanes) {
    return hn::ConcatLowerUpper(F(), v, v);
  } else {
    return hn::SwapAdjacentBlocks(v);
  }
}

template <int64_t kSize, int64_t kDistance>
HWY_INLINE void RotationStage(V (&u)[kVectors<kSize>]) {
  if constexpr (kDistance < kLanes) {
    HWY_ALIGN static constexpr float kSigns[2] = {1.0f, -1.0f};
    HWY_ALIGN float signs[kLanes];
    for (int64_t i = 0; i < kLanes; ++i) signs[i] = kSigns[(i & kDistance) != 0];
    const V sign = hn::Load(F(), signs);
    // Fused or not: a product with 1 or -1 is exact.
    for (V& v : u) v = hn::MulAdd(v, sign, Partner<kDistance>(v));
  } else {
    constexpr int64_t kStep = kDistance / kLanes;
    for (int64_t i = 0; i < kVectors<kSize>; ++i) {
      if ((i & kStep) != 0) continue;
      const V sum = hn::Add(u[i], u[i + kStep]);
      u[i + kStep] = hn::Sub(u[i], u[i + kStep]);
      u[i] = sum;
    }
  }
}

// sqrt(kSize) H u.
template <int64_t kSize, int64_t kDistance = 1>
HWY_INLINE void Rotate(V (&u)[kVectors<kSize>]) {
  if constexpr (kDistance < kSize) {
    RotationStage<kSize, kDistance>(u);
    Rotate<kSize, 2 * kDistance>(u);
  }
}

// `element`: of the whole tensor.
template <int64_t kSize>
HWY_INLINE void LoadGroup(const ConstTensorView& from, int64_t element, V (&u)[kVectors<kSize>]) {
  const F d;
  if (from.dtype() == DType::kF32) {
    const float* const p = static_cast<const float*>(from.raw()) + element;
    for (int64_t i = 0; i < kVectors<kSize>; ++i) u[i] = LoadFloats(d, p + i * kLanes);
  } else if (from.dtype() == DType::kF16) {
    const Half* const p = static_cast<const Half*>(from.raw()) + element;
    for (int64_t i = 0; i < kVectors<kSize>; ++i) u[i] = LoadFloats(d, p + i * kLanes);
  } else {
    const BFloat16* const p = static_cast<const BFloat16*>(from.raw()) + element;
    for (int64_t i = 0; i < kVectors<kSize>; ++i) u[i] = LoadFloats(d, p + i * kLanes);
  }
}

template <int64_t kSize>
HWY_INLINE void StoreGroup(const TensorView& to, int64_t element, const V (&u)[kVectors<kSize>]) {
  const F d;
  if (to.dtype() == DType::kF32) {
    float* const p = static_cast<float*>(to.mutable_raw()) + element;
    for (int64_t i = 0; i < kVectors<kSize>; ++i) StoreFloats(d, u[i], p + i * kLanes);
  } else if (to.dtype() == DType::kF16) {
    Half* const p = static_cast<Half*>(to.mutable_raw()) + element;
    for (int64_t i = 0; i < kVectors<kSize>; ++i) StoreFloats(d, u[i], p + i * kLanes);
  } else {
    BFloat16* const p = static_cast<BFloat16*>(to.mutable_raw()) + element;
    for (int64_t i = 0; i < kVectors<kSize>; ++i) StoreFloats(d, u[i], p + i * kLanes);
  }
}

// The bits of the largest |u|: as integers, NaN is above infinity, and both are above all else.
template <int64_t kSize>
HWY_INLINE uint32_t LargestMagnitude(const V (&u)[kVectors<kSize>]) {
  const I di;
  VI largest = hn::Zero(di);
  for (const V& v : u) largest = hn::Max(largest, hn::BitCast(di, hn::Abs(v)));
  return static_cast<uint32_t>(hn::GetLane(hn::MaxOfLanes(di, largest)));
}

// table[index[i]], 0 <= index < 8.
struct EightFloats {
  explicit EightFloats(const float* HWY_RESTRICT table) {
    const F d;
    if constexpr (kLanes >= 8) {
      HWY_ALIGN float twice[16];
      for (int i = 0; i < 16; ++i) twice[i] = table[i % 8];
      low = high = hn::Load(d, twice);
    } else {
      low = hn::LoadU(d, table);
      high = hn::LoadU(d, table + 4);
    }
  }

  HWY_INLINE V operator[](VI index) const {
    const F d;
    const I di;
    if constexpr (kLanes >= 8) {
      return hn::TableLookupLanes(low, hn::IndicesFromVec(d, index));
    } else {
      const auto lane = hn::IndicesFromVec(d, hn::And(index, hn::Set(di, 3)));
      const auto is_high = hn::RebindMask(d, hn::Gt(index, hn::Set(di, 3)));
      return hn::IfThenElse(is_high, hn::TableLookupLanes(high, lane),
                            hn::TableLookupLanes(low, lane));
    }
  }

  V low, high;
};

#endif  // HWY_TARGET != HWY_SCALAR

}  // namespace HWY_NAMESPACE
}  // namespace thinwire
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
