#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstddef>

#include "absl/functional/function_ref.h"
#include "kernels/core/status_macros.h"
#include "kernels/sampling/row_sampler.h"
#include "kernels/sampling/sampling_internal.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/sampling/sampling_cpu.cc"
#include "hwy/foreach_target.h"
// After foreach_target.h.
#include "hwy/contrib/math/math-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace thinwire {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

RowRange RangeOfRow(const float* HWY_RESTRICT x, int64_t n) {
  const hn::ScalableTag<float> d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  auto min = hn::Set(d, x[0]);
  auto max = min;
  auto nan = hn::IsNaN(min);
  int64_t i = 0;
  for (; i + lanes <= n; i += lanes) {
    const auto v = hn::LoadU(d, x + i);
    min = hn::Min(min, v);
    max = hn::Max(max, v);
    nan = hn::Or(nan, hn::IsNaN(v));
  }
  for (; i < n; ++i) {
    const auto v = hn::Set(d, x[i]);
    min = hn::Min(min, v);
    max = hn::Max(max, v);
    nan = hn::Or(nan, hn::IsNaN(v));
  }
  return RowRange{hn::GetLane(hn::MinOfLanes(d, min)), hn::GetLane(hn::MaxOfLanes(d, max)),
                  !hn::AllFalse(d, nan)};
}

int32_t FirstIndexInRow(const float* HWY_RESTRICT x, int64_t n, float value) {
  const hn::ScalableTag<float> d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const auto wanted = hn::Set(d, value);
  int64_t i = 0;
  while (i + lanes <= n && hn::AllFalse(d, hn::Eq(hn::LoadU(d, x + i), wanted))) i += lanes;
  while (i + 1 < n && x[i] != value) ++i;
  return static_cast<int32_t>(i);
}

// (max - x) * scale for Lanes(d) values; infinity for x = -infinity.
template <class D>
HWY_INLINE hn::Vec<D> DepthOf(D d, const float* HWY_RESTRICT x, float max, double scale) {
  const hn::Rebind<float, D> d32;
  const auto value = hn::PromoteTo(d, hn::LoadU(d32, x));
  return hn::Mul(hn::Sub(hn::Set(d, static_cast<double>(max)), value), hn::Set(d, scale));
}

// exp(-depth); 0 from 746 on, where it is below the smallest double.
template <class D, class V>
HWY_INLINE V WeightOf(D d, V depth) {
  return hn::Exp(d, hn::Max(hn::Neg(depth), hn::Set(d, -1001.0)));
}

double SumOfExpsOfRow(const float* HWY_RESTRICT x, int64_t n, float max) {
  const hn::ScalableTag<double> d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  auto sum0 = hn::Zero(d);
  auto sum1 = hn::Zero(d);
  int64_t i = 0;
  for (; i + 2 * lanes <= n; i += 2 * lanes) {
    sum0 = hn::Add(sum0, WeightOf(d, DepthOf(d, x + i, max, 1.0)));
    sum1 = hn::Add(sum1, WeightOf(d, DepthOf(d, x + i + lanes, max, 1.0)));
  }
  double sum = hn::GetLane(hn::SumOfLanes(d, hn::Add(sum0, sum1)));
  for (; i < n; ++i) sum += std::exp(static_cast<double>(x[i]) - max);
  return sum;
}

