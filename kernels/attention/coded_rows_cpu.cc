// Rows of codes from values, and back to values for attention over many rows.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "kernels/attention/coded_attention_cpu.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/attention/coded_rows_cpu.cc"
#include "hwy/foreach_target.h"
// After foreach_target.h.
#include "hwy/highway.h"
#include "kernels/attention/kv_codes_inl.h"

HWY_BEFORE_NAMESPACE();
namespace thinwire {
namespace HWY_NAMESPACE {

// Rows widened at a time.
constexpr int kWidenedRows = 4;

// to[j, unit] = values of kRows rows.
template <int kRows, bool kNarrow>
HWY_INLINE void WidenUnit(const KvUnit& unit, const CodeBits* HWY_RESTRICT words,
                          const float* HWY_RESTRICT step, const float* HWY_RESTRICT zero,
                          int64_t head_dim, float* HWY_RESTRICT to) {
  const CodesTag d;
  const UnitReader<kNarrow> reader(unit);
  const CodeFloats steps = hn::LoadU(d, step);
  const CodeFloats offset = hn::Neg(hn::Mul(steps, hn::LoadU(d, zero)));
#pragma GCC unroll 8
  for (int j = 0; j < kRows; ++j) {
    hn::StoreU(hn::MulAdd(reader.Read(words[j]), steps, offset), d, to + j * head_dim);
  }
}

// kRows rows of one page, one after the other.
template <int kRows>
HWY_INLINE void WidenTile(const CodedRows& rows, const uint8_t* HWY_RESTRICT from,
                          float* HWY_RESTRICT to) {
  const KvCodes& codes = *rows.codes;
  const KvHeadCodes& head = codes.head(rows.kv_head);
  const KvUnit* units = codes.units(rows.kv_head).data();
  for (int64_t lane = 0; lane < kKvUnit; lane += kCodeLanes) {
    for (const KvWord& word : codes.words(rows.kv_head)) {
      CodeBits words[kRows];
      LoadWords<kRows>(from, rows.row_bytes, word, lane, words);
      for (int32_t u = word.first_unit; u < word.first_unit + word.num_units; ++u) {
        const int64_t position = u * kKvUnit + lane;
        const float* step = head.step.data() + position;
        const float* zero = head.zero.data() + position;
        if (THINWIRE_TARGET_HAS_TABLE_OF_16 && units[u].bits <= 4) {
          WidenUnit<kRows, THINWIRE_TARGET_HAS_TABLE_OF_16 != 0>(units[u], words, step, zero,
                                                                 codes.head_dim(), to + position);
        } else {
          WidenUnit<kRows, false>(units[u], words, step, zero, codes.head_dim(), to + position);
        }
      }
    }
  }
}

void WidenRows(const CodedRows& rows, int64_t begin, int64_t end, float* HWY_RESTRICT to) {
  const int64_t head_dim = rows.codes->head_dim();
  while (begin < end) {
    const int64_t row = begin % rows.page_size;
    const int64_t run = std::min(end - begin, rows.page_size - row);
    const uint8_t* from = rows.first + rows.page_ids[begin / rows.page_size] * rows.page_stride +
                          row * rows.row_bytes;
    int64_t j = 0;
    for (; j + kWidenedRows <= run; j += kWidenedRows) {
      WidenTile<kWidenedRows>(rows, from + j * rows.row_bytes, to + j * head_dim);
    }
    for (; j < run; ++j) WidenTile<1>(rows, from + j * rows.row_bytes, to + j * head_dim);
    begin += run;
    to += run * head_dim;
  }
}

// The lanes' lowest kSize bits of a word shifted to the part's, as the part's bytes.
HWY_INLINE void StorePart(const KvWordPart& part, const uint32_t* HWY_RESTRICT word,
                          uint8_t* HWY_RESTRICT row) {
  uint8_t* HWY_RESTRICT to = row + part.offset;
  switch (part.size) {
    case 32:
      std::memcpy(to, word, kKvUnit * sizeof(uint32_t));
      return;
    case 16:
      for (int64_t i = 0; i < kKvUnit; ++i) {
        const auto field = static_cast<uint16_t>(word[i] >> part.shift);
        std::memcpy(to + 2 * i, &field, sizeof(field));
      }
      return;
    case 8:
      for (int64_t i = 0; i < kKvUnit; ++i) to[i] = static_cast<uint8_t>(word[i] >> part.shift);
      return;
    default: {
      const uint32_t mask = (1u << part.size) - 1u;
      uint64_t bits = 0;
      for (int64_t i = 0; i < kKvUnit; ++i) {
        const int64_t at = part.size == 1 ? i : part.size * (i / 2) + i % 2 * 8 * part.size;
        bits |= uint64_t{word[i] >> part.shift & mask} << at;
      }
      std::memcpy(to, &bits, static_cast<size_t>(2 * part.size));
    }
  }
}

// One head's values to its row. False when some value is not finite.
bool EncodeRow(const KvCodes& codes, int64_t h, const float* HWY_RESTRICT x,
               uint8_t* HWY_RESTRICT row) {
  const CodesTag d;
  const hn::RebindToSigned<CodesTag> di;
  const hn::RebindToUnsigned<CodesTag> du;
  const KvHeadCodes& head = codes.head(h);
  const float* HWY_RESTRICT step = head.step.data();
  const float* HWY_RESTRICT zero = head.zero.data();
  // x - x is NaN where x is not finite, and stays so in the sum.
  CodeFloats wrong = hn::Zero(d);
  int64_t written = 0;
  for (const KvWord& word : codes.words(h)) {
    HWY_ALIGN uint32_t lanes[kKvUnit];
    for (int64_t lane = 0; lane < kKvUnit; lane += kCodeLanes) {
      CodeBits bits = hn::Zero(du);
      for (int32_t u = word.first_unit; u < word.first_unit + word.num_units; ++u) {
        const KvUnit& unit = codes.units(h)[static_cast<size_t>(u)];
        const int64_t position = u * kKvUnit + lane;
        const auto channels = hn::LoadU(di, head.order.data() + position);
        const CodeFloats values = hn::GatherIndex(d, x, channels);
        wrong = hn::Add(wrong, hn::Sub(values, values));
        const CodeFloats scaled =
            hn::Add(hn::Div(values, hn::LoadU(d, step + position)), hn::LoadU(d, zero + position));
        const CodeFloats largest = hn::Set(d, static_cast<float>((1 << unit.bits) - 1));
        const CodeFloats clamped = hn::Min(hn::Max(hn::Round(scaled), hn::Zero(d)), largest);
        const auto code = hn::BitCast(du, hn::ConvertTo(di, clamped));
        bits = hn::Or(bits, hn::Shl(code, hn::Set(du, static_cast<uint32_t>(unit.shift))));
      }
      hn::StoreU(bits, du, lanes + lane);
    }
    for (int32_t p = 0; p < word.num_parts; ++p) {
      StorePart(word.parts[p], lanes, row);
      written = word.parts[p].offset + 2 * word.parts[p].size;
    }
  }
  std::fill(row + written, row + codes.row_bytes(), uint8_t{0});
  return hn::AllTrue(d, hn::Eq(wrong, hn::Zero(d)));
}

int64_t Encode(const KvCodes& codes, const float* x, uint8_t* to, int64_t head_stride) {
  const int64_t head_dim = codes.head_dim();
  for (int64_t h = 0; h < codes.num_heads(); ++h) {
    const float* values = x + h * head_dim;
    if (EncodeRow(codes, h, values, to + h * head_stride)) continue;
    for (int64_t i = 0; i < head_dim; ++i) {
      if (!(values[i] - values[i] == 0.0f)) return h * head_dim + i;
    }
  }
  return -1;
}

}  // namespace HWY_NAMESPACE
}  // namespace thinwire
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace thinwire {
namespace {

HWY_EXPORT(WidenRows);
HWY_EXPORT(Encode);

}  // namespace

void WidenCodedRows(const CodedRows& rows, int64_t begin, int64_t end, float* to) {
  HWY_DYNAMIC_DISPATCH(WidenRows)(rows, begin, end, to);
}

int64_t EncodeToken(const KvCodes& codes, const float* x, uint8_t* to, int64_t head_stride) {
  return HWY_DYNAMIC_DISPATCH(Encode)(codes, x, to, head_stride);
}

}  // namespace thinwire
#endif  // HWY_ONCE
