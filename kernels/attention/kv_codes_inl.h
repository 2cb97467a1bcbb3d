// Unpacking rows of codes (kernels/attention/kv_codes.h) into vectors of fp32. A Highway per-target
// header, as kernels/convert/convert_inl.h.

#if defined(THINWIRE_KERNELS_ATTENTION_KV_CODES_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef THINWIRE_KERNELS_ATTENTION_KV_CODES_INL_H_
#undef THINWIRE_KERNELS_ATTENTION_KV_CODES_INL_H_
#else
#define THINWIRE_KERNELS_ATTENTION_KV_CODES_INL_H_
#endif

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "hwy/highway.h"
#include "kernels/attention/kv_codes.h"

// Whether a permutation by the low 4 bits of an index turns codes of up to 4 bits into floats.
#undef THINWIRE_TARGET_HAS_TABLE_OF_16
#if HWY_TARGET == HWY_AVX3 || HWY_TARGET == HWY_AVX3_DL
#define THINWIRE_TARGET_HAS_TABLE_OF_16 1
#else
#define THINWIRE_TARGET_HAS_TABLE_OF_16 0
#endif

HWY_BEFORE_NAMESPACE();
namespace thinwire {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

using CodesTag = hn::ScalableTag<float>;
using CodeFloats = hn::Vec<CodesTag>;
using CodeBits = hn::Vec<hn::RebindToUnsigned<CodesTag>>;

// The lanes of a unit are taken in as many vectors as it needs: vector of lanes [lane, lane +
// kCodeLanes).
constexpr int64_t kCodeLanes = static_cast<int64_t>(hn::MaxLanes(CodesTag()));
static_assert(kKvUnit % kCodeLanes == 0);

// The lanes' fields of a part, zero-extended for sizes of 8 and more, with neighbours' bits above
// the field for smaller ones.
template <int kSize>
HWY_INLINE CodeBits LoadPart(const uint8_t* HWY_RESTRICT from, int64_t lane) {
  const hn::RebindToUnsigned<CodesTag> du;
  if constexpr (kSize == 32) {
    return hn::LoadU(du, reinterpret_cast<const uint32_t*>(from) + lane);
  } else if constexpr (kSize == 16) {
    const hn::Rebind<uint16_t, CodesTag> d16;
    return hn::PromoteTo(du, hn::LoadU(d16, reinterpret_cast<const uint16_t*>(from) + lane));
  } else if constexpr (kSize == 8) {
    const hn::Rebind<uint8_t, CodesTag> d8;
    return hn::PromoteTo(du, hn::LoadU(d8, from + lane));
  } else {
    uint64_t bits = 0;
    std::memcpy(&bits, from, 2 * kSize);
    HWY_ALIGN static constexpr uint32_t kShifts[3][kKvUnit] = {
        {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15},
        {0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30},
        {0, 0, 4, 4, 8, 8, 12, 12, 16, 16, 20, 20, 24, 24, 28, 28}};
#if HWY_TARGET == HWY_SCALAR
    const auto all = hn::Set(du, static_cast<uint32_t>(kSize == 4 && lane % 2 ? bits >> 32 : bits));
#else
    const hn::Repartition<uint64_t, decltype(du)> d64;
    const auto all =
        kSize == 4 ? hn::BitCast(du, hn::Set(d64, bits)) : hn::Set(du, static_cast<uint32_t>(bits));
#endif
    return hn::Shr(all, hn::LoadU(du, kShifts[kSize / 2] + lane));
  }
}

// words[j] |= a part of row j of kRows rows that are row_bytes apart.
template <int kSize, int kRows>
HWY_INLINE void AddPart(const uint8_t* HWY_RESTRICT rows, int64_t row_bytes, const KvWordPart& part,
                        bool last, int64_t lane, CodeBits* HWY_RESTRICT words) {
  const hn::RebindToUnsigned<CodesTag> du;
  const auto shift = hn::Set(du, static_cast<uint32_t>(part.shift));
#pragma GCC unroll 8
  for (int j = 0; j < kRows; ++j) {
    CodeBits field = LoadPart<kSize>(rows + j * row_bytes + part.offset, lane);
    // Bits above the word's last code are masked with those of the next code.
    if (kSize < 8 && !last) field = hn::And(field, hn::Set(du, (1u << kSize % 32) - 1u));
    words[j] = part.shift == 0 ? field : hn::Or(words[j], hn::Shl(field, shift));
  }
}

// The same word of kRows rows that are row_bytes apart; bits above the last unit are undefined.
template <int kRows>
HWY_INLINE void LoadWords(const uint8_t* HWY_RESTRICT rows, int64_t row_bytes, const KvWord& word,
                          int64_t lane, CodeBits* HWY_RESTRICT words) {
#pragma GCC unroll 8
  for (int j = 0; j < kRows; ++j) words[j] = hn::Zero(hn::RebindToUnsigned<CodesTag>());
  for (int32_t p = 0; p < word.num_parts; ++p) {
    const KvWordPart& part = word.parts[p];
    const bool last = p + 1 == word.num_parts;
    switch (part.size) {
      case 32:
        AddPart<32, kRows>(rows, row_bytes, part, last, lane, words);
        break;
      case 16:
        AddPart<16, kRows>(rows, row_bytes, part, last, lane, words);
        break;
      case 8:
        AddPart<8, kRows>(rows, row_bytes, part, last, lane, words);
        break;
      case 4:
        AddPart<4, kRows>(rows, row_bytes, part, last, lane, words);
        break;
      case 2:
        AddPart<2, kRows>(rows, row_bytes, part, last, lane, words);
        break;
      default:
        AddPart<1, kRows>(rows, row_bytes, part, last, lane, words);
    }
  }
}

// Takes the codes of one unit out of words, as fp32; exact.
// kNarrow: bits <= 4, and the target has a table of 16.
template <bool kNarrow>
class UnitReader {
 public:
  HWY_INLINE explicit UnitReader(const KvUnit& unit)
      : shift_(hn::Set(hn::RebindToUnsigned<CodesTag>(), static_cast<uint32_t>(unit.shift))),
        mask_(hn::Set(hn::RebindToUnsigned<CodesTag>(), (1u << unit.bits) - 1u)),
        table_(Table(unit.bits)) {}

