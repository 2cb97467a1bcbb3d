// Weights of CodedWeights as floats. A Highway per-target header.

// Not #pragma once: each target sees the contents once.
#if defined(THINWIRE_KERNELS_CODED_LINEAR_FLOATS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef THINWIRE_KERNELS_CODED_LINEAR_FLOATS_INL_H_
#undef THINWIRE_KERNELS_CODED_LINEAR_FLOATS_INL_H_
#else
#define THINWIRE_KERNELS_CODED_LINEAR_FLOATS_INL_H_
#endif

#include "kernels/coded_linear/unpack_inl.h"
#include "kernels/convert/convert_inl.h"

HWY_BEFORE_NAMESPACE();
namespace thinwire {
namespace HWY_NAMESPACE {

// The codes of a block as floats, less the middle of their range. Constants are kept in registers.
template <int kBits>
class Decoder {
 public:
  static constexpr int kMiddle = 1 << (kBits - 1);

  HWY_INLINE Decoder() {
#if HWY_TARGET == HWY_AVX3 || HWY_TARGET == HWY_AVX3_DL
    table_ = hn::Sub(hn::Iota(DF32(), 0.0f), hn::Set(DF32(), float{kMiddle})).raw;
#endif
  }

  // As UnpackBlock, for Column.
  HWY_INLINE void Load(const uint8_t* HWY_RESTRICT block, int v, Quads* HWY_RESTRICT quads) const {
#if HWY_TARGET == HWY_AVX3 || HWY_TARGET == HWY_AVX3_DL
    if constexpr (kBits == 4) {
      // Column's look-up ignores what is above a code.
      quads[0] = LoadQuads(block);
      quads[1] = hn::ShiftRight<4>(quads[0]);
      return;
    }
#endif
    UnpackBlock<kBits>(block, v, quads);
  }

  // Byte k, 0 to 3, of each lane.
  HWY_INLINE VF32 Column(Quads quads, int k) const {
    const DF32 df32;
    const DU32 du32;
    const DI32 di32;
    if constexpr (kBits == 8) {
      const auto lanes = hn::BitCast(di32, quads);
      const auto upper = k == 0   ? hn::ShiftLeft<24>(lanes)
                         : k == 1 ? hn::ShiftLeft<16>(lanes)
                         : k == 2 ? hn::ShiftLeft<8>(lanes)
                                  : lanes;
      return hn::ConvertTo(df32, hn::ShiftRight<24>(upper));
    } else {
      const auto shifted = k == 0   ? quads
                           : k == 1 ? hn::ShiftRight<8>(quads)
                           : k == 2 ? hn::ShiftRight<16>(quads)
                                    : hn::ShiftRight<24>(quads);
#if HWY_TARGET == HWY_AVX3 || HWY_TARGET == HWY_AVX3_DL
      return VF32{_mm512_permutexvar_ps(shifted.raw, table_)};
#else
      // 2^23 + code, exactly.
      const auto code = hn::And(shifted, hn::Set(du32, 15u));
      const auto large = hn::BitCast(df32, hn::Or(code, hn::Set(du32, 0x4b000000u)));
      return hn::Sub(large, hn::Set(df32, 8388608.0f + static_cast<float>(kMiddle)));
#endif
    }
  }

  // zeros: those of a panel's rows in one group. What to subtract from Column.
  HWY_INLINE VF32 Zeros(const uint8_t* HWY_RESTRICT zeros, int v) const {
    const hn::Rebind<uint8_t, DI32> d8;
    const VI32 loaded = hn::PromoteTo(DI32(), hn::LoadU(d8, zeros + kLanes * v));
    return hn::ConvertTo(DF32(), hn::Sub(loaded, hn::Set(DI32(), kMiddle)));
  }

#if HWY_TARGET == HWY_AVX3 || HWY_TARGET == HWY_AVX3_DL
 private:
  __m512 table_;
#endif
};

}  // namespace HWY_NAMESPACE
}  // namespace thinwire
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
