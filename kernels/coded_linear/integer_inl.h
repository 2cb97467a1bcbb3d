// The end of an integer product: gain, offset, bias and rounding. A Highway per-target header.

// Not #pragma once: each target sees the contents once.
#if defined(THINWIRE_KERNELS_CODED_LINEAR_INTEGER_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef THINWIRE_KERNELS_CODED_LINEAR_INTEGER_INL_H_
#undef THINWIRE_KERNELS_CODED_LINEAR_INTEGER_INL_H_
#else
#define THINWIRE_KERNELS_CODED_LINEAR_INTEGER_INL_H_
#endif

#include <algorithm>

#include "kernels/coded_linear/integer_cpu.h"
#include "kernels/coded_linear/unpack_inl.h"
#include "kernels/convert/convert_inl.h"

HWY_BEFORE_NAMESPACE();
namespace thinwire {
namespace HWY_NAMESPACE {

// sum + factor * isum, in every way of computing y alike.
HWY_INLINE VF32 AddSegment(VF32 sum, VF32 factor, VI32 isum) {
  return hn::MulAdd(hn::ConvertTo(DF32(), isum), factor, sum);
}

template <typename T>
HWY_INLINE void StorePanelOf(const IntegerLinearArgs& args, int64_t token, int64_t panel,
                             const VF32* HWY_RESTRICT sums) {
  const DF32 d;
  const float* const offset = args.offset.empty() ? nullptr : args.offset.data<float>();
  const float* const bias = args.bias.empty() ? nullptr : args.bias.data<float>();
  const VF32 gain = hn::Set(d, args.gains.empty() ? 1.0f : args.gains.data<float>()[token]);
  T* const y = args.y.mutable_data<T>() + token * args.y.row_stride();
  const int64_t out_features = args.y.dim(1);
  for (int v = 0; v < kPanelVectors; ++v) {
    const int64_t o = panel * kPanelRows + v * kLanes;
    const int64_t left = std::min<int64_t>(out_features - o, kLanes);
    if (left <= 0) return;
    const auto count = static_cast<size_t>(left);
    const auto load = [&](const float* from) HWY_ATTR {
      if (from == nullptr) return hn::Zero(d);
      return left == kLanes ? hn::LoadU(d, from + o) : LoadFloatsPartial(d, from + o, count);
    };
    const VF32 value = hn::MulAdd(gain, hn::Sub(sums[v], load(offset)), load(bias));
    if (left == kLanes) {
      StoreFloats(d, value, y + o);
    } else {
      StoreFloatsPartial(d, value, y + o, count);
    }
  }
}

// A token's element of y for each row of a panel, from the sums over all segments.
HWY_INLINE void StorePanel(const IntegerLinearArgs& args, int64_t token, int64_t panel,
                           const VF32* HWY_RESTRICT sums) {
  switch (args.y.dtype()) {
    case DType::kF32:
      return StorePanelOf<float>(args, token, panel, sums);
    case DType::kF16:
      return StorePanelOf<Half>(args, token, panel, sums);
    default:
      return StorePanelOf<BFloat16>(args, token, panel, sums);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace thinwire
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