  HWY_INLINE CodeFloats Read(CodeBits word) const {
    const CodesTag d;
    const hn::RebindToUnsigned<CodesTag> du;
    const hn::RebindToSigned<CodesTag> di;
    const CodeBits shifted = hn::Shr(word, shift_);
    if constexpr (kNarrow) {
#if HWY_IS_DEBUG_BUILD
      const CodeBits index = hn::And(shifted, hn::Set(du, 15u));
#else
      const CodeBits index = shifted;  // the permutation reads the low 4 bits only
      (void)du;
#endif
      return hn::TableLookupLanes(table_, hn::IndicesFromVec(d, hn::BitCast(di, index)));
    } else {
      return hn::ConvertTo(d, hn::BitCast(di, hn::And(shifted, mask_)));
    }
  }

 private:
  // Entry i is the code in the low `bits` bits of i.
  static HWY_INLINE CodeFloats Table(int32_t bits) {
    const CodesTag d;
    if constexpr (kNarrow) {
      HWY_ALIGN static constexpr float kTables[4][16] = {
          {0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1},
          {0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3},
          {0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3, 4, 5, 6, 7},
          {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}};
      return hn::LoadU(d, kTables[bits - 1]);
    } else {
      return hn::Zero(d);
    }
  }

  CodeBits shift_;
  CodeBits mask_;
  CodeFloats table_;
};

}  // namespace HWY_NAMESPACE
}  // namespace thinwire
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
