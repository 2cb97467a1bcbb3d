// Few tokens: the time goes into reading the weight, so each of its rows is read from memory once,
// widened in registers and multiplied with all tokens.
//
// One vector of partial sums for each (token, feature), lanes summed at the end: an output's order
// of summation depends on in_features only, not on the other tokens, features or threads.
#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "kernels/convert/convert.h"
#include "kernels/core/float16.h"
#include "kernels/core/status_macros.h"
#include "kernels/linear/linear_cpu.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/linear/linear_few_tokens_cpu.cc"
#include "hwy/foreach_target.h"
// After foreach_target.h.
#include "hwy/highway.h"
#include "kernels/convert/convert_inl.h"

#ifndef THINWIRE_KERNELS_LINEAR_FEW_TOKENS_
#define THINWIRE_KERNELS_LINEAR_FEW_TOKENS_
namespace thinwire {
namespace {

// At most this many tokens share one pass over a row in registers.
constexpr int kTokensPerTile = 6;

// A multiple of the common tile heights, small enough to stay in the second-level cache when
// several groups of tokens pass over it.
constexpr int64_t kRowsPerBlock = 24;

// Rows of x are padded with zeros to a multiple of this, the widest vector.
constexpr int64_t kPaddedFloats = 16;

struct FewTokensArgs {
  const float* x;  // [num_tokens, x_stride], zero beyond in_features
  int64_t x_stride;
  int64_t num_tokens;
  const void* weight;
  DType weight_dtype;
  int64_t in_features;
  const float* bias;  // or null
  float* y;           // [num_tokens, y_stride]
  int64_t y_stride;
};

}  // namespace
}  // namespace thinwire
#endif  // THINWIRE_KERNELS_LINEAR_FEW_TOKENS_

