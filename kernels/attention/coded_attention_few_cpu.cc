// Few rows (decode): the codes of some keys are loaded as words of 32 bits a lane, and each unit is
// taken out of them once for all queries of the group, never written to memory. The softmax is
// online over chunks of keys.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#include "absl/types/span.h"
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

// Keys of a tile, at positions that are a multiple of it.
constexpr int kTileKeys = 8;
static_assert(kFewRowsChunk % kTileKeys == 0);

// Keys whose words are in registers at a time.
constexpr int ScoreKeys(int num_rows) { return num_rows >= 4 ? 4 : 8; }
constexpr int kValueKeys = 8;

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
  int64_t row_bytes;
};

// The rows of K or V in tiles.
class TileReader {
 public:
  // Positions [first, last).
  TileReader(const CodedRows& rows, int64_t first, int64_t last)
      : rows_(rows), page_size_(static_cast<uint32_t>(rows.page_size)), last_(last) {
    for (int64_t j = first; j < first + kAhead; j += kTileKeys) Prefetch(j);
    if (page_size_ % kTileKeys != 0 || last % kTileKeys != 0) {
      gathered_.resize(static_cast<size_t>(kTileKeys * rows.row_bytes));
    }
  }

  // The rows of positions [j, j + kTileKeys), one after the other; what lies beyond the last
  // position is any codes. Valid until the next call.
  HWY_INLINE const uint8_t* Read(int64_t j) {
    Prefetch(j + kAhead);
    if (page_size_ % kTileKeys == 0 && j + kTileKeys <= last_) return Address(j);
    for (int64_t i = 0; i < kTileKeys; ++i) {
      std::memcpy(gathered_.data() + i * rows_.row_bytes, Address(std::min(j + i, last_ - 1)),
                  static_cast<size_t>(rows_.row_bytes));
    }
    return gathered_.data();
  }

 private:
  // Pages end before the hardware sees a pattern.
  static constexpr int64_t kAhead = 4 * kTileKeys;

  HWY_INLINE const uint8_t* Address(int64_t position) const {
    const auto at = static_cast<uint32_t>(position);
    return rows_.first + rows_.page_ids[at / page_size_] * rows_.page_stride +
           at % page_size_ * rows_.row_bytes;
  }

  HWY_INLINE void Prefetch(int64_t j) const {
    if (j >= last_) return;
    const uint8_t* from = Address(j);
    for (int64_t i = 0; i < kTileKeys * rows_.row_bytes; i += 64) hwy::Prefetch(from + i);
  }

  const CodedRows rows_;
  const uint32_t page_size_;
  const int64_t last_;
  std::vector<uint8_t> gathered_;
};

// sums[r][j] += q[r, unit] * the unit's codes of key j.
template <int kRows, int kKeys, bool kNarrow>
HWY_INLINE void ScoreUnit(const KvUnit& unit, const CodeBits* HWY_RESTRICT words,
                          const float* HWY_RESTRICT q, int64_t q_stride,
                          CodeFloats (*HWY_RESTRICT sums)[kKeys]) {
  const CodesTag d;
  const UnitReader<kNarrow> reader(unit);
#pragma GCC unroll 8
  for (int j = 0; j < kKeys; ++j) {
    const CodeFloats codes = reader.Read(words[j]);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      sums[r][j] = hn::MulAdd(codes, hn::LoadU(d, q + r * q_stride), sums[r][j]);
    }
  }
}

// scores[r, 0 .. kKeys) of kRows queries.
template <int kRows, int kKeys>
HWY_INLINE void ScoreTile(const uint8_t* HWY_RESTRICT keys, const RowLayout& layout,
                          const float* HWY_RESTRICT q, int64_t q_stride,
                          float* HWY_RESTRICT scores) {
  const CodesTag d;
  CodeFloats sums[kRows][kKeys];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int j = 0; j < kKeys; ++j) sums[r][j] = hn::Zero(d);
  }
  for (int64_t lane = 0; lane < kKvUnit; lane += kCodeLanes) {
    for (const KvWord& word : layout.words) {
      CodeBits words[kKeys];
      LoadWords<kKeys>(keys, layout.row_bytes, word, lane, words);
      const int32_t end = word.first_unit + word.num_units;
      for (int32_t u = word.first_unit; u < end; ++u) {
        const float* HWY_RESTRICT q_unit = q + u * kKvUnit + lane;
        const KvUnit& unit = layout.units[u];
        if (THINWIRE_TARGET_HAS_TABLE_OF_16 && unit.bits <= 4) {
          ScoreUnit<kRows, kKeys, THINWIRE_TARGET_HAS_TABLE_OF_16 != 0>(unit, words, q_unit,
                                                                        q_stride, sums);
        } else {
          ScoreUnit<kRows, kKeys, false>(unit, words, q_unit, q_stride, sums);
        }
      }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
    for (int j = 0; j < kKeys; j += 4) {
      SumLanesOfFour(d, sums[r][j], sums[r][j + 1], sums[r][j + 2], sums[r][j + 3],
                     scores + r * kFewRowsChunk + j);
    }
  }
}

