// The end of an integer product: gain, offset, bias and rounding. A Highway per-target header.

// Not #pragma once: each target sees the contents once.
#if defined(THINWIRE_KERNELS_CODED_LINEAR_INTEGER_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef THINWIRE_KERNELS_CODED_LINEAR_INTEGER_INL_H_
#undef THINWIRE_KERNELS_CODED_LINEAR_INTEGER_INL_H_
#else
#define THINWIRE_KERNELS_CODED_LINEAR_INTEGER_INL_H_
#endif

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

// isum less zeros * the sum of the segment's codes; code_sum and is_short: IntegerCall's.
HWY_INLINE VI32 SubtractZeros(VI32 isum, VI32 zeros, VI32 pair_of_zeros, int32_t code_sum,
                              bool is_short) {
  const VI32 code_sums = hn::Set(DI32(), code_sum);
  if (is_short) [[likely]]
    return AddPairs(isum, pair_of_zeros, code_sums);
  return hn::Sub(isum, hn::Mul(zeros, code_sums));
}

// Turns sums over all segments into elements of y.
class Output {
 public:
  explicit Output(const IntegerLinearArgs& args)
      : gains_(args.gains.empty() ? nullptr : args.gains.data<float>()),
        offset_(args.offset.empty() ? nullptr : args.offset.data<float>()),
        bias_(args.bias.empty() ? nullptr : args.bias.data<float>()),
        y_(args.y.mutable_raw()),
        dtype_(args.y.dtype()),
        stride_(args.y.row_stride()),
        out_features_(args.y.dim(1)) {}

  // The elements of a token for the rows of a panel.
  HWY_INLINE void Store(int64_t token, int64_t panel, const VF32* HWY_RESTRICT sums) const {
    switch (dtype_) {
      case DType::kF32:
        return StoreAs<float>(token, panel, sums);
      case DType::kF16:
        return StoreAs<Half>(token, panel, sums);
      default:
        return StoreAs<BFloat16>(token, panel, sums);
    }
  }

 private:
  template <typename T>
  HWY_INLINE void StoreAs(int64_t token, int64_t panel, const VF32* HWY_RESTRICT sums) const {
    const DF32 d;
    const VF32 gain = hn::Set(d, gains_ == nullptr ? 1.0f : gains_[token]);
    T* const y = static_cast<T*>(y_) + token * stride_;
    for (int v = 0; v < kPanelVectors; ++v) {
      const int64_t o = panel * kPanelRows + v * kLanes;
      const int64_t left = out_features_ - o;
      if (left >= kLanes) [[likely]] {
        const VF32 offset = offset_ == nullptr ? hn::Zero(d) : hn::LoadU(d, offset_ + o);
        const VF32 bias = bias_ == nullptr ? hn::Zero(d) : hn::LoadU(d, bias_ + o);
        StoreFloats(d, hn::MulAdd(gain, hn::Sub(sums[v], offset), bias), y + o);
      } else if (left > 0) {
        const auto count = static_cast<size_t>(left);
        const VF32 offset =
            offset_ == nullptr ? hn::Zero(d) : LoadFloatsPartial(d, offset_ + o, count);
        const VF32 bias = bias_ == nullptr ? hn::Zero(d) : LoadFloatsPartial(d, bias_ + o, count);
        StoreFloatsPartial(d, hn::MulAdd(gain, hn::Sub(sums[v], offset), bias), y + o, count);
      }
    }
  }

  const float* gains_;
  const float* offset_;
  const float* bias_;
  void* y_;
  DType dtype_;
  int64_t stride_;
  int64_t out_features_;
};

}  // namespace HWY_NAMESPACE
}  // namespace thinwire
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
