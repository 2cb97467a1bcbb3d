#include <algorithm>
#include <cmath>

#include "kernels/codes/codes_internal.h"
#include "kernels/core/check.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/codes/codes_cpu.cc"
#include "hwy/foreach_target.h"
// After foreach_target.h.
#include "hwy/highway.h"
#include "kernels/codes/codes_inl.h"

HWY_BEFORE_NAMESPACE();
namespace thinwire {
namespace HWY_NAMESPACE {

// max |u| of a row.
template <typename T>
float RowMaximum(const T* HWY_RESTRICT x, const float* HWY_RESTRICT inverse_step, int64_t width) {
  const hn::ScalableTag<float> d;
  auto largest = hn::Zero(d);
  ForEachVector(width, [&](int64_t, size_t, auto load) HWY_ATTR {
    largest = hn::Max(largest, hn::Abs(hn::Mul(load(x), load(inverse_step))));
  });
  return hn::GetLane(hn::MaxOfLanes(d, largest));
}

template <typename T>
float RowGain(GainKind kind, const T* HWY_RESTRICT x, const float* HWY_RESTRICT inverse_step,
              int64_t width) {
  const hn::ScalableTag<float> d;
  if (kind == GainKind::kMax) {
    return RoundGain(RowMaximum(x, inverse_step, width) / kMaxGainCodes);
  }
  // Four chains of additions overlap.
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  auto sum0 = hn::Zero(d);
  auto sum1 = hn::Zero(d);
  auto sum2 = hn::Zero(d);
  auto sum3 = hn::Zero(d);
  const auto add = [&](int64_t i, auto& sum) HWY_ATTR {
    const auto u = hn::Mul(LoadFloats(d, x + i), hn::LoadU(d, inverse_step + i));
    sum = hn::MulAdd(u, u, sum);
  };
  int64_t begin = 0;
  for (; begin + 4 * lanes <= width; begin += 4 * lanes) {
    add(begin, sum0);
    add(begin + lanes, sum1);
    add(begin + 2 * lanes, sum2);
    add(begin + 3 * lanes, sum3);
  }
  ForEachVector(width - begin, [&](int64_t, size_t, auto load) HWY_ATTR {
    const auto u = hn::Mul(load(x + begin), load(inverse_step + begin));
    sum0 = hn::MulAdd(u, u, sum0);
  });
  const auto sum = hn::Add(hn::Add(sum0, sum1), hn::Add(sum2, sum3));
  const float mean = hn::GetLane(hn::SumOfLanes(d, sum)) / static_cast<float>(width);
  return RoundGain(std::sqrt(mean));
}

template <typename T>
void QuantizeRowsOf(const QuantizeArgs& args, int64_t begin, int64_t end) {
  const hn::ScalableTag<float> d;
  const int64_t width = args.x.dim(1);
  const float* const inverse_step = args.inverse_step.data<float>();
  const float* const zero = args.zero.data<float>();
  const uint8_t* const max_code = args.max_code.data<uint8_t>();
  const uint8_t* const snap = args.snap.empty() ? nullptr : args.snap.data<uint8_t>();
  for (int64_t t = begin; t < end; ++t) {
    const T* const x = args.x.data<T>() + t * args.x.row_stride();
    uint8_t* const codes = args.codes.mutable_data<uint8_t>() + t * args.codes.row_stride();
    float gain = 1.0f;
    if (args.gain == GainKind::kGiven) {
      gain = args.gains.data<float>()[t];
      if (gain == 0.0f) gain = 1.0f;
    } else if (args.gain != GainKind::kNone) {
      gain = RowGain(args.gain, x, inverse_step, width);
    }
    if (!args.gains.empty()) args.gains.mutable_data<float>()[t] = gain;
    const auto inverse_gain = hn::Set(d, 1.0f / gain);
    if (args.gain == GainKind::kNone) {
      ForEachVector(width, [&](int64_t i, size_t n, auto load) HWY_ATTR {
        StoreCodes(d, hn::MulAdd(load(x), load(inverse_step), load(zero)), max_code + i, codes + i,
                   n);
      });
    } else {
      ForEachVector(width, [&](int64_t i, size_t n, auto load) HWY_ATTR {
        const auto u = hn::Mul(load(x), load(inverse_step));
        StoreCodes(d, hn::MulAdd(u, inverse_gain, load(zero)), max_code + i, codes + i, n);
      });
    }
    if (snap == nullptr) continue;
    for (int64_t c = 0; c < width; ++c) codes[c] = snap[codes[c]];
  }
}

template <typename T>
void MaxGainRowsOf(const ConstTensorView& x, const float* inverse_step, int64_t begin, int64_t end,
                   float* gains) {
  for (int64_t t = begin; t < end; ++t) {
    const float gain =
        RowMaximum(x.data<T>() + t * x.row_stride(), inverse_step, x.dim(1)) / kMaxGainCodes;
    gains[t] = ToFloat(ToHalf(gain)) == 0.0f ? 0.0f : RoundGain(gain);
  }
}

void MaxGainRows(const ConstTensorView& x, const float* inverse_step, int64_t begin, int64_t end,
                 float* gains) {
  switch (x.dtype()) {
    case DType::kF32:
      return MaxGainRowsOf<float>(x, inverse_step, begin, end, gains);
    case DType::kF16:
      return MaxGainRowsOf<Half>(x, inverse_step, begin, end, gains);
    case DType::kBF16:
      return MaxGainRowsOf<BFloat16>(x, inverse_step, begin, end, gains);
    default:
      TW_CHECK(IsFloat(x.dtype()));
  }
}

void QuantizeRows(const QuantizeArgs& args, int64_t begin, int64_t end) {
  switch (args.x.dtype()) {
    case DType::kF32:
      return QuantizeRowsOf<float>(args, begin, end);
    case DType::kF16:
      return QuantizeRowsOf<Half>(args, begin, end);
    case DType::kBF16:
      return QuantizeRowsOf<BFloat16>(args, begin, end);
    default:
      TW_CHECK(IsFloat(args.x.dtype()));
  }
}

template <typename T>
void RoundRowsOf(const RoundToCodesArgs& args, int64_t begin, int64_t end) {
  const hn::ScalableTag<float> d;
  const float* const step = args.step.data<float>();
  const float* const inverse_step = args.inverse_step.data<float>();
  const float* const zero = args.zero.data<float>();
  const uint8_t* const max_code = args.max_code.data<uint8_t>();
  for (int64_t t = begin; t < end; ++t) {
    T* const x = args.x.mutable_data<T>() + t * args.x.row_stride();
    ForEachVector(args.x.dim(1), [&](int64_t i, size_t n, auto load) HWY_ATTR {
      const auto zeros = load(zero);
      const auto codes = RoundCodes(d, hn::MulAdd(load(x), load(inverse_step), zeros),
                                    LoadMaxCodes(d, max_code + i, n));
      const auto value = hn::Mul(load(step), hn::Sub(codes, zeros));
      if (n == hn::Lanes(d)) {
        StoreFloats(d, value, x + i);
      } else {
        StoreFloatsPartial(d, value, x + i, n);
      }
    });
  }
}

void RoundRows(const RoundToCodesArgs& args, int64_t begin, int64_t end) {
  switch (args.x.dtype()) {
    case DType::kF32:
      return RoundRowsOf<float>(args, begin, end);
    case DType::kF16:
      return RoundRowsOf<Half>(args, begin, end);
    case DType::kBF16:
      return RoundRowsOf<BFloat16>(args, begin, end);
    default:
      TW_CHECK(IsFloat(args.x.dtype()));
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace thinwire
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace thinwire {
namespace {

HWY_EXPORT(MaxGainRows);
HWY_EXPORT(QuantizeRows);
HWY_EXPORT(RoundRows);

// Below this many elements, waking another thread costs more than it saves.
constexpr int64_t kElementsPerThread = 32768;

}  // namespace

void QuantizeCpu(const QuantizeArgs& args, Stream& stream) {
  const int64_t grain = std::max<int64_t>(1, kElementsPerThread / args.x.dim(1));
  stream.pool().ParallelFor(args.x.dim(0), grain, [&](int64_t begin, int64_t end) {
    HWY_DYNAMIC_DISPATCH(QuantizeRows)(args, begin, end);
  });
}

void MaxGainsCpu(const ConstTensorView& x, const float* inverse_step, float* gains,
                 Stream& stream) {
  const int64_t grain = std::max<int64_t>(1, kElementsPerThread / x.dim(1));
  stream.pool().ParallelFor(x.dim(0), grain, [&](int64_t begin, int64_t end) {
    HWY_DYNAMIC_DISPATCH(MaxGainRows)(x, inverse_step, begin, end, gains);
  });
}

void RoundToCodesCpu(const RoundToCodesArgs& args, Stream& stream) {
  const int64_t grain = std::max<int64_t>(1, kElementsPerThread / args.x.dim(1));
  stream.pool().ParallelFor(args.x.dim(0), grain, [&](int64_t begin, int64_t end) {
    HWY_DYNAMIC_DISPATCH(RoundRows)(args, begin, end);
  });
}

}  // namespace thinwire
#endif  // HWY_ONCE
