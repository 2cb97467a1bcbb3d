#include <cstring>

#include "kernels/convert/convert.h"
#include "kernels/core/check.h"
#include "kernels/core/float16.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/convert/convert_cpu.cc"
#include "hwy/foreach_target.h"
// After foreach_target.h.
#include "hwy/highway.h"
#include "kernels/convert/convert_inl.h"

HWY_BEFORE_NAMESPACE();
namespace thinwire {
namespace HWY_NAMESPACE {

template <typename From, typename To>
void ConvertAll(const From* HWY_RESTRICT from, To* HWY_RESTRICT to, int64_t n) {
  const hn::ScalableTag<float> d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  int64_t i = 0;
  for (; i + lanes <= n; i += lanes) StoreFloats(d, LoadFloats(d, from + i), to + i);
  if (i < n) {
    const auto rest = static_cast<size_t>(n - i);
    StoreFloatsPartial(d, LoadFloatsPartial(d, from + i, rest), to + i, rest);
  }
}

void HalfToFloat(const Half* HWY_RESTRICT from, float* HWY_RESTRICT to, int64_t n) {
#if THINWIRE_TARGET_HAS_F16C
  // The hardware sets the quiet bit of a signalling NaN; the definition keeps it.
  const hn::ScalableTag<float> d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  int64_t i = 0;
  for (; i + lanes <= n; i += lanes) {
    const auto values = LoadFloats(d, from + i);
    hn::StoreU(values, d, to + i);
    if (!hn::AllFalse(d, hn::IsNaN(values))) [[unlikely]] {
      for (int64_t j = i; j < i + lanes; ++j) to[j] = ToFloat(from[j]);
    }
  }
  for (; i < n; ++i) to[i] = ToFloat(from[i]);
#else
  ConvertAll(from, to, n);
#endif
}

void BFloat16ToFloat(const BFloat16* HWY_RESTRICT from, float* HWY_RESTRICT to, int64_t n) {
  ConvertAll(from, to, n);
}

void FloatToHalf(const float* HWY_RESTRICT from, Half* HWY_RESTRICT to, int64_t n) {
  ConvertAll(from, to, n);
}

void FloatToBFloat16(const float* HWY_RESTRICT from, BFloat16* HWY_RESTRICT to, int64_t n) {
  ConvertAll(from, to, n);
}

}  // namespace HWY_NAMESPACE
}  // namespace thinwire
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace thinwire {
namespace {

HWY_EXPORT(HalfToFloat);
HWY_EXPORT(BFloat16ToFloat);
HWY_EXPORT(FloatToHalf);
HWY_EXPORT(FloatToBFloat16);

}  // namespace

void ConvertToFloat(const void* from, DType from_dtype, float* to, int64_t n) {
  switch (from_dtype) {
    case DType::kF32:
      if (n > 0) std::memcpy(to, from, static_cast<size_t>(n) * sizeof(float));
      return;
    case DType::kF16:
      HWY_DYNAMIC_DISPATCH(HalfToFloat)(static_cast<const Half*>(from), to, n);
      return;
    case DType::kBF16:
      HWY_DYNAMIC_DISPATCH(BFloat16ToFloat)(static_cast<const BFloat16*>(from), to, n);
      return;
    default:
      TW_CHECK(IsFloat(from_dtype));
  }
}

void ConvertFromFloat(const float* from, void* to, DType to_dtype, int64_t n) {
  switch (to_dtype) {
    case DType::kF32:
      if (n > 0) std::memcpy(to, from, static_cast<size_t>(n) * sizeof(float));
      return;
    case DType::kF16:
      HWY_DYNAMIC_DISPATCH(FloatToHalf)(from, static_cast<Half*>(to), n);
      return;
    case DType::kBF16:
      HWY_DYNAMIC_DISPATCH(FloatToBFloat16)(from, static_cast<BFloat16*>(to), n);
      return;
    default:
      TW_CHECK(IsFloat(to_dtype));
  }
}

}  // namespace thinwire
#endif  // HWY_ONCE
