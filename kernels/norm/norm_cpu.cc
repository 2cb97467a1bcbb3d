#include <algorithm>
#include <cmath>
#include <cstddef>

#include "absl/functional/function_ref.h"
#include "kernels/core/check.h"
#include "kernels/core/status_macros.h"
#include "kernels/norm/norm_internal.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/norm/norm_cpu.cc"
#include "hwy/foreach_target.h"
// After foreach_target.h.
#include "hwy/highway.h"
#include "kernels/codes/codes_inl.h"
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

// What a row is normalised with: (x - mean) * scale.
struct Moments {
  float mean;
  float scale;
};

template <typename T>
Moments RowMoments(NormKind kind, const T* HWY_RESTRICT row, float epsilon, int64_t n) {
  const hn::ScalableTag<float> d;
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
  return {mean, 1.0f / std::sqrt(variance + epsilon)};
}

// The normalised row, before weight and bias.
template <typename T>
void NormaliseRow(const T* HWY_RESTRICT row, const Moments& moments, float* HWY_RESTRICT to,
                  int64_t n) {
  const hn::ScalableTag<float> d;
  const auto mean = hn::Set(d, moments.mean);
  const auto scale = hn::Set(d, moments.scale);
  ForEachVector(n, [&](int64_t i, size_t count, auto load) HWY_ATTR {
    const auto value = hn::Mul(hn::Sub(load(row), mean), scale);
    if (count == hn::Lanes(d)) {
      hn::StoreU(value, d, to + i);
    } else {
      StoreFloatsPartial(d, value, to + i, count);
    }
  });
}

// Calls body(j, count, load, y) as ForEachVector does, with y[j] the normalised row[order[j]], or
// row[j] without an order. scratch: [n], with an order.
template <typename T, class Body>
HWY_INLINE void ForEachNormalised(const T* row, const Moments& moments,
                                  const int32_t* HWY_RESTRICT order, float* HWY_RESTRICT scratch,
                                  int64_t n, Body body) {
  const hn::ScalableTag<float> d;
  if (order == nullptr) {
    const auto mean = hn::Set(d, moments.mean);
    const auto scale = hn::Set(d, moments.scale);
    ForEachVector(n, [&](int64_t j, size_t count, auto load) HWY_ATTR {
      body(j, count, load, hn::Mul(hn::Sub(load(row), mean), scale));
    });
    return;
  }
  const hn::RebindToSigned<decltype(d)> di;
  NormaliseRow(row, moments, scratch, n);
  ForEachVector(n, [&](int64_t j, size_t count, auto load) HWY_ATTR {
    if (count == hn::Lanes(d)) {
      body(j, count, load, hn::GatherIndex(d, scratch, hn::LoadU(di, order + j)));
      return;
    }
    HWY_ALIGN float padded[HWY_MAX_BYTES / sizeof(float)] = {};
    for (size_t k = 0; k < count; ++k) padded[k] = scratch[order[j + static_cast<int64_t>(k)]];
    body(j, count, load, hn::Load(d, padded));
  });
}

template <typename T>
void NormRow(const Moments& moments, const T* row, const int32_t* order,
             const float* HWY_RESTRICT weight, const float* HWY_RESTRICT bias, T* out,
             float* scratch, int64_t n) {
  const hn::ScalableTag<float> d;
  ForEachNormalised(row, moments, order, scratch, n,
                    [&](int64_t j, size_t count, auto load, auto y) HWY_ATTR {
                      const auto w = weight == nullptr ? hn::Set(d, 1.0f) : load(weight);
                      const auto b = bias == nullptr ? hn::Zero(d) : load(bias);
                      const auto value = hn::MulAdd(y, w, b);
                      if (count == hn::Lanes(d)) {
                        StoreFloats(d, value, out + j);
                      } else {
                        StoreFloatsPartial(d, value, out + j, count);
                      }
                    });
}

template <typename T>
void NormRowsOf(const NormArgs& args, int64_t begin, int64_t end, float* scratch) {
  const int64_t hidden = args.x.dim(1);
  const float* weight = args.weight.empty() ? nullptr : args.weight.data<float>();
  const float* bias = args.bias.empty() ? nullptr : args.bias.data<float>();
  const int32_t* order = args.order.empty() ? nullptr : args.order.data<int32_t>();
  for (int64_t t = begin; t < end; ++t) {
    T* row = args.x.mutable_data<T>() + t * args.x.row_stride();
    if (!args.delta.empty()) {
      AddRow(row, args.delta.data<T>() + t * args.delta.row_stride(), hidden);
    }
    const Moments moments = RowMoments(args.kind, row, args.epsilon, hidden);
    NormRow(moments, row, order, weight, bias,
            args.out.mutable_data<T>() + t * args.out.row_stride(), scratch, hidden);
  }
}

void NormRows(const NormArgs& args, int64_t begin, int64_t end, float* scratch) {
  switch (args.x.dtype()) {
    case DType::kF32:
      return NormRowsOf<float>(args, begin, end, scratch);
    case DType::kF16:
      return NormRowsOf<Half>(args, begin, end, scratch);
    case DType::kBF16:
      return NormRowsOf<BFloat16>(args, begin, end, scratch);
    default:
      TW_CHECK(IsFloat(args.x.dtype()));
  }
}

