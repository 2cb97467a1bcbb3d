// Few rows (decode): reading the pages takes the time, so each row of K and V is read once, widened
// in registers and used for all queries of the group. The softmax is online over chunks of keys.
#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "kernels/attention/paged_attention_cpu.h"
#include "kernels/core/float16.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/attention/paged_attention_few_cpu.cc"
#include "hwy/foreach_target.h"
// After foreach_target.h.
#include "hwy/cache_control.h"
#include "hwy/highway.h"
#include "kernels/attention/few_rows_inl.h"
#include "kernels/convert/convert_inl.h"

HWY_BEFORE_NAMESPACE();
namespace thinwire {
namespace HWY_NAMESPACE {

// scores[r, 0 .. kKeys) of kRows queries and kKeys keys in adjacent rows.
template <int kRows, int kKeys, typename T>
HWY_INLINE void ScoreTile(const T* HWY_RESTRICT k, int64_t head_dim, const float* HWY_RESTRICT q,
                          float* HWY_RESTRICT scores) {
  const hn::ScalableTag<float> d;
  using V = hn::Vec<decltype(d)>;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const int64_t q_stride = PaddedFloats(head_dim);
  V sums[kRows][kKeys];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int j = 0; j < kKeys; ++j) sums[r][j] = hn::Zero(d);
  }
  for (int64_t i = 0; i < head_dim; i += lanes) {
    const int64_t rest = head_dim - i;
#pragma GCC unroll 8
    for (int j = 0; j < kKeys; ++j) {
      const T* from = k + j * head_dim + i;
      const V keys = rest >= lanes ? LoadFloats(d, from)
                                   : LoadFloatsPartial(d, from, static_cast<size_t>(rest));
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        sums[r][j] = hn::MulAdd(keys, hn::LoadU(d, q + r * q_stride + i), sums[r][j]);
      }
    }
  }
  if constexpr (kRows * kKeys % 4 == 0) {
    float totals[kRows * kKeys];
#pragma GCC unroll 8
    for (int i = 0; i < kRows * kKeys; i += 4) {
      SumLanesOfFour(d, sums[i / kKeys][i % kKeys], sums[(i + 1) / kKeys][(i + 1) % kKeys],
                     sums[(i + 2) / kKeys][(i + 2) % kKeys], sums[(i + 3) / kKeys][(i + 3) % kKeys],
                     totals + i);
    }
#pragma GCC unroll 16
    for (int i = 0; i < kRows * kKeys; ++i) {
      scores[i / kKeys * kFewRowsChunk + i % kKeys] = totals[i];
    }
  } else {
    for (int r = 0; r < kRows; ++r) {
      for (int j = 0; j < kKeys; ++j) {
        scores[r * kFewRowsChunk + j] = hn::GetLane(hn::SumOfLanes(d, sums[r][j]));
      }
    }
  }
}

// Asks for the rows from `token` to the end of its page: pages end before the hardware sees a
// pattern.
HWY_INLINE void Prefetch(const HeadPages& pages, const std::byte* rows, int64_t token,
                         int64_t end) {
  constexpr int64_t kMostBytes = 8192;
  const std::byte* from = rows + pages.Offset(token);
  const int64_t bytes =
      std::min(kMostBytes, DTypeBytes(pages.dtype, pages.Run(token, end) * pages.head_dim));
  for (int64_t i = 0; i < bytes; i += 64) hwy::Prefetch(from + i);
}

template <int kRows, typename T>
HWY_INLINE void ScoreRun(const T* HWY_RESTRICT k, int64_t head_dim, int64_t count,
                         const float* HWY_RESTRICT q, float* HWY_RESTRICT scores) {
  constexpr int kKeys = kRows == 1 ? 4 : 2;
  int64_t j = 0;
  for (; j + kKeys <= count; j += kKeys) {
    ScoreTile<kRows, kKeys>(k + j * head_dim, head_dim, q, scores + j);
  }
  for (; j < count; ++j) ScoreTile<kRows, 1>(k + j * head_dim, head_dim, q, scores + j);
}

// out[r, :] += sum_j weights[r, j] v[j, :], over columns [begin, begin + kVectors * lanes); the
// last vector has `rest` columns.
template <int kRows, int kVectors, bool kPartial, typename T>
HWY_INLINE void ValueTile(const T* HWY_RESTRICT v, int64_t head_dim, int64_t count,
                          const float* HWY_RESTRICT weights, float* HWY_RESTRICT out, size_t rest) {
  const hn::ScalableTag<float> d;
  using V = hn::Vec<decltype(d)>;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const int64_t out_stride = PaddedFloats(head_dim);
  V sums[kRows][kVectors];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int c = 0; c < kVectors; ++c) sums[r][c] = hn::LoadU(d, out + r * out_stride + c * lanes);
  }
  for (int64_t j = 0; j < count; ++j) {
    V weight[kRows];
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) weight[r] = hn::Set(d, weights[r * kFewRowsChunk + j]);
#pragma GCC unroll 8
    for (int c = 0; c < kVectors; ++c) {
      const T* from = v + j * head_dim + c * lanes;
      V values;
      if constexpr (kPartial) {
        values = LoadFloatsPartial(d, from, rest);
      } else {
        values = LoadFloats(d, from);
      }
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) sums[r][c] = hn::MulAdd(weight[r], values, sums[r][c]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int c = 0; c < kVectors; ++c) hn::StoreU(sums[r][c], d, out + r * out_stride + c * lanes);
  }
}