// scores[r, 0 .. kTileKeys) of kRows queries.
template <int kRows>
HWY_INLINE void ScoreTiles(const uint8_t* HWY_RESTRICT keys, const RowLayout& layout,
                           const float* HWY_RESTRICT q, int64_t q_stride,
                           float* HWY_RESTRICT scores) {
  constexpr int kKeys = ScoreKeys(kRows);
  for (int j = 0; j < kTileKeys; j += kKeys) {
    ScoreTile<kRows, kKeys>(keys + j * layout.row_bytes, layout, q, q_stride, scores + j);
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
  for (int j = 0; j < kValueKeys; ++j) {
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
HWY_INLINE void ValueTile(const uint8_t* HWY_RESTRICT values, const RowLayout& layout,
                          const float* HWY_RESTRICT weights, float* HWY_RESTRICT out,
                          int64_t out_stride) {
  for (int64_t lane = 0; lane < kKvUnit; lane += kCodeLanes) {
    for (const KvWord& word : layout.words) {
      CodeBits words[kValueKeys];
      LoadWords<kValueKeys>(values, layout.row_bytes, word, lane, words);
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

RowLayout Layout(const CodedRows& rows) {
  return {rows.codes->words(rows.kv_head), rows.codes->units(rows.kv_head).data(), rows.row_bytes};
}

void AttendFewCoded(const CodedFewRows& args) {
  const int64_t head_dim = args.k.codes->head_dim();
  const int64_t stride = PaddedFloats(head_dim);
  const int64_t num_rows = args.num_rows;
  const RowLayout k_layout = Layout(args.k), v_layout = Layout(args.v);
  int64_t first = args.keys[0].begin;
  int64_t last = args.keys[0].end;
  for (int64_t r = 0; r < num_rows; ++r) {
    first = std::min<int64_t>(first, args.keys[r].begin);
    last = std::max<int64_t>(last, args.keys[r].end);
  }
  std::fill(args.out, args.out + num_rows * stride, 0.0f);
  first = first / kTileKeys * kTileKeys;
  TileReader k_tiles(args.k, first, last), v_tiles(args.v, first, last);
  // Chunks end at multiples of their size, wherever the first begins: the order of a row's sums is
  // a function of its positions, not of the other rows.
  for (int64_t chunk = first, end = 0; chunk < last; chunk = end) {
    end = std::min(last, (chunk / kFewRowsChunk + 1) * kFewRowsChunk);
    const int64_t count = (end - chunk + kTileKeys - 1) / kTileKeys * kTileKeys;
    for (int64_t j = 0; j < count; j += kTileKeys) {
      const uint8_t* k = k_tiles.Read(chunk + j);
      for (int64_t r = 0; r < num_rows;) {
        const float* q = args.q + r * stride;
        float* scores = args.scores + r * kFewRowsChunk + j;
        if (kTileRows >= 4 && num_rows - r >= 4) {
          ScoreTiles<kTileRows>(k, k_layout, q, stride, scores);
          r += kTileRows;
        } else if (num_rows - r >= 2) {
          ScoreTiles<2>(k, k_layout, q, stride, scores);
          r += 2;
        } else {
          ScoreTiles<1>(k, k_layout, q, stride, scores);
          r += 1;
        }
      }
    }
    for (int64_t r = 0; r < num_rows; ++r) {
      const int64_t a = std::clamp<int64_t>(args.keys[r].begin - chunk, 0, end - chunk);
      const int64_t b = std::clamp<int64_t>(args.keys[r].end - chunk, a, end - chunk);
      CodedRowState& state = args.states[r];
      RowState running = {state.maximum, state.sum};
      const float rescale = SoftmaxChunk(args.scores + r * kFewRowsChunk, a, b, count,
                                         args.out + r * stride, stride, running);
      state = {running.maximum, running.sum, state.exact * rescale};
    }
    for (int64_t j = 0; j < count; j += kTileKeys) {
      const uint8_t* v = v_tiles.Read(chunk + j);
      for (int64_t r = 0; r < num_rows;) {
        const float* weights = args.scores + r * kFewRowsChunk + j;
        float* out = args.out + r * stride;
        if (kTileRows >= 4 && num_rows - r >= 4) {
          ValueTile<kTileRows>(v, v_layout, weights, out, stride);
          r += kTileRows;
        } else if (num_rows - r >= 2) {
          ValueTile<2>(v, v_layout, weights, out, stride);
          r += 2;
        } else {
          ValueTile<1>(v, v_layout, weights, out, stride);
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