template <typename T>
void NormCodesRowsOf(const NormCodesArgs& args, int64_t begin, int64_t end, float* scratch) {
  const hn::ScalableTag<float> d;
  const int64_t hidden = args.x.dim(1);
  const auto* const weight = args.weight.data<float>();
  const auto* const bias = args.bias.data<float>();
  const auto* const max_code = args.max_code.data<uint8_t>();
  const int32_t* order = args.order.empty() ? nullptr : args.order.data<int32_t>();
  for (int64_t t = begin; t < end; ++t) {
    T* row = args.x.mutable_data<T>() + t * args.x.row_stride();
    if (!args.delta.empty()) {
      AddRow(row, args.delta.data<T>() + t * args.delta.row_stride(), hidden);
    }
    uint8_t* const codes = args.codes.mutable_data<uint8_t>() + t * args.codes.row_stride();
    ForEachNormalised(row, RowMoments(args.kind, row, args.epsilon, hidden), order, scratch, hidden,
                      [&](int64_t j, size_t count, auto load, auto y) HWY_ATTR {
                        StoreCodes(d, hn::MulAdd(y, load(weight), load(bias)), max_code + j,
                                   codes + j, count);
                      });
  }
}

void NormCodesRows(const NormCodesArgs& args, int64_t begin, int64_t end, float* scratch) {
  switch (args.x.dtype()) {
    case DType::kF32:
      return NormCodesRowsOf<float>(args, begin, end, scratch);
    case DType::kF16:
      return NormCodesRowsOf<Half>(args, begin, end, scratch);
    case DType::kBF16:
      return NormCodesRowsOf<BFloat16>(args, begin, end, scratch);
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

template <typename T>
void ScaleRowsOf(const TensorView& x, const float* weight, const float* bias, int64_t begin,
                 int64_t end) {
  const hn::ScalableTag<float> d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const int64_t n = x.dim(1);
  const auto scaled = [&](auto value, int64_t i, size_t count) HWY_ATTR {
    if (weight != nullptr) value = hn::Mul(value, LoadFloatsPartial(d, weight + i, count));
    if (bias != nullptr) value = hn::Add(value, LoadFloatsPartial(d, bias + i, count));
    return value;
  };
  for (int64_t t = begin; t < end; ++t) {
    T* const row = x.mutable_data<T>() + t * x.row_stride();
    for (int64_t i = 0; i < n; i += lanes) {
      const auto count = static_cast<size_t>(std::min(lanes, n - i));
      StoreFloatsPartial(d, scaled(LoadFloatsPartial(d, row + i, count), i, count), row + i, count);
    }
  }
}

void ScaleRows(const TensorView& x, const float* weight, const float* bias, int64_t begin,
               int64_t end) {
  switch (x.dtype()) {
    case DType::kF32:
      return ScaleRowsOf<float>(x, weight, bias, begin, end);
    case DType::kF16:
      return ScaleRowsOf<Half>(x, weight, bias, begin, end);
    case DType::kBF16:
      return ScaleRowsOf<BFloat16>(x, weight, bias, begin, end);
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
HWY_EXPORT(NormCodesRows);
HWY_EXPORT(AddRows);
HWY_EXPORT(ScaleRows);

// Below this many elements, waking another thread costs more than it saves.
constexpr int64_t kElementsPerThread = 32768;

// Calls rows(begin, end, scratch) over the rows of x, with a row of floats for each thread if
// `ordered`.
absl::Status ForEachRange(const TensorView& x, bool ordered, Stream& stream,
                          absl::FunctionRef<void(int64_t, int64_t, float*)> rows) {
  const int64_t hidden = x.dim(1);
  const int64_t row_floats = (hidden + 15) / 16 * 16;
  float* scratch = nullptr;
  if (ordered) {
    TW_ASSIGN_OR_RETURN(std::byte * bytes, stream.Scratch(stream.pool().num_threads() * row_floats *
                                                          static_cast<int64_t>(sizeof(float))));
    scratch = reinterpret_cast<float*>(bytes);
  }
  const int64_t grain = std::max<int64_t>(1, kElementsPerThread / hidden);
  stream.pool().ParallelFor(x.dim(0), grain, [&](int64_t begin, int64_t end) {
    rows(begin, end, ordered ? scratch + ThreadPool::CurrentThread() * row_floats : nullptr);
  });
  return absl::OkStatus();
}

}  // namespace

absl::Status NormCpu(const NormArgs& args, Stream& stream) {
  return ForEachRange(args.x, !args.order.empty(), stream,
                      [&](int64_t begin, int64_t end, float* scratch) {
                        HWY_DYNAMIC_DISPATCH(NormRows)(args, begin, end, scratch);
                      });
}

absl::Status NormCodesCpu(const NormCodesArgs& args, Stream& stream) {
  return ForEachRange(args.x, !args.order.empty(), stream,
                      [&](int64_t begin, int64_t end, float* scratch) {
                        HWY_DYNAMIC_DISPATCH(NormCodesRows)(args, begin, end, scratch);
                      });
}

void AddInPlaceCpu(const TensorView& x, const ConstTensorView& delta, Stream& stream) {
  const int64_t grain = std::max<int64_t>(1, kElementsPerThread / x.dim(1));
  stream.pool().ParallelFor(x.dim(0), grain, [&](int64_t begin, int64_t end) {
    HWY_DYNAMIC_DISPATCH(AddRows)(x, delta, begin, end);
  });
}

void ScaleInPlaceCpu(const TensorView& x, const ConstTensorView& weight,
                     const ConstTensorView& bias, Stream& stream) {
  const float* const w = weight.empty() ? nullptr : weight.data<float>();
  const float* const b = bias.empty() ? nullptr : bias.data<float>();
  const int64_t grain = std::max<int64_t>(1, kElementsPerThread / x.dim(1));
  stream.pool().ParallelFor(x.dim(0), grain, [&](int64_t begin, int64_t end) {
    HWY_DYNAMIC_DISPATCH(ScaleRows)(x, w, b, begin, end);
  });
}

}  // namespace thinwire
#endif  // HWY_ONCE