template <int kRows, typename T>
HWY_INLINE void ValueRun(const T* HWY_RESTRICT v, int64_t head_dim, int64_t count,
                         const float* HWY_RESTRICT weights, float* HWY_RESTRICT out) {
  const hn::ScalableTag<float> d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
#if HWY_TARGET == HWY_AVX2 || HWY_TARGET == HWY_SCALAR
  constexpr int kVectors = 2;
#else
  constexpr int kVectors = 4;
#endif
  int64_t i = 0;
  for (; i + kVectors * lanes <= head_dim; i += kVectors * lanes) {
    ValueTile<kRows, kVectors, false>(v + i, head_dim, count, weights, out + i, 0);
  }
  for (; i + lanes <= head_dim; i += lanes) {
    ValueTile<kRows, 1, false>(v + i, head_dim, count, weights, out + i, 0);
  }
  if (i < head_dim) {
    ValueTile<kRows, 1, true>(v + i, head_dim, count, weights, out + i,
                              static_cast<size_t>(head_dim - i));
  }
}

template <typename T>
void AttendFewRowsOf(const HeadPages& pages, const FewRows& args) {
  const int64_t head_dim = pages.head_dim;
  const int64_t stride = PaddedFloats(head_dim);
  const int64_t num_rows = args.num_rows;
  RowState states[kFewRows];
  int64_t first = args.keys[0].begin;
  int64_t last = args.keys[0].end;
  for (int64_t r = 0; r < num_rows; ++r) {
    // So far below any score that what is gathered before the first key is forgotten.
    states[r] = {-1e30f, 0.0f};
    first = std::min<int64_t>(first, args.keys[r].begin);
    last = std::max<int64_t>(last, args.keys[r].end);
  }
  std::fill(args.out, args.out + num_rows * stride, 0.0f);
  for (int64_t chunk = first; chunk < last; chunk += kFewRowsChunk) {
    const int64_t end = std::min(last, chunk + kFewRowsChunk);
    for (int64_t j = chunk; j < end;) {
      const int64_t run = pages.Run(j, end);
      const auto* k = reinterpret_cast<const T*>(pages.k + pages.Offset(j));
      if (j + run < end) Prefetch(pages, pages.k, j + run, end);
      for (int64_t r = 0; r < num_rows;) {
        const float* q = args.q + r * stride;
        float* scores = args.scores + r * kFewRowsChunk + (j - chunk);
        if (num_rows - r >= 4) {
          ScoreRun<4>(k, head_dim, run, q, scores);
          r += 4;
        } else if (num_rows - r >= 2) {
          ScoreRun<2>(k, head_dim, run, q, scores);
          r += 2;
        } else {
          ScoreRun<1>(k, head_dim, run, q, scores);
          r += 1;
        }
      }
      j += run;
    }
    for (int64_t r = 0; r < num_rows; ++r) {
      const int64_t a = std::clamp<int64_t>(args.keys[r].begin - chunk, 0, end - chunk);
      const int64_t b = std::clamp<int64_t>(args.keys[r].end - chunk, a, end - chunk);
      SoftmaxChunk(args.scores + r * kFewRowsChunk, a, b, end - chunk, args.out + r * stride,
                   stride, states[r]);
    }
    for (int64_t j = chunk; j < end;) {
      const int64_t run = pages.Run(j, end);
      const auto* v = reinterpret_cast<const T*>(pages.v + pages.Offset(j));
      if (j + run < end) Prefetch(pages, pages.v, j + run, end);
      for (int64_t r = 0; r < num_rows;) {
        const float* weights = args.scores + r * kFewRowsChunk + (j - chunk);
        float* out = args.out + r * stride;
        if (num_rows - r >= 4) {
          ValueRun<4>(v, head_dim, run, weights, out);
          r += 4;
        } else if (num_rows - r >= 2) {
          ValueRun<2>(v, head_dim, run, weights, out);
          r += 2;
        } else {
          ValueRun<1>(v, head_dim, run, weights, out);
          r += 1;
        }
      }
      j += run;
    }
  }
  for (int64_t r = 0; r < num_rows; ++r) {
    const float inverse = 1.0f / states[r].sum;
    for (int64_t i = 0; i < head_dim; ++i) args.out[r * stride + i] *= inverse;
  }
}

void AttendFew(const HeadPages& pages, const FewRows& rows) {
  switch (pages.dtype) {
    case DType::kF32:
      AttendFewRowsOf<float>(pages, rows);
      return;
    case DType::kF16:
      AttendFewRowsOf<Half>(pages, rows);
      return;
    default:
      AttendFewRowsOf<BFloat16>(pages, rows);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace thinwire
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace thinwire {
namespace {

HWY_EXPORT(AttendFew);

}  // namespace

void AttendFewRows(const HeadPages& pages, const FewRows& rows) {
  HWY_DYNAMIC_DISPATCH(AttendFew)(pages, rows);
}

}  // namespace thinwire
#endif  // HWY_ONCE
