#include <algorithm>
#include <limits>

#include "kernels/activation/activation_internal.h"
#include "kernels/core/check.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/activation/activation_cpu.cc"
#include "hwy/foreach_target.h"
// After foreach_target.h.
#include "hwy/contrib/math/math-inl.h"
#include "hwy/highway.h"
#include "kernels/convert/convert_inl.h"

HWY_BEFORE_NAMESPACE();
namespace thinwire {
namespace HWY_NAMESPACE {

// exp(-v), v >= 0; 0 beyond v = 104, where it is below the smallest fp32 value.
template <class D, class V>
HWY_INLINE V ExpOfNegative(D d, V v) {
  return hn::Exp(d, hn::Max(hn::Neg(v), hn::Set(d, -105.0f)));
}

// -infinity, where the functions below would be -infinity * 0, stands for the smallest finite
// value.
template <class D, class V>
HWY_INLINE V WithoutNegativeInfinity(D d, V x) {
  const auto lowest = hn::Set(d, std::numeric_limits<float>::lowest());
  return hn::IfThenElse(hn::Lt(x, lowest), lowest, x);
}

// x / (1 + exp(-v)), where v has the sign of x: the exponential is of -|v|, so that it cannot
// overflow.
template <class D, class V>
HWY_INLINE V TimesLogistic(D d, V x, V v) {
  const auto one = hn::Set(d, 1.0f);
  const auto e = ExpOfNegative(d, hn::Abs(v));
  const auto numerator = hn::IfThenElse(hn::Lt(x, hn::Zero(d)), e, one);
  return hn::Mul(x, hn::Div(numerator, hn::Add(one, e)));
}

struct Relu {
  template <class D, class V>
  HWY_INLINE V operator()(D d, V x) const {
    return hn::IfThenElse(hn::Lt(x, hn::Zero(d)), hn::Zero(d), x);  // keeps NaN
  }
};

struct Silu {
  template <class D, class V>
  HWY_INLINE V operator()(D d, V x) const {
    x = WithoutNegativeInfinity(d, x);
    return TimesLogistic(d, x, x);
  }
};

struct GeluTanh {
  template <class D, class V>
  HWY_INLINE V operator()(D d, V x) const {
    x = WithoutNegativeInfinity(d, x);
    // (1 + tanh(u)) / 2 = 1 / (1 + exp(-2u)), 2u = 2 sqrt(2/pi) (x + 0.044715 x^3).
    const auto factor = hn::MulAdd(hn::Mul(x, x), hn::Set(d, 0.044715f), hn::Set(d, 1.0f));
    return TimesLogistic(d, x, hn::Mul(hn::Mul(x, hn::Set(d, 1.595769122f)), factor));
  }
};

struct Gelu {
  // x * (1 - q) or, for negative x, x * q, with q the normal tail beyond |x|. The ratio of q to
  // exp(-x^2 / 2) is t * polynomial(t), t = 1 / (1 + 0.3 |x|): minimax in relative error, 3.5e-9,
  // fitted on 0 <= |x| <= 14.5, where the exponential reaches zero.
  template <class D, class V>
  HWY_INLINE V operator()(D d, V x) const {
    x = WithoutNegativeInfinity(d, x);
    const auto one = hn::Set(d, 1.0f);
    const auto t = hn::Div(one, hn::MulAdd(hn::Set(d, 0.3f), hn::Abs(x), one));
    auto p = hn::Set(d, -2.062346955e-02f);
    for (const float coefficient : {1.124356157e-01f, -2.282136056e-01f, 1.917845421e-01f,
                                    -7.942349715e-02f, 9.615683575e-02f, 7.838964842e-02f,
                                    1.102354250e-01f, 1.195718138e-01f, 1.196866898e-01f}) {
      p = hn::MulAdd(p, t, hn::Set(d, coefficient));
    }
    const auto e = ExpOfNegative(d, hn::Mul(hn::Mul(x, x), hn::Set(d, 0.5f)));
    const auto q = hn::Mul(e, hn::Mul(t, p));
    return hn::Mul(x, hn::IfThenElse(hn::Lt(x, hn::Zero(d)), q, hn::Sub(one, q)));
  }
};

// out = f(gate), or f(gate) * up where up is not null.
template <typename T, class F>
void Apply(F f, const T* gate, const T* up, T* out, int64_t n) {
  const hn::ScalableTag<float> d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  int64_t i = 0;
  for (; i + lanes <= n; i += lanes) {
    auto y = f(d, LoadFloats(d, gate + i));
    if (up != nullptr) y = hn::Mul(y, LoadFloats(d, up + i));
    StoreFloats(d, y, out + i);
  }
  if (i < n) {
    const auto rest = static_cast<size_t>(n - i);
    auto y = f(d, LoadFloatsPartial(d, gate + i, rest));
    if (up != nullptr) y = hn::Mul(y, LoadFloatsPartial(d, up + i, rest));
    StoreFloatsPartial(d, y, out + i, rest);
  }
}

template <typename T, class F>
void ApplyToPieces(F f, const GatedActivationArgs& args, int64_t begin, int64_t end) {
  const int64_t width = args.out.dim(1);
  const int64_t pieces_per_row = (width + kPieceWidth - 1) / kPieceWidth;
  for (int64_t piece = begin; piece < end; ++piece) {
    const int64_t row = piece / pieces_per_row;
    const int64_t column = piece % pieces_per_row * kPieceWidth;
    const T* up =
        args.up.empty() ? nullptr : args.up.data<T>() + row * args.up.row_stride() + column;
    Apply(f, args.gate.data<T>() + row * args.gate.row_stride() + column, up,
          args.out.mutable_data<T>() + row * args.out.row_stride() + column,
          std::min(kPieceWidth, width - column));
  }
}

template <typename T>
void ActivatePiecesOf(const GatedActivationArgs& args, int64_t begin, int64_t end) {
  switch (args.kind) {
    case ActivationKind::kRelu:
      return ApplyToPieces<T>(Relu(), args, begin, end);
    case ActivationKind::kSilu:
      return ApplyToPieces<T>(Silu(), args, begin, end);
    case ActivationKind::kGelu:
      return ApplyToPieces<T>(Gelu(), args, begin, end);
    case ActivationKind::kGeluTanh:
      return ApplyToPieces<T>(GeluTanh(), args, begin, end);
  }
}

void ActivatePieces(const GatedActivationArgs& args, int64_t begin, int64_t end) {
  switch (args.out.dtype()) {
    case DType::kF32:
      return ActivatePiecesOf<float>(args, begin, end);
    case DType::kF16:
      return ActivatePiecesOf<Half>(args, begin, end);
    case DType::kBF16:
      return ActivatePiecesOf<BFloat16>(args, begin, end);
    default:
      TW_CHECK(IsFloat(args.out.dtype()));
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace thinwire
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace thinwire {
namespace {

HWY_EXPORT(ActivatePieces);

// Below this many elements, waking another thread costs more than it saves.
constexpr int64_t kElementsPerThread = 8192;

}  // namespace

void ActivationCpu(const GatedActivationArgs& args, Stream& stream) {
  const int64_t width = args.out.dim(1);
  const int64_t pieces_per_row = (width + kPieceWidth - 1) / kPieceWidth;
  const int64_t grain = std::max<int64_t>(1, kElementsPerThread / std::min(width, kPieceWidth));
  stream.pool().ParallelFor(args.out.dim(0) * pieces_per_row, grain,
                            [&](int64_t begin, int64_t end) {
                              HWY_DYNAMIC_DISPATCH(ActivatePieces)(args, begin, end);
                            });
}

}  // namespace thinwire
#endif  // HWY_ONCE
