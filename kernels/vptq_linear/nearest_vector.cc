#include "kernels/vptq_linear/nearest_vector.h"

#include <algorithm>

#include "kernels/core/check.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/vptq_linear/nearest_vector.cc"
#include "hwy/foreach_target.h"
// After foreach_target.h.
#include "hwy/highway.h"

#ifndef THINWIRE_KERNELS_VPTQ_LINEAR_NEAREST_VECTOR_
#define THINWIRE_KERNELS_VPTQ_LINEAR_NEAREST_VECTOR_
namespace thinwire {
namespace {

constexpr int64_t kPadding = 16;  // lanes of the widest registers
constexpr int kTileVectors = 4;

struct BookView {
  const float* columns;
  const float* negative;
  int length;
  int64_t padded;
};

}  // namespace
}  // namespace thinwire
#endif  // THINWIRE_KERNELS_VPTQ_LINEAR_NEAREST_VECTOR_

HWY_BEFORE_NAMESPACE();
namespace thinwire {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

template <int kCount>
HWY_INLINE void NearestOf(const BookView& book, const float* HWY_RESTRICT from,
                          int32_t* HWY_RESTRICT indices) {
  const hn::CappedTag<float, kPadding> d;
  const hn::RebindToSigned<decltype(d)> di;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  using V = hn::Vec<decltype(d)>;
  using VI = hn::Vec<decltype(di)>;
  V best[kCount];
  VI where[kCount];
  for (int i = 0; i < kCount; ++i) {
    best[i] = hn::Set(d, -3.0e38f);
    where[i] = hn::Zero(di);
  }
  VI at = hn::Iota(di, 0);
  const VI step = hn::Set(di, static_cast<int32_t>(lanes));
  for (int64_t c = 0; c < book.padded; c += lanes) {
    V scores[kCount];
    const V start = hn::LoadU(d, book.negative + c);
    for (int i = 0; i < kCount; ++i) scores[i] = start;
    for (int e = 0; e < book.length; ++e) {
      const V column = hn::LoadU(d, book.columns + e * book.padded + c);
      for (int i = 0; i < kCount; ++i) {
        scores[i] = hn::MulAdd(column, hn::Set(d, from[i * book.length + e]), scores[i]);
      }
    }
    for (int i = 0; i < kCount; ++i) {
      const auto better = hn::Gt(scores[i], best[i]);
      best[i] = hn::IfThenElse(better, scores[i], best[i]);
      where[i] = hn::IfThenElse(hn::RebindMask(di, better), at, where[i]);
    }
    at = hn::Add(at, step);
  }
  for (int i = 0; i < kCount; ++i) {
    HWY_ALIGN float values[kPadding];
    HWY_ALIGN int32_t places[kPadding];
    hn::Store(best[i], d, values);
    hn::Store(where[i], di, places);
    int64_t winner = 0;
    for (int64_t lane = 1; lane < lanes; ++lane) {
      if (values[lane] > values[winner] ||
          (values[lane] == values[winner] && places[lane] < places[winner])) {
        winner = lane;
      }
    }
    indices[i] = places[winner];
  }
}

void NearestVectors(const BookView& book, const float* from, int64_t n, int32_t* indices) {
  int64_t i = 0;
  for (; i + kTileVectors <= n; i += kTileVectors) {
    NearestOf<kTileVectors>(book, from + i * book.length, indices + i);
  }
  for (; i < n; ++i) NearestOf<1>(book, from + i * book.length, indices + i);
}

}  // namespace HWY_NAMESPACE
}  // namespace thinwire
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace thinwire {
namespace {

HWY_EXPORT(NearestVectors);

}  // namespace

VectorBook::VectorBook(absl::Span<const float> vectors, int length)
    : length_(length), count_(static_cast<int64_t>(vectors.size()) / length) {
  TW_CHECK(length > 0 && count_ > 0 && count_ * length == static_cast<int64_t>(vectors.size()));
  padded_ = (count_ + kPadding - 1) / kPadding * kPadding;
  columns_.assign(static_cast<size_t>(padded_ * length), 0.0f);
  negative_.assign(static_cast<size_t>(padded_), -3.2e38f);
  for (int64_t c = 0; c < count_; ++c) {
    double norm = 0.0;
    for (int e = 0; e < length; ++e) {
      const float value = vectors[c * length + e];
      columns_[e * padded_ + c] = value;
      norm += double{value} * double{value};
    }
    negative_[c] = static_cast<float>(-0.5 * norm);
  }
}

void VectorBook::Nearest(const float* from, int64_t n, int32_t* indices) const {
  HWY_DYNAMIC_DISPATCH(NearestVectors)
  ({columns_.data(), negative_.data(), length_, padded_}, from, n, indices);
}

}  // namespace thinwire
#endif  // HWY_ONCE
