// Few tokens: the time goes into reading the weights, so they are unpacked in registers, each time
// for a few tokens.
#include <algorithm>

#include "kernels/coded_linear/integer_cpu.h"
#include "kernels/core/status_macros.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/coded_linear/integer_few_tokens_cpu.cc"
#include "hwy/foreach_target.h"
// After foreach_target.h.
#include "hwy/highway.h"
#include "kernels/coded_linear/integer_inl.h"

HWY_BEFORE_NAMESPACE();
namespace thinwire {
namespace HWY_NAMESPACE {

// At most this many panels share a pass over x, so that chains of dependent additions overlap.
inline constexpr int kMaxTilePanels = kPanelVectors == 1 ? 4 : 1;

// Fewer panels where the sums of all tokens would not stay in registers.
template <int kTokens>
inline constexpr int kTilePanels = kTokens == 1 ? kMaxTilePanels : (kMaxTilePanels + 1) / 2;

template <int kBits, int kTokens, int kPanels>
HWY_INLINE void Tile(const IntegerCall& call, const Output& output, int64_t token, int64_t panel) {
  const DI32 di32;
  const DF32 df32;
  const CodedWeights& weights = *call.args->weights;
  const auto num_segments = static_cast<int64_t>(call.segments.size());
  const uint8_t* HWY_RESTRICT codes[kPanels];
  const uint8_t* HWY_RESTRICT zeros_at[kPanels];
  const Half* HWY_RESTRICT scales_at[kPanels];
  VF32 sums[kPanels][kTokens][kPanelVectors];
  VF32 scales[kPanels][kPanelVectors];
  VI32 zeros[kPanels][kPanelVectors];
  VI32 pairs_of_zeros[kPanels][kPanelVectors];
#pragma GCC unroll 16
  for (int p = 0; p < kPanels; ++p) {
    codes[p] = weights.panel_codes(panel + p);
    zeros_at[p] = weights.panel_zeros(panel + p);
    scales_at[p] = weights.panel_scales(panel + p);
#pragma GCC unroll 16
    for (int v = 0; v < kPanelVectors; ++v) {
      scales[p][v] = hn::Zero(df32);
      zeros[p][v] = pairs_of_zeros[p][v] = hn::Zero(di32);
#pragma GCC unroll 16
      for (int t = 0; t < kTokens; ++t) sums[p][t][v] = hn::Zero(df32);
    }
  }
  const uint8_t* HWY_RESTRICT x = call.x + token * call.x_stride;
  const int32_t* HWY_RESTRICT code_sums = call.code_sums + token * num_segments;
  const int64_t x_stride = call.x_stride;
  int64_t group = -1;
  for (const Segment& segment : call.segments) {
    if (segment.group != group) {
      group = segment.group;
#pragma GCC unroll 16
      for (int p = 0; p < kPanels; ++p) {
#pragma GCC unroll 16
        for (int v = 0; v < kPanelVectors; ++v) {
          zeros[p][v] = LoadZeros<kBits>(zeros_at[p] + group * kPanelRows, v);
          pairs_of_zeros[p][v] = PairOfZeros(zeros[p][v]);
          scales[p][v] = LoadFloats(df32, scales_at[p] + group * kPanelRows + v * kLanes);
        }
      }
    }
    VI32 isums[kPanels][kTokens][kPanelVectors];
#pragma GCC unroll 16
    for (int p = 0; p < kPanels; ++p) {
#pragma GCC unroll 16
      for (int t = 0; t < kTokens; ++t) {
#pragma GCC unroll 16
        for (int v = 0; v < kPanelVectors; ++v) isums[p][t][v] = hn::Zero(di32);
      }
    }
    int64_t at = segment.first_block * BlockBytes(kBits);
    const int64_t end = at + segment.num_blocks * BlockBytes(kBits);
    for (; at != end; at += BlockBytes(kBits)) {
#pragma GCC unroll 16
      for (int p = 0; p < kPanels; ++p) {
#pragma GCC unroll 16
        for (int v = 0; v < kPanelVectors; ++v) {
          Quads w[kQuads<kBits>];
          UnpackBlock<kBits>(codes[p] + at, v, w);
#pragma GCC unroll 16
          for (int j = 0; j < kQuads<kBits>; ++j) {
#pragma GCC unroll 16
            for (int t = 0; t < kTokens; ++t) {
              isums[p][t][v] =
                  AddDot<kBits != 8>(isums[p][t][v], BroadcastQuad(x + t * x_stride + 4 * j), w[j]);
            }
          }
        }
      }
      x += BlockColumns(kBits);
    }
    const bool is_short = IsShort(segment);
    const VF32 step = hn::Set(df32, segment.step);
#pragma GCC unroll 16
    for (int p = 0; p < kPanels; ++p) {
#pragma GCC unroll 16
      for (int v = 0; v < kPanelVectors; ++v) {
        const VF32 factor = hn::Mul(scales[p][v], step);
#pragma GCC unroll 16
        for (int t = 0; t < kTokens; ++t) {
          const VI32 isum = SubtractZeros(isums[p][t][v], zeros[p][v], pairs_of_zeros[p][v],
                                          code_sums[t * num_segments], is_short);
          sums[p][t][v] = AddSegment(sums[p][t][v], factor, isum);
        }
      }
    }
    ++code_sums;
  }
#pragma GCC unroll 16
  for (int p = 0; p < kPanels; ++p) {
#pragma GCC unroll 16
    for (int t = 0; t < kTokens; ++t) output.Store(token + t, panel + p, sums[p][t]);
  }
}

template <int kBits, int kTokens>
HWY_NOINLINE void Panels(const IntegerCall& call, const Output& output, int64_t token,
                         int64_t begin, int64_t end) {
  constexpr int kPanels = kTilePanels<kTokens>;
  int64_t panel = begin;
  for (; panel + kPanels <= end; panel += kPanels) {
    Tile<kBits, kTokens, kPanels>(call, output, token, panel);
  }
  for (; panel < end; ++panel) Tile<kBits, kTokens, 1>(call, output, token, panel);
}

template <int kBits>
void AllTokens(const IntegerCall& call, int64_t begin, int64_t end) {
  const Output output(*call.args);
  const int64_t num_tokens = call.args->codes.dim(0);
  const int64_t num_tiles = (num_tokens + 3) / 4;
  for (int64_t panel = begin; panel < end; panel += kMaxTilePanels) {
    const int64_t stop = std::min<int64_t>(end, panel + kMaxTilePanels);
    for (int64_t tile = 0; tile < num_tiles; ++tile) {
      const int64_t t = num_tokens * tile / num_tiles;
      switch (num_tokens * (tile + 1) / num_tiles - t) {
        case 1:
          Panels<kBits, 1>(call, output, t, panel, stop);
          break;
        case 2:
          Panels<kBits, 2>(call, output, t, panel, stop);
          break;
        case 3:
          Panels<kBits, 3>(call, output, t, panel, stop);
          break;
        default:
          Panels<kBits, 4>(call, output, t, panel, stop);
      }
    }
  }
}

// Panels [begin, end), all tokens.
void PanelRange(const IntegerCall& call, int64_t begin, int64_t end) {
  switch (call.args->weights->bits()) {
    case 3:
      return AllTokens<3>(call, begin, end);
    case 4:
      return AllTokens<4>(call, begin, end);
    default:
      return AllTokens<8>(call, begin, end);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace thinwire
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace thinwire {
namespace {

HWY_EXPORT(PanelRange);

// Products that occupy a thread for a few microseconds: less is not worth waking one.
constexpr int64_t kProductsPerThread = 1 << 17;

}  // namespace

absl::Status IntegerLinearFewTokens(const IntegerLinearArgs& args, Stream& stream) {
  const CodedWeights& weights = *args.weights;
  TW_ASSIGN_OR_RETURN(
      const IntegerCall call,
      PrepareIntegerCall(args, PlanSegments(weights, args.segment_offsets, args.segment_step),
                         /*wants_sums=*/true, /*scratch_bytes=*/0, stream));
  const int64_t num_panels = (weights.out_features() + kPanelRows - 1) / kPanelRows;
  const int64_t panel_products = args.codes.dim(0) * kPanelRows * weights.in_features();
  stream.pool().ParallelFor(num_panels, std::max<int64_t>(1, kProductsPerThread / panel_products),
                            [&](int64_t begin, int64_t end) {
                              HWY_DYNAMIC_DISPATCH(PanelRange)(call, begin, end);
                            });
  return absl::OkStatus();
}

}  // namespace thinwire
#endif  // HWY_ONCE
