#include <algorithm>
#include <cmath>

#include "kernels/core/check.h"
#include "kernels/core/status_macros.h"
#include "kernels/rope/rope_internal.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/rope/rope_cpu.cc"
#include "hwy/foreach_target.h"
// After foreach_target.h.
#include "hwy/highway.h"
#include "kernels/convert/convert_inl.h"

HWY_BEFORE_NAMESPACE();
namespace thinwire {
namespace HWY_NAMESPACE {

// One head: x[0, 2 * half), with cosines and sines of its `half` angles.
template <typename T>
void RotateHead(T* x, const float* HWY_RESTRICT cosines, const float* HWY_RESTRICT sines,
                int64_t half) {
  const hn::ScalableTag<float> d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  T* lower = x;
  T* upper = x + half;
  int64_t i = 0;
  for (; i + lanes <= half; i += lanes) {
    const auto a = LoadFloats(d, lower + i);
    const auto b = LoadFloats(d, upper + i);
    const auto c = hn::LoadU(d, cosines + i);
    const auto s = hn::LoadU(d, sines + i);
    StoreFloats(d, hn::NegMulAdd(b, s, hn::Mul(a, c)), lower + i);
    StoreFloats(d, hn::MulAdd(a, s, hn::Mul(b, c)), upper + i);
  }
  if (i < half) {
    const auto rest = static_cast<size_t>(half - i);
    const auto a = LoadFloatsPartial(d, lower + i, rest);
    const auto b = LoadFloatsPartial(d, upper + i, rest);
    const auto c = LoadFloatsPartial(d, cosines + i, rest);
    const auto s = LoadFloatsPartial(d, sines + i, rest);
    StoreFloatsPartial(d, hn::NegMulAdd(b, s, hn::Mul(a, c)), lower + i, rest);
    StoreFloatsPartial(d, hn::MulAdd(a, s, hn::Mul(b, c)), upper + i, rest);
  }
}

template <typename T>
void RotateHeads(T* row, int64_t num_heads, const float* HWY_RESTRICT cosines,
                 const float* HWY_RESTRICT sines, int64_t half) {
  for (int64_t h = 0; h < num_heads; ++h) RotateHead(row + h * 2 * half, cosines, sines, half);
}

// The heads of one token.
void RotateRow(const RopeArgs& args, int64_t token, const float* HWY_RESTRICT cosines,
               const float* HWY_RESTRICT sines) {
  const int64_t offset = token * args.x.row_stride();
  const int64_t half = args.head_dim / 2;
  switch (args.x.dtype()) {
    case DType::kF32:
      return RotateHeads(args.x.mutable_data<float>() + offset, args.num_heads, cosines, sines,
                         half);
    case DType::kF16:
      return RotateHeads(args.x.mutable_data<Half>() + offset, args.num_heads, cosines, sines,
                         half);
    case DType::kBF16:
      return RotateHeads(args.x.mutable_data<BFloat16>() + offset, args.num_heads, cosines, sines,
                         half);
    default:
      TW_CHECK(IsFloat(args.x.dtype()));
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace thinwire
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace thinwire {
namespace {

HWY_EXPORT(RotateRow);

// Below this many elements, waking another thread costs more than it saves.
constexpr int64_t kElementsPerThread = 16384;

}  // namespace

absl::Status RopeCpu(const RopeArgs& args, Stream& stream) {
  const int64_t half = args.head_dim / 2;
  // Each thread's cosines and sines, on cache lines of its own.
  const int64_t scratch_floats = (2 * half + 15) / 16 * 16;
  ThreadPool& pool = stream.pool();
  TW_ASSIGN_OR_RETURN(
      std::byte* const scratch,
      stream.Scratch(pool.num_threads() * scratch_floats * static_cast<int64_t>(sizeof(float))));
  const int32_t* positions = args.positions.data<int32_t>();
  const float* inv_freq = args.inv_freq.data<float>();
  const int64_t grain = std::max<int64_t>(1, kElementsPerThread / args.x.dim(1));
  pool.ParallelFor(args.x.dim(0), grain, [&](int64_t begin, int64_t end) {
    float* cosines =
        reinterpret_cast<float*>(scratch) + ThreadPool::CurrentThread() * scratch_floats;
    float* sines = cosines + half;
    for (int64_t token = begin; token < end; ++token) {
      if (token == begin || positions[token] != positions[token - 1]) {
        for (int64_t i = 0; i < half; ++i) {
          // The angle is defined as an fp32 product; its cosine may be taken to any accuracy.
          const float angle = static_cast<float>(positions[token]) * inv_freq[i];
          cosines[i] = std::cos(angle);
          sines[i] = std::sin(angle);
        }
      }
      HWY_DYNAMIC_DISPATCH(RotateRow)(args, token, cosines, sines);
    }
  });
  return absl::OkStatus();
}

}  // namespace thinwire
#endif  // HWY_ONCE
