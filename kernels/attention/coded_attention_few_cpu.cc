// Few rows (decode): the codes of some keys are loaded as words of 32 bits a lane, and each unit is
// taken out of them once for all queries of the group, never written to memory. The softmax is
// online over chunks of keys.
#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "kernels/attention/coded_attention_cpu.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/attention/coded_attention_few_cpu.cc"
#include "hwy/foreach_target.h"
// After foreach_target.h.
#include "hwy/cache_control.h"
#include "hwy/highway.h"
#include "kernels/attention/few_rows_inl.h"
#include "kernels/attention/kv_codes_inl.h"

HWY_BEFORE_NAMESPACE();
namespace thinwire {
namespace HWY_NAMESPACE {

// Keys of a tile, whose words stay in registers; a chunk is padded to whole tiles.
constexpr int kTileKeys = 4;
static_assert(kFewRowsChunk % kTileKeys == 0);

// Rows of a tile.
#if HWY_TARGET == HWY_AVX2 || HWY_TARGET == HWY_SCALAR
constexpr int kTileRows = 2;
#else
constexpr int kTileRows = 4;
#endif

// The layout of a KV head's rows.
struct RowLayout {
  absl::Span<const KvWord> words;
  const KvUnit* units;
};

// sums[r][j] += q[r, unit] * the unit's codes of key j.
template <int kRows, bool kNarrow>
HWY_INLINE void ScoreUnit(const KvUnit& unit, const CodeBits* HWY_RESTRICT words,
                          const float* HWY_RESTRICT q, int64_t q_stride,
                          CodeFloats (*HWY_RESTRICT sums)[kTileKeys]) {
  const CodesTag d;
  const UnitReader<kNarrow> reader(unit);
#pragma GCC unroll 8
  for (int j = 0; j < kTileKeys; ++j) {
    const CodeFloats codes = reader.Read(words[j]);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      sums[r][j] = hn::MulAdd(codes, hn::LoadU(d, q + r * q_stride), sums[r][j]);
    }
  }
}

// scores[r, 0 .. kTileKeys) of kRows queries.
template <int kRows>
HWY_INLINE void ScoreTile(const uint8_t* const* HWY_RESTRICT keys, const RowLayout& layout,
                          const float* HWY_RESTRICT q, int64_t q_stride,
                          float* HWY_RESTRICT scores) {
  const CodesTag d;
  CodeFloats sums[kRows][kTileKeys];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int j = 0; j < kTileKeys; ++j) sums[r][j] = hn::Zero(d);
  }
  for (int64_t lane = 0; lane < kKvUnit; lane += kCodeLanes) {
    for (const KvWord& word : layout.words) {
      CodeBits words[kTileKeys];
      LoadWords<kTileKeys>(keys, word, lane, words);
      const int32_t end = word.first_unit + word.num_units;
      for (int32_t u = word.first_unit; u < end; ++u) {
        const float* HWY_RESTRICT q_unit = q + u * kKvUnit + lane;
        const KvUnit& unit = layout.units[u];
        if (THINWIRE_TARGET_HAS_TABLE_OF_16 && unit.bits <= 4) {
          ScoreUnit<kRows, THINWIRE_TARGET_HAS_TABLE_OF_16 != 0>(unit, words, q_unit, q_stride,
                                                                 sums);
        } else {
          ScoreUnit<kRows, false>(unit, words, q_unit, q_stride, sums);
        }
      }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
    SumLanesOfFour(d, sums[r][0], sums[r][1], sums[r][2], sums[r][3], scores + r * kFewRowsChunk);
  }
}

// out[r, unit] += weights[r, j] * the unit's codes of key j.
template <int kRows, bool kNarrow>
HWY_INLINE void ValueUnit(const KvUnit& unit, const CodeBits* HWY_RESTRICT words,
                          const float* HWY_RESTRICT weights, float* HWY_RESTRICT out,
                          int64_t out_stride) {
  const CodesTag d;
  const UnitReader<kNarrow> reader(unit);
  CodeFloats sums[kRows];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) sums[r] = hn::LoadU(d, out + r * out_stride);
#pragma GCC unroll 8
  for (int j = 0; j < kTileKeys; ++j) {
    const CodeFloats codes = reader.Read(words[j]);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      sums[r] = hn::MulAdd(codes, hn::Set(d, weights[r * kFewRowsChunk + j]), sums[r]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) hn::StoreU(sums[r], d, out + r * out_stride);
}

template <int kRows>
HWY_INLINE void ValueTile(const uint8_t* const* HWY_RESTRICT values, const RowLayout& layout,
                          const float* HWY_RESTRICT weights, float* HWY_RESTRICT out,
                          int64_t out_stride) {
  for (int64_t lane = 0; lane < kKvUnit; lane += kCodeLanes) {
    for (const KvWord& word : layout.words) {
      CodeBits words[kTileKeys];
      LoadWords<kTileKeys>(values, word, lane, words);
      const int32_t end = word.first_unit + word.num_units;
      for (int32_t u = word.first_unit; u < end; ++u) {
        float* HWY_RESTRICT out_unit = out + u * kKvUnit + lane;
        const KvUnit& unit = layout.units[u];
        if (THINWIRE_TARGET_HAS_TABLE_OF_16 && unit.bits <= 4) {
          ValueUnit<kRows, THINWIRE_TARGET_HAS_TABLE_OF_16 != 0>(unit, words, weights, out_unit,
                                                                 out_stride);
        } else {
          ValueUnit<kRows, false>(unit, words, weights, out_unit, out_stride);
        }
      }
    }
  }
}

