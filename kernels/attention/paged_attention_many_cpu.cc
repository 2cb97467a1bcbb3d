// Many rows (prefill): the scores of a chunk of keys against a block of rows, transposed, so that
// rows are the lanes of vectors. Both products are then sums of (a scalar of K or V) * (a vector
// over rows), neither K nor V is transposed, and the online softmax works lane by lane.
#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "kernels/attention/paged_attention_cpu.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/attention/paged_attention_many_cpu.cc"
#include "hwy/foreach_target.h"
// After foreach_target.h.
#include "hwy/highway.h"
#include "kernels/attention/exp_negative_inl.h"

HWY_BEFORE_NAMESPACE();
namespace thinwire {
namespace HWY_NAMESPACE {

// A tile is kTall scalars by up to kWide vectors: that many accumulators fit into the registers.
constexpr int kTall = 6;
#if HWY_TARGET == HWY_AVX2 || HWY_TARGET == HWY_SCALAR
constexpr int kWide = 2;
#else
constexpr int kWide = 4;
#endif

// So far below any score that what is gathered before a row's first key is forgotten.
constexpr float kMasked = -1e30f;

// scores[j, :] = sum_i k_rows[j][i] * q[i, :] for kKeys keys and kVectors vectors of rows.
template <int kKeys, int kVectors>
HWY_INLINE void ScoreTile(const float* const* HWY_RESTRICT k_rows, int64_t head_dim,
                          const float* HWY_RESTRICT q, float* HWY_RESTRICT scores) {
  const hn::ScalableTag<float> d;
  using V = hn::Vec<decltype(d)>;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const float* HWY_RESTRICT rows[kKeys];
  V sums[kKeys][kVectors];
#pragma GCC unroll 8
  for (int j = 0; j < kKeys; ++j) {
    rows[j] = k_rows[j];
#pragma GCC unroll 8
    for (int c = 0; c < kVectors; ++c) sums[j][c] = hn::Zero(d);
  }
  for (int64_t i = 0; i < head_dim; ++i) {
    V q_values[kVectors];
#pragma GCC unroll 8
    for (int c = 0; c < kVectors; ++c) q_values[c] = hn::LoadU(d, q + i * kBlockRows + c * lanes);
#pragma GCC unroll 8
    for (int j = 0; j < kKeys; ++j) {
      const V key = hn::Set(d, rows[j][i]);
#pragma GCC unroll 8
      for (int c = 0; c < kVectors; ++c) sums[j][c] = hn::MulAdd(key, q_values[c], sums[j][c]);
    }
  }
#pragma GCC unroll 8
  for (int j = 0; j < kKeys; ++j) {
#pragma GCC unroll 8
    for (int c = 0; c < kVectors; ++c) {
      hn::StoreU(sums[j][c], d, scores + j * kBlockRows + c * lanes);
    }
  }
}

// out[i, :] = out[i, :] * rescale + sum_j v_rows[j][i] * weights[j, :] for kDims dims from `dim`
// on.
template <int kDims, int kVectors>
HWY_INLINE void ValueTile(const float* const* HWY_RESTRICT v_rows, int64_t count, int64_t dim,
                          const float* HWY_RESTRICT weights, const float* HWY_RESTRICT rescale,
                          float* HWY_RESTRICT out) {
  const hn::ScalableTag<float> d;
  using V = hn::Vec<decltype(d)>;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  V sums[kDims][kVectors];
#pragma GCC unroll 8
  for (int c = 0; c < kVectors; ++c) {
    const V factor = hn::LoadU(d, rescale + c * lanes);
#pragma GCC unroll 8
    for (int i = 0; i < kDims; ++i) {
      sums[i][c] = hn::Mul(factor, hn::LoadU(d, out + (dim + i) * kBlockRows + c * lanes));
    }
  }
  for (int64_t j = 0; j < count; ++j) {
    const float* HWY_RESTRICT row = v_rows[j] + dim;
    V weight[kVectors];
#pragma GCC unroll 8
    for (int c = 0; c < kVectors; ++c) {
      weight[c] = hn::LoadU(d, weights + j * kBlockRows + c * lanes);
    }
#pragma GCC unroll 8
    for (int i = 0; i < kDims; ++i) {
      const V value = hn::Set(d, row[i]);
#pragma GCC unroll 8
      for (int c = 0; c < kVectors; ++c) sums[i][c] = hn::MulAdd(value, weight[c], sums[i][c]);
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < kDims; ++i) {
#pragma GCC unroll 8
    for (int c = 0; c < kVectors; ++c) {
      hn::StoreU(sums[i][c], d, out + (dim + i) * kBlockRows + c * lanes);
    }
  }
}

// Keys of one chunk for one block of rows.
struct Chunk {
  int64_t first;  // position of the first key
  int64_t count;
  const float* const* k_rows;
  const float* const* v_rows;
  bool masked;  // some row of the block must not see some key of the chunk
};

struct Block {
  const float* q;
  const KeyRange* keys;
  float* maxima;
  float* sums;
  float* out;
};

// The running softmax of one vector of rows: scores become weights.
HWY_INLINE void SoftmaxLanes(const Chunk& chunk, const Block& block, int64_t lane,
                             float* HWY_RESTRICT scores, float* HWY_RESTRICT rescale) {
  const hn::ScalableTag<float> d;
  using V = hn::Vec<decltype(d)>;
  const V old_maximum = hn::LoadU(d, block.maxima + lane);
  V maximum = old_maximum;
  if (chunk.masked) {
    const hn::RebindToSigned<decltype(d)> di;
    HWY_ALIGN int32_t begins[HWY_MAX_BYTES / sizeof(int32_t)];
    HWY_ALIGN int32_t ends[HWY_MAX_BYTES / sizeof(int32_t)];
    for (size_t i = 0; i < hn::Lanes(d); ++i) {
      begins[i] = block.keys[lane + static_cast<int64_t>(i)].begin;
      ends[i] = block.keys[lane + static_cast<int64_t>(i)].end;
    }
    const auto begin = hn::Load(di, begins);
    const auto end = hn::Load(di, ends);
    for (int64_t j = 0; j < chunk.count; ++j) {
      const auto position = hn::Set(di, static_cast<int32_t>(chunk.first + j));
      const auto seen = hn::And(hn::Lt(position, end), hn::Not(hn::Lt(position, begin)));
      const V score = hn::IfThenElse(hn::RebindMask(d, seen), hn::LoadU(d, scores + j * kBlockRows),
                                     hn::Set(d, kMasked));
      hn::StoreU(score, d, scores + j * kBlockRows);
      maximum = hn::Max(maximum, score);
    }
  } else {
    for (int64_t j = 0; j < chunk.count; ++j) {
      maximum = hn::Max(maximum, hn::LoadU(d, scores + j * kBlockRows));
    }
  }
  const V factor = ExpNegative(d, hn::Sub(old_maximum, maximum));
  V sum = hn::Mul(factor, hn::LoadU(d, block.sums + lane));
  for (int64_t j = 0; j < chunk.count; ++j) {
    const V score = hn::Sub(hn::LoadU(d, scores + j * kBlockRows), maximum);
    const V weight = ExpNegative(d, score);
    hn::StoreU(weight, d, scores + j * kBlockRows);
    sum = hn::Add(sum, weight);
  }
  hn::StoreU(maximum, d, block.maxima + lane);
  hn::StoreU(sum, d, block.sums + lane);
  hn::StoreU(factor, d, rescale);
}

// kVectors vectors of rows from `lane` on.
template <int kVectors>
HWY_INLINE void AttendLanes(const Chunk& chunk, const Block& block, int64_t head_dim, int64_t lane,
                            float* HWY_RESTRICT all_scores) {
  const hn::ScalableTag<float> d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  float* HWY_RESTRICT scores = all_scores + lane;
  const float* HWY_RESTRICT q = block.q + lane;
  int64_t j = 0;
  for (; j + kTall <= chunk.count; j += kTall) {
    ScoreTile<kTall, kVectors>(chunk.k_rows + j, head_dim, q, scores + j * kBlockRows);
  }
  for (; j < chunk.count; ++j) {
    ScoreTile<1, kVectors>(chunk.k_rows + j, head_dim, q, scores + j * kBlockRows);
  }
  HWY_ALIGN float rescale[kBlockRows];
  for (int c = 0; c < kVectors; ++c) {
    SoftmaxLanes(chunk, block, lane + c * lanes, scores + c * lanes, rescale + c * lanes);
  }
  float* HWY_RESTRICT out = block.out + lane;
  int64_t i = 0;
  for (; i + kTall <= head_dim; i += kTall) {
    ValueTile<kTall, kVectors>(chunk.v_rows, chunk.count, i, scores, rescale, out);
  }
  for (; i + 4 <= head_dim; i += 4) {
    ValueTile<4, kVectors>(chunk.v_rows, chunk.count, i, scores, rescale, out);
  }
  for (; i < head_dim; ++i) {
    ValueTile<1, kVectors>(chunk.v_rows, chunk.count, i, scores, rescale, out);
  }
}

// One block of up to kBlockRows rows against one chunk.
void AttendBlock(const Chunk& chunk, const Block& block, int64_t num_rows, int64_t head_dim,
                 float* scores) {
  const hn::ScalableTag<float> d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  int64_t lane = 0;
  for (; lane + (kWide - 1) * lanes < num_rows; lane += kWide * lanes) {
    AttendLanes<kWide>(chunk, block, head_dim, lane, scores);
  }
  if constexpr (kWide > 2) {
    if (lane + lanes < num_rows) {
      AttendLanes<2>(chunk, block, head_dim, lane, scores);
      lane += 2 * lanes;
    }
  }
  for (; lane < num_rows; lane += lanes) AttendLanes<1>(chunk, block, head_dim, lane, scores);
}

void AttendMany(const ManyRowsArgs& args) {
  const int64_t head_dim = args.head_dim;
  const int64_t num_blocks = (args.num_rows + kBlockRows - 1) / kBlockRows;
  std::fill(args.maxima, args.maxima + num_blocks * kBlockRows, kMasked);
  std::fill(args.sums, args.sums + num_blocks * kBlockRows, 0.0f);
  std::fill(args.out, args.out + num_blocks * head_dim * kBlockRows, 0.0f);
  const int64_t first = args.keys[0].begin;
  const int64_t last = args.keys[args.num_rows - 1].end;
  const float* k_rows[kManyRowsChunk];
  const float* v_rows[kManyRowsChunk];
  for (int64_t j = 0; j < kManyRowsChunk; ++j) {
    k_rows[j] = args.wide + j * head_dim;
    v_rows[j] = k_rows[j] + kManyRowsChunk * head_dim;
  }
  // Chunks end at multiples of their size, wherever the first begins: the order of a row's sums is
  // a function of its positions, not of the other rows.
  for (int64_t begin = first, end = 0; begin < last; begin = end) {
    end = std::min(last, (begin / kManyRowsChunk + 1) * kManyRowsChunk);
    args.widen(begin, end, args.wide, args.wide + kManyRowsChunk * head_dim);
    for (int64_t b = 0; b < num_blocks; ++b) {
      const int64_t num_rows = std::min(kBlockRows, args.num_rows - b * kBlockRows);
      const KeyRange* keys = args.keys + b * kBlockRows;
      // What no row of the block sees is left out: keys before its first row's and after its last
      // row's.
      const int64_t from = std::max<int64_t>(begin, keys[0].begin);
      const int64_t to = std::min<int64_t>(end, keys[num_rows - 1].end);
      if (from >= to) continue;
      const bool masked = to > keys[0].end || from < keys[num_rows - 1].begin;
      const Chunk chunk = {from, to - from, k_rows + (from - begin), v_rows + (from - begin),
                           masked};
      const Block block = {args.q + b * head_dim * kBlockRows, keys, args.maxima + b * kBlockRows,
                           args.sums + b * kBlockRows, args.out + b * head_dim * kBlockRows};
      AttendBlock(chunk, block, num_rows, head_dim, args.scores);
    }
  }
  for (int64_t b = 0; b < num_blocks; ++b) {
    float* out = args.out + b * head_dim * kBlockRows;
    const float* sums = args.sums + b * kBlockRows;
    float inverse[kBlockRows];
    for (int64_t r = 0; r < kBlockRows; ++r) inverse[r] = 1.0f / sums[r];
    for (int64_t i = 0; i < head_dim; ++i) {
      for (int64_t r = 0; r < kBlockRows; ++r) out[i * kBlockRows + r] *= inverse[r];
    }
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace thinwire
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace thinwire {
namespace {

HWY_EXPORT(AttendMany);

}  // namespace

void AttendManyRows(const ManyRowsArgs& args) { HWY_DYNAMIC_DISPATCH(AttendMany)(args); }

}  // namespace thinwire
#endif  // HWY_ONCE
