#include <algorithm>
#include <cmath>

#include "kernels/core/check.h"
#include "kernels/norm/norm_internal.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/norm/norm_cpu.cc"
#include "hwy/foreach_target.h"
// After foreach_target.h.
#include "hwy/highway.h"
#include "kernels/convert/convert_inl.h"

HWY_BEFORE_NAMESPACE();
namespace thinwire {
namespace HWY_NAMESPACE {

// row += delta, rounded to T.
template <typename T>
void AddRow(T* HWY_RESTRICT row, const T* HWY_RESTRICT delta, int64_t n) {
  const hn::ScalableTag<float> d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  int64_t i = 0;
  for (; i + lanes <= n; i += lanes) {
    StoreFloats(d, hn::Add(LoadFloats(d, row + i), LoadFloats(d, delta + i)), row + i);
  }
  if (i < n) {
    const auto rest = static_cast<size_t>(n - i);
    StoreFloatsPartial(
        d, hn::Add(LoadFloatsPartial(d, row + i, rest), LoadFloatsPartial(d, delta + i, rest)),
        row + i, rest);
  }
}

// The sum of term(x) over a row. Four accumulators per lane hide the latency of the additions and
// shorten the chains in which rounding errors add up.
template <typename T, class Term>
HWY_INLINE float SumOver(const T* HWY_RESTRICT row, int64_t n, Term term) {
  const hn::ScalableTag<float> d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  auto sum0 = hn::Zero(d);
  auto sum1 = hn::Zero(d);
  auto sum2 = hn::Zero(d);
  auto sum3 = hn::Zero(d);
  int64_t i = 0;
  for (; i + 4 * lanes <= n; i += 4 * lanes) {
    sum0 = hn::Add(sum0, term(LoadFloats(d, row + i)));
    sum1 = hn::Add(sum1, term(LoadFloats(d, row + i + lanes)));
    sum2 = hn::Add(sum2, term(LoadFloats(d, row + i + 2 * lanes)));
    sum3 = hn::Add(sum3, term(LoadFloats(d, row + i + 3 * lanes)));
  }
  for (; i + lanes <= n; i += lanes) sum0 = hn::Add(sum0, term(LoadFloats(d, row + i)));
  if (i < n) {
    const auto rest = static_cast<size_t>(n - i);
    const auto last = term(LoadFloatsPartial(d, row + i, rest));
    sum1 = hn::Add(sum1, hn::IfThenElseZero(hn::FirstN(d, rest), last));
  }
  const auto sum = hn::Add(hn::Add(sum0, sum1), hn::Add(sum2, sum3));
  return hn::GetLane(hn::SumOfLanes(d, sum));
}

// (x - mean) * scale * weight + bias; null weight and bias are ones and zeros.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V ScaleAndShift(V x, V mean, V scale, V weight, V bias) {
  return hn::MulAdd(hn::Mul(hn::Sub(x, mean), scale), weight, bias);
}

template <typename T>
void NormRow(NormKind kind, const T* row, const float* HWY_RESTRICT weight,
             const float* HWY_RESTRICT bias, float epsilon, T* out, int64_t n) {
  const hn::ScalableTag<float> d;
  using D = decltype(d);
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const auto count = static_cast<float>(n);
  float mean = 0.0f;
  if (kind == NormKind::kLayerNorm) {
    mean = SumOver(row, n, [](auto x) HWY_ATTR { return x; }) / count;
  }
  const auto means = hn::Set(d, mean);
  // From differences: mean(x^2) - mean^2 cancels where channels have a common offset.
  const float variance = SumOver(row, n,
                                 [&](auto x) HWY_ATTR {
                                   const auto difference = hn::Sub(x, means);
                                   return hn::Mul(difference, difference);
                                 }) /
                         count;
  const auto scale = hn::Set(d, 1.0f / std::sqrt(variance + epsilon));
  const auto one = hn::Set(d, 1.0f);
  const auto zero = hn::Zero(d);
  int64_t i = 0;
  for (; i + lanes <= n; i += lanes) {
    const auto w = weight == nullptr ? one : hn::LoadU(d, weight + i);
    const auto b = bias == nullptr ? zero : hn::LoadU(d, bias + i);
    StoreFloats(d, ScaleAndShift<D>(LoadFloats(d, row + i), means, scale, w, b), out + i);
  }
  if (i < n) {
    const auto rest = static_cast<size_t>(n - i);
    const auto w = weight == nullptr ? one : LoadFloatsPartial(d, weight + i, rest);
    const auto b = bias == nullptr ? zero : LoadFloatsPartial(d, bias + i, rest);
    const auto x = LoadFloatsPartial(d, row + i, rest);
    StoreFloatsPartial(d, ScaleAndShift<D>(x, means, scale, w, b), out + i, rest);
  }
}

template <typename T>
void NormRowsOf(const NormArgs& args, int64_t begin, int64_t end) {
  const int64_t hidden = args.x.dim(1);
  const float* weight = args.weight.empty() ? nullptr : args.weight.data<float>();
  const float* bias = args.bias.empty() ? nullptr : args.bias.data<float>();
  for (int64_t t = begin; t < end; ++t) {
    T* row = args.x.mutable_data<T>() + t * args.x.row_stride();
    if (!args.delta.empty()) {
      AddRow(row, args.delta.data<T>() + t * args.delta.row_stride(), hidden);
    }
    NormRow(args.kind, row, weight, bias, args.epsilon,
            args.out.mutable_data<T>() + t * args.out.row_stride(), hidden);
  }
}

void NormRows(const NormArgs& args, int64_t begin, int64_t end) {
  switch (args.x.dtype()) {
    case DType::kF32:
      return NormRowsOf<float>(args, begin, end);
    case DType::kF16:
      return NormRowsOf<Half>(args, begin, end);
    case DType::kBF16:
      return NormRowsOf<BFloat16>(args, begin, end);
    default:
      TW_CHECK(IsFloat(args.x.dtype()));
  }
}

template <typename T>
void AddRowsOf(const TensorView& x, const ConstTensorView& delta, int64_t begin, int64_t end) {
  for (int64_t t = begin; t < end; ++t) {
    AddRow(x.mutable_data<T>() + t * x.row_stride(), delta.data<T>() + t * delta.row_stride(),
           x.dim(1));
  }
}

void AddRows(const TensorView& x, const ConstTensorView& delta, int64_t begin, int64_t end) {
  switch (x.dtype()) {
    case DType::kF32:
      return AddRowsOf<float>(x, delta, begin, end);
    case DType::kF16:
      return AddRowsOf<Half>(x, delta, begin, end);
    case DType::kBF16:
      return AddRowsOf<BFloat16>(x, delta, begin, end);
    default:
      TW_CHECK(IsFloat(x.dtype()));
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace thinwire
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace thinwire {
namespace {

HWY_EXPORT(NormRows);
HWY_EXPORT(AddRows);

// Below this many elements, waking another thread costs more than it saves.
constexpr int64_t kElementsPerThread = 32768;

}  // namespace

void NormCpu(const NormArgs& args, Stream& stream) {
  const int64_t grain = std::max<int64_t>(1, kElementsPerThread / args.x.dim(1));
  stream.pool().ParallelFor(args.x.dim(0), grain, [&](int64_t begin, int64_t end) {
    HWY_DYNAMIC_DISPATCH(NormRows)(args, begin, end);
  });
}

void AddInPlaceCpu(const TensorView& x, const ConstTensorView& delta, Stream& stream) {
  const int64_t grain = std::max<int64_t>(1, kElementsPerThread / x.dim(1));
  stream.pool().ParallelFor(x.dim(0), grain, [&](int64_t begin, int64_t end) {
    HWY_DYNAMIC_DISPATCH(AddRows)(x, delta, begin, end);
  });
}

}  // namespace thinwire
#endif  // HWY_ONCE