// The rows of K or V of one chunk, the last repeated up to a whole tile.
struct ChunkRows {
  const uint8_t* rows[kFewRowsChunk];
  int64_t count;  // with repetitions

  void Locate(const CodedRows& of, int64_t begin, int64_t end) {
    of.Locate(begin, end, rows);
    count = end - begin;
    for (; count % kTileKeys != 0; ++count) rows[count] = rows[count - 1];
  }
};

// Asks for the tile that is read kAhead keys after tile j of `rows`: pages end before the hardware
// sees a pattern.
HWY_INLINE void PrefetchAhead(const ChunkRows& rows, int64_t j, int64_t row_bytes,
                              const ChunkRows& next, int64_t next_row_bytes) {
  constexpr int64_t kAhead = 32;
  const int64_t ahead = j + kAhead;
  const bool inside = ahead < rows.count;
  if (!inside && ahead - rows.count >= next.count) return;
  const uint8_t* const* from = inside ? rows.rows + ahead : next.rows + (ahead - rows.count);
  const int64_t num_bytes = inside ? row_bytes : next_row_bytes;
  for (int i = 0; i < kTileKeys; ++i) {
    for (int64_t b = 0; b < num_bytes; b += 64) hwy::Prefetch(from[i] + b);
  }
}

void AttendFewCoded(const CodedFewRows& args) {
  const int64_t head_dim = args.k.codes->head_dim();
  const int64_t stride = PaddedFloats(head_dim);
  const int64_t num_rows = args.num_rows;
  const RowLayout k_layout = {args.k.codes->words(args.k.kv_head),
                              args.k.codes->units(args.k.kv_head).data()};
  const RowLayout v_layout = {args.v.codes->words(args.v.kv_head),
                              args.v.codes->units(args.v.kv_head).data()};
  int64_t first = args.keys[0].begin;
  int64_t last = args.keys[0].end;
  for (int64_t r = 0; r < num_rows; ++r) {
    first = std::min<int64_t>(first, args.keys[r].begin);
    last = std::max<int64_t>(last, args.keys[r].end);
  }
  std::fill(args.out, args.out + num_rows * stride, 0.0f);
  // Chunks end at multiples of their size, wherever the first begins: the order of a row's sums is
  // a function of its positions, not of the other rows.
  const auto chunk_end = [&](int64_t begin) {
    return std::min(last, (begin / kFewRowsChunk + 1) * kFewRowsChunk);
  };
  ChunkRows k, v, next_k;
  if (first < last) next_k.Locate(args.k, first, chunk_end(first));
  for (int64_t chunk = first, end = 0; chunk < last; chunk = end) {
    end = chunk_end(chunk);
    k = next_k;
    v.Locate(args.v, chunk, end);
    next_k.count = 0;
    if (end < last) next_k.Locate(args.k, end, chunk_end(end));
    for (int64_t j = 0; j < k.count; j += kTileKeys) {
      PrefetchAhead(k, j, args.k.row_bytes, v, args.v.row_bytes);
      for (int64_t r = 0; r < num_rows;) {
        const float* q = args.q + r * stride;
        float* scores = args.scores + r * kFewRowsChunk + j;
        if (kTileRows >= 4 && num_rows - r >= 4) {
          ScoreTile<kTileRows>(k.rows + j, k_layout, q, stride, scores);
          r += kTileRows;
        } else if (num_rows - r >= 2) {
          ScoreTile<2>(k.rows + j, k_layout, q, stride, scores);
          r += 2;
        } else {
          ScoreTile<1>(k.rows + j, k_layout, q, stride, scores);
          r += 1;
        }
      }
    }
    for (int64_t r = 0; r < num_rows; ++r) {
      const int64_t a = std::clamp<int64_t>(args.keys[r].begin - chunk, 0, end - chunk);
      const int64_t b = std::clamp<int64_t>(args.keys[r].end - chunk, a, end - chunk);
      CodedRowState& state = args.states[r];
      RowState running = {state.maximum, state.sum};
      const float rescale = SoftmaxChunk(args.scores + r * kFewRowsChunk, a, b, v.count,
                                         args.out + r * stride, stride, running);
      state = {running.maximum, running.sum, state.exact * rescale};
    }
    for (int64_t j = 0; j < v.count; j += kTileKeys) {
      PrefetchAhead(v, j, args.v.row_bytes, next_k, args.k.row_bytes);
      for (int64_t r = 0; r < num_rows;) {
        const float* weights = args.scores + r * kFewRowsChunk + j;
        float* out = args.out + r * stride;
        if (kTileRows >= 4 && num_rows - r >= 4) {
          ValueTile<kTileRows>(v.rows + j, v_layout, weights, out, stride);
          r += kTileRows;
        } else if (num_rows - r >= 2) {
          ValueTile<2>(v.rows + j, v_layout, weights, out, stride);
          r += 2;
        } else {
          ValueTile<1>(v.rows + j, v_layout, weights, out, stride);
          r += 1;
        }
      }
    }
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace thinwire
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace thinwire {
namespace {

HWY_EXPORT(AttendFewCoded);

}  // namespace

void AttendFewCodedRows(const CodedFewRows& args) { HWY_DYNAMIC_DISPATCH(AttendFewCoded)(args); }

}  // namespace thinwire
#endif  // HWY_ONCE