void BucketLogitsOfRow(const float* HWY_RESTRICT x, int64_t n, const BucketScale& s,
                       int32_t* HWY_RESTRICT bucket, double* HWY_RESTRICT weight) {
  const hn::ScalableTag<double> d;
  const hn::Rebind<int32_t, decltype(d)> d32;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const auto per_depth = hn::Set(d, s.buckets_per_depth);
  const auto last = hn::Set(d, static_cast<double>(kNumBuckets - 1));
  const auto outside = hn::Set(d, static_cast<double>(kNumBuckets));
  const auto max_depth = hn::Set(d, kMaxDepth);
  const auto bucket_of = [&](auto depth) HWY_ATTR {
    const auto inside = hn::Min(hn::Mul(depth, per_depth), last);
    return hn::DemoteTo(d32, hn::IfThenElse(hn::Lt(depth, max_depth), inside, outside));
  };
  int64_t i = 0;
  for (; i + lanes <= n; i += lanes) {
    const auto depth = DepthOf(d, x + i, s.max, s.inverse_temperature);
    hn::StoreU(bucket_of(depth), d32, bucket + i);
    if (weight != nullptr) hn::StoreU(WeightOf(d, depth), d, weight + i);
  }
  for (; i < n; ++i) {
    const double depth = (static_cast<double>(s.max) - x[i]) * s.inverse_temperature;
    bucket[i] = hn::GetLane(bucket_of(hn::Set(d, depth)));
    if (weight != nullptr) weight[i] = std::exp(-depth);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace thinwire
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace thinwire {
namespace {

HWY_EXPORT(RangeOfRow);
HWY_EXPORT(FirstIndexInRow);
HWY_EXPORT(SumOfExpsOfRow);
HWY_EXPORT(BucketLogitsOfRow);

// Below this many logits in all, waking another thread costs more than it saves.
constexpr int64_t kMinLogitsForThreads = 32768;

// Calls body(row), which returns false for logits that have no softmax, for each row.
absl::Status ForEachRow(absl::string_view op, const ConstTensorView& logits, Stream& stream,
                        absl::FunctionRef<bool(int64_t row)> body) {
  const int64_t num_rows = logits.dim(0);
  std::atomic<int64_t> first_bad{num_rows};
  const auto checked = [&](int64_t row) {
    if (body(row)) return;
    int64_t first = first_bad.load(std::memory_order_relaxed);
    while (row < first && !first_bad.compare_exchange_weak(first, row)) {
    }
  };
  if (num_rows * logits.dim(1) < kMinLogitsForThreads) {
    for (int64_t row = 0; row < num_rows; ++row) checked(row);
  } else {
    stream.pool().ParallelForDynamic(num_rows, checked);
  }
  if (first_bad == num_rows) return absl::OkStatus();
  return NoSoftmax(op, first_bad.load(), logits);
}

}  // namespace

bool RowRange::HasFiniteMax() const { return !has_nan && std::isfinite(max); }

RowRange RangeOf(const float* x, int64_t n) { return HWY_DYNAMIC_DISPATCH(RangeOfRow)(x, n); }

int32_t FirstIndexOf(const float* x, int64_t n, float value) {
  return HWY_DYNAMIC_DISPATCH(FirstIndexInRow)(x, n, value);
}

double SumOfExps(const float* x, int64_t n, float max) {
  return HWY_DYNAMIC_DISPATCH(SumOfExpsOfRow)(x, n, max);
}

void BucketLogits(const float* x, int64_t n, const BucketScale& scale, int32_t* bucket,
                  double* weight) {
  HWY_DYNAMIC_DISPATCH(BucketLogitsOfRow)(x, n, scale, bucket, weight);
}

absl::Status SampleCpu(const SampleArgs& args, Stream& stream) {
  const int64_t vocab = args.logits.dim(1);
  const int64_t scratch_bytes = RowSampler::ScratchBytes(vocab);
  TW_ASSIGN_OR_RETURN(std::byte* const scratch,
                      stream.Scratch(stream.pool().num_threads() * scratch_bytes));
  return ForEachRow("sample", args.logits, stream, [&](int64_t row) {
    const float* logits = args.logits.data<float>() + row * args.logits.row_stride();
    const RowRange range = RangeOf(logits, vocab);
    if (!range.HasFiniteMax()) return false;
    const auto r = static_cast<size_t>(row);
    const SamplingParams& params = args.params[r];
    if (params.temperature == 0.0f) {
      args.token_ids[r] = FirstIndexOf(logits, vocab, range.max);
    } else {
      const double uniform = UniformRandom(params.seed, static_cast<uint64_t>(args.positions[r]));
      RowSampler sampler(scratch + ThreadPool::CurrentThread() * scratch_bytes, vocab);
      args.token_ids[r] = sampler.Draw(logits, range, params, uniform);
    }
    return true;
  });
}

absl::Status LogProbsCpu(const LogProbArgs& args, Stream& stream) {
  const int64_t vocab = args.logits.dim(1);
  return ForEachRow("log probs", args.logits, stream, [&](int64_t row) {
    const float* logits = args.logits.data<float>() + row * args.logits.row_stride();
    const RowRange range = RangeOf(logits, vocab);
    if (!range.HasFiniteMax()) return false;
    const auto r = static_cast<size_t>(row);
    const double above = static_cast<double>(logits[args.targets[r]]) - range.max;
    args.log_probs[r] = static_cast<float>(above - std::log(SumOfExps(logits, vocab, range.max)));
    return true;
  });
}

}  // namespace thinwire
#endif  // HWY_ONCE
