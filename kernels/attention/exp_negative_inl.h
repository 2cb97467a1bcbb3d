// The exponential of a softmax. A Highway per-target header, as kernels/convert/convert_inl.h.

#if defined(THINWIRE_KERNELS_ATTENTION_EXP_NEGATIVE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef THINWIRE_KERNELS_ATTENTION_EXP_NEGATIVE_INL_H_
#undef THINWIRE_KERNELS_ATTENTION_EXP_NEGATIVE_INL_H_
#else
#define THINWIRE_KERNELS_ATTENTION_EXP_NEGATIVE_INL_H_
#endif

#include "hwy/contrib/math/math-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace thinwire {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

// exp(x) for x <= 0: error 1 ulp (Highway's Exp), but zero below 2^-124, where subnormal results
// would slow down what follows. NaN stays NaN.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V ExpNegative(D d, V x) {
  const V result = hn::Exp(d, hn::Max(x, hn::Set(d, -87.0f)));
  const V flushed = hn::IfThenZeroElse(hn::Lt(x, hn::Set(d, -86.0f)), result);
  return hn::IfThenElse(hn::IsNaN(x), x, flushed);
}

}  // namespace HWY_NAMESPACE
}  // namespace thinwire
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
