// What kernels for few rows share: sums of lanes and the online softmax. A Highway per-target
// header, as kernels/convert/convert_inl.h.

#if defined(THINWIRE_KERNELS_ATTENTION_FEW_ROWS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef THINWIRE_KERNELS_ATTENTION_FEW_ROWS_INL_H_
#undef THINWIRE_KERNELS_ATTENTION_FEW_ROWS_INL_H_
#else
#define THINWIRE_KERNELS_ATTENTION_FEW_ROWS_INL_H_
#endif

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "hwy/highway.h"
#include "kernels/attention/exp_negative_inl.h"
#include "kernels/convert/convert_inl.h"

HWY_BEFORE_NAMESPACE();
namespace thinwire {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

// The sums of the lanes of four vectors, for less than four times the cost of one.
template <class D, class V = hn::Vec<D>>
HWY_INLINE void SumLanesOfFour(D d, V v0, V v1, V v2, V v3, float* HWY_RESTRICT sums) {
#if HWY_TARGET == HWY_SCALAR
  sums[0] = hn::GetLane(hn::SumOfLanes(d, v0));
  sums[1] = hn::GetLane(hn::SumOfLanes(d, v1));
  sums[2] = hn::GetLane(hn::SumOfLanes(d, v2));
  sums[3] = hn::GetLane(hn::SumOfLanes(d, v3));
#else
  const hn::Repartition<double, D> pairs;
  const V v01 = hn::Add(hn::InterleaveLower(d, v0, v1), hn::InterleaveUpper(d, v0, v1));
  const V v23 = hn::Add(hn::InterleaveLower(d, v2, v3), hn::InterleaveUpper(d, v2, v3));
  const auto p01 = hn::BitCast(pairs, v01);
  const auto p23 = hn::BitCast(pairs, v23);
  // One sum of each vector in each 128-bit block.
  const V blocks = hn::Add(hn::BitCast(d, hn::InterleaveLower(pairs, p01, p23)),
                           hn::BitCast(d, hn::InterleaveUpper(pairs, p01, p23)));
#if HWY_TARGET == HWY_AVX3 || HWY_TARGET == HWY_AVX3_DL
  const hn::Half<D> d8;
  const hn::Half<decltype(d8)> d4;
  const auto half = hn::Add(hn::LowerHalf(d8, blocks), hn::UpperHalf(d8, blocks));
  hn::StoreU(hn::Add(hn::LowerHalf(d4, half), hn::UpperHalf(d4, half)), d4, sums);
#elif HWY_TARGET == HWY_AVX2
  const hn::Half<D> d4;
  hn::StoreU(hn::Add(hn::LowerHalf(d4, blocks), hn::UpperHalf(d4, blocks)), d4, sums);
#else
  hn::StoreU(blocks, d, sums);
#endif
#endif
}

// A row's running softmax.
struct RowState {
  float maximum;
  float sum;
};

// Turns a row's scores [begin, end) of a chunk of `count` into weights relative to the running
// maximum, zero outside, and rescales what the row has gathered so far, by the factor returned.
HWY_INLINE float SoftmaxChunk(float* HWY_RESTRICT scores, int64_t begin, int64_t end, int64_t count,
                              float* HWY_RESTRICT out, int64_t out_size, RowState& state) {
  const hn::ScalableTag<float> d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  std::fill(scores, scores + begin, 0.0f);
  std::fill(scores + end, scores + count, 0.0f);
  if (begin == end) return 1.0f;
  auto maxima = hn::Set(d, state.maximum);
  int64_t j = begin;
  for (; j + lanes <= end; j += lanes) maxima = hn::Max(maxima, hn::LoadU(d, scores + j));
  float maximum = hn::GetLane(hn::MaxOfLanes(d, maxima));
  for (; j < end; ++j) maximum = std::max(maximum, scores[j]);
  const auto shift = hn::Set(d, maximum);
  const float rescale = hn::GetLane(ExpNegative(d, hn::Sub(hn::Set(d, state.maximum), shift)));
  auto sums = hn::Zero(d);
  for (j = begin; j < end; j += lanes) {
    const auto rest = static_cast<size_t>(std::min(lanes, end - j));
    const bool whole = end - j >= lanes;
    const auto score =
        hn::Sub(whole ? hn::LoadU(d, scores + j) : LoadFloatsPartial(d, scores + j, rest), shift);
    auto weight = ExpNegative(d, score);
    if (whole) {
      hn::StoreU(weight, d, scores + j);
    } else {
      weight = hn::IfThenElseZero(hn::FirstN(d, rest), weight);
      StoreFloatsPartial(d, weight, scores + j, rest);
    }
    sums = hn::Add(sums, weight);
  }
  state.sum = state.sum * rescale + hn::GetLane(hn::SumOfLanes(d, sums));
  state.maximum = maximum;
  if (rescale == 1.0f) return rescale;
  for (int64_t i = 0; i < out_size; i += lanes) {
    hn::StoreU(hn::Mul(hn::LoadU(d, out + i), hn::Set(d, rescale)), d, out + i);
  }
  return rescale;
}

}  // namespace HWY_NAMESPACE
}  // namespace thinwire
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