HWY_BEFORE_NAMESPACE();
namespace thinwire {
namespace HWY_NAMESPACE {

// As many rows as the accumulators that fit into the registers beside the operands allow.
constexpr int TileRows(int num_tokens) {
#if HWY_TARGET == HWY_AVX2 || HWY_TARGET == HWY_SCALAR
  constexpr int kAccumulators = 12;
#else
  constexpr int kAccumulators = 24;
#endif
  const int rows = kAccumulators / num_tokens;
  return std::min(rows, 8);
}

template <int kTokens, int kRows, typename W>
HWY_INLINE void Tile(const FewTokensArgs& args, const W* HWY_RESTRICT weight, int64_t first_token,
                     int64_t row) {
  const hn::ScalableTag<float> d;
  using V = hn::Vec<decltype(d)>;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const int64_t n = args.in_features;
  const int64_t x_stride = args.x_stride;
  const float* HWY_RESTRICT x = args.x + first_token * x_stride;
  const W* HWY_RESTRICT w = weight + row * n;
  V sums[kRows][kTokens];
#pragma GCC unroll 32
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 32
    for (int t = 0; t < kTokens; ++t) sums[r][t] = hn::Zero(d);
  }
  int64_t i = 0;
  for (; i + lanes <= n; i += lanes) {
    V x_values[kTokens];
#pragma GCC unroll 32
    for (int t = 0; t < kTokens; ++t) x_values[t] = hn::LoadU(d, x + t * x_stride + i);
#pragma GCC unroll 32
    for (int r = 0; r < kRows; ++r) {
      const V w_values = LoadFloats(d, w + r * n + i);
#pragma GCC unroll 32
      for (int t = 0; t < kTokens; ++t) {
        sums[r][t] = hn::MulAdd(w_values, x_values[t], sums[r][t]);
      }
    }
  }
  if (i < n) {
#pragma GCC unroll 32
    for (int r = 0; r < kRows; ++r) {
      const V w_values = LoadFloatsPartial(d, w + r * n + i, static_cast<size_t>(n - i));
#pragma GCC unroll 32
      for (int t = 0; t < kTokens; ++t) {
        sums[r][t] = hn::MulAdd(w_values, hn::LoadU(d, x + t * x_stride + i), sums[r][t]);
      }
    }
  }
#pragma GCC unroll 32
  for (int t = 0; t < kTokens; ++t) {
    float* HWY_RESTRICT y = args.y + (first_token + t) * args.y_stride + row;
#pragma GCC unroll 32
    for (int r = 0; r < kRows; ++r) {
      const float bias = args.bias == nullptr ? 0.0f : args.bias[row + r];
      y[r] = hn::GetLane(hn::SumOfLanes(d, sums[r][t])) + bias;
    }
  }
}

template <int kTokens, typename W>
HWY_NOINLINE void Rows(const FewTokensArgs& args, const W* HWY_RESTRICT weight, int64_t first_token,
                       int64_t begin, int64_t end) {
  constexpr int kRows = TileRows(kTokens);
  int64_t row = begin;
  for (; row + kRows <= end; row += kRows) {
    Tile<kTokens, kRows>(args, weight, first_token, row);
  }
  for (; row < end; ++row) Tile<kTokens, 1>(args, weight, first_token, row);
}

template <typename W>
void AllTokens(const FewTokensArgs& args, const W* HWY_RESTRICT weight, int64_t begin,
               int64_t end) {
  const int64_t num_tiles = (args.num_tokens + kTokensPerTile - 1) / kTokensPerTile;
  for (int64_t row = begin; row < end; row += kRowsPerBlock) {
    const int64_t stop = std::min(end, row + kRowsPerBlock);
    for (int64_t tile = 0; tile < num_tiles; ++tile) {
      const int64_t t = args.num_tokens * tile / num_tiles;
      switch (args.num_tokens * (tile + 1) / num_tiles - t) {
        case 1:
          Rows<1>(args, weight, t, row, stop);
          break;
        case 2:
          Rows<2>(args, weight, t, row, stop);
          break;
        case 3:
          Rows<3>(args, weight, t, row, stop);
          break;
        case 4:
          Rows<4>(args, weight, t, row, stop);
          break;
        case 5:
          Rows<5>(args, weight, t, row, stop);
          break;
        default:
          Rows<kTokensPerTile>(args, weight, t, row, stop);
      }
    }
  }
}

// Output features [begin, end).
void FeatureRange(const FewTokensArgs& args, int64_t begin, int64_t end) {
  switch (args.weight_dtype) {
    case DType::kF32:
      AllTokens(args, static_cast<const float*>(args.weight), begin, end);
      return;
    case DType::kF16:
      AllTokens(args, static_cast<const Half*>(args.weight), begin, end);
      return;
    default:
      AllTokens(args, static_cast<const BFloat16*>(args.weight), begin, end);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace thinwire
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace thinwire {
namespace {

HWY_EXPORT(FeatureRange);

// Products that occupy a thread for a few microseconds: less is not worth waking one.
constexpr int64_t kProductsPerThread = 32768;

}  // namespace

absl::Status LinearFewTokens(const LinearArgs& args, Stream& stream) {
  const int64_t num_tokens = args.x.dim(0);
  const int64_t in_features = args.x.dim(1);
  const int64_t out_features = args.weight.dim(0);
  const int64_t x_stride = (in_features + kPaddedFloats - 1) / kPaddedFloats * kPaddedFloats;
  const bool direct = args.y.dtype() == DType::kF32;
  const int64_t y_stride = direct ? args.y.row_stride() : out_features;
  const int64_t num_floats = num_tokens * (x_stride + (direct ? 0 : out_features));
  TW_ASSIGN_OR_RETURN(std::byte * scratch,
                      stream.Scratch(num_floats * static_cast<int64_t>(sizeof(float))));
  auto* x = reinterpret_cast<float*>(scratch);
  float* y = direct ? args.y.mutable_data<float>() : x + num_tokens * x_stride;
  for (int64_t t = 0; t < num_tokens; ++t) {
    ConvertToFloat(args.x.Rows(t, 1).raw(), args.x.dtype(), x + t * x_stride, in_features);
    std::fill(x + t * x_stride + in_features, x + (t + 1) * x_stride, 0.0f);
  }
  const FewTokensArgs few = {x,
                             x_stride,
                             num_tokens,
                             args.weight.raw(),
                             args.weight.dtype(),
                             in_features,
                             args.bias.empty() ? nullptr : args.bias.data<float>(),
                             y,
                             y_stride};
  const int64_t grain = std::max<int64_t>(1, kProductsPerThread / (in_features * num_tokens));
  stream.pool().ParallelFor(out_features, grain, [&](int64_t begin, int64_t end) {
    HWY_DYNAMIC_DISPATCH(FeatureRange)(few, begin, end);
    if (direct) return;
    for (int64_t t = 0; t < num_tokens; ++t) {
      const TensorView row = args.y.Rows(t, 1).Columns(begin, end - begin);
      ConvertFromFloat(y + t * y_stride + begin, row.mutable_raw(), row.dtype(), end - begin);
    }
  });
  return absl::OkStatus();
}

}  // namespace thinwire
#endif  // HWY_ONCE
