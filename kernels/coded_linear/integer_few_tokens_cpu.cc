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

// Panels that share a pass over x, so that chains of dependent additions overlap.
inline constexpr int kTilePanels = kPanelVectors == 1 ? 2 : 1;

template <int kBits, int kTokens, int kPanels>
HWY_INLINE void Tile(const IntegerCall& call, int64_t token, int64_t panel) {
  constexpr int kChains = kTokens == 1 && kQuads < kBits >> 1 ? 2 : 1;
  const DI32 di32;
  const DF32 df32;
  const CodedWeights& weights = *call.args->weights;
  const auto num_segments = static_cast<int64_t>(call.segments.size());
  const uint8_t* const x = call.x + token * call.x_stride;
  const int32_t* const code_sums = call.code_sums + token * num_segments;
  VF32 sums[kPanels][kTokens][kPanelVectors];
#pragma GCC unroll 16
  for (int p = 0; p < kPanels; ++p) {
#pragma GCC unroll 16
    for (int t = 0; t < kTokens; ++t) {
#pragma GCC unroll 16
      for (int v = 0; v < kPanelVectors; ++v) sums[p][t][v] = hn::Zero(df32);
    }
  }
  for (int64_t s = 0; s < num_segments; ++s) {
    const Segment& segment = call.segments[static_cast<size_t>(s)];
    VI32 isums[kPanels][kTokens][kPanelVectors][kChains];
#pragma GCC unroll 16
    for (int p = 0; p < kPanels; ++p) {
#pragma GCC unroll 16
      for (int t = 0; t < kTokens; ++t) {
#pragma GCC unroll 16
        for (int v = 0; v < kPanelVectors; ++v) {
#pragma GCC unroll 16
          for (int c = 0; c < kChains; ++c) isums[p][t][v][c] = hn::Zero(di32);
        }
      }
    }
    const uint8_t* HWY_RESTRICT quad = x + segment.blocked;
    const uint8_t* HWY_RESTRICT blocks[kPanels];
#pragma GCC unroll 16
    for (int p = 0; p < kPanels; ++p) {
      blocks[p] = weights.panel_codes(panel + p) + segment.first_block * BlockBytes(kBits);
    }
    for (int64_t b = 0; b < segment.num_blocks; ++b) {
#pragma GCC unroll 16
      for (int p = 0; p < kPanels; ++p) {
#pragma GCC unroll 16
        for (int v = 0; v < kPanelVectors; ++v) {
          Quads w[kQuads<kBits>];
          UnpackBlock<kBits>(blocks[p] + b * BlockBytes(kBits), v, w);
#pragma GCC unroll 16
          for (int j = 0; j < kQuads<kBits>; ++j) {
#pragma GCC unroll 16
            for (int t = 0; t < kTokens; ++t) {
              VI32& isum = isums[p][t][v][j % kChains];
              isum =
                  AddDot<kBits != 8>(isum, BroadcastQuad(quad + t * call.x_stride + 4 * j), w[j]);
            }
          }
        }
      }
      quad += BlockColumns(kBits);
    }
#pragma GCC unroll 16
    for (int p = 0; p < kPanels; ++p) {
      const uint8_t* const zeros = weights.panel_zeros(panel + p) + segment.group * kPanelRows;
      const Half* const scales = weights.panel_scales(panel + p) + segment.group * kPanelRows;
#pragma GCC unroll 16
      for (int v = 0; v < kPanelVectors; ++v) {
        const VI32 zero = LoadZeros<kBits>(zeros, v);
        const VF32 factor =
            hn::Mul(LoadFloats(df32, scales + v * kLanes), hn::Set(df32, segment.step));
#pragma GCC unroll 16
        for (int t = 0; t < kTokens; ++t) {
          VI32 isum = isums[p][t][v][0];
          if constexpr (kChains == 2) isum = hn::Add(isum, isums[p][t][v][1]);
          const VI32 code_sum = hn::Set(di32, code_sums[t * num_segments + s]);
          isum = hn::Sub(isum, hn::Mul(zero, code_sum));
          sums[p][t][v] = AddSegment(sums[p][t][v], factor, isum);
        }
      }
    }
  }
#pragma GCC unroll 16
  for (int p = 0; p < kPanels; ++p) {
#pragma GCC unroll 16
    for (int t = 0; t < kTokens; ++t) StorePanel(*call.args, token + t, panel + p, sums[p][t]);
  }
}

template <int kBits, int kTokens>
HWY_NOINLINE void Panels(const IntegerCall& call, int64_t token, int64_t begin, int64_t end) {
  int64_t panel = begin;
  for (; panel + kTilePanels <= end; panel += kTilePanels) {
    Tile<kBits, kTokens, kTilePanels>(call, token, panel);
  }
  for (; panel < end; ++panel) Tile<kBits, kTokens, 1>(call, token, panel);
}

template <int kBits>
void AllTokens(const IntegerCall& call, int64_t begin, int64_t end) {
  const int64_t num_tokens = call.args->codes.dim(0);
  const int64_t num_tiles = (num_tokens + 3) / 4;
  for (int64_t panel = begin; panel < end; panel += kTilePanels) {
    const int64_t stop = std::min<int64_t>(end, panel + kTilePanels);
    for (int64_t tile = 0; tile < num_tiles; ++tile) {
      const int64_t t = num_tokens * tile / num_tiles;
      switch (num_tokens * (tile + 1) / num_tiles - t) {
        case 1:
          Panels<kBits, 1>(call, t, panel, stop);
          break;
        case 2:
          Panels<kBits, 2>(call, t, panel, stop);
          break;
        case 3:
          Panels<kBits, 3>(call, t, panel, stop);
          break;
        default:
          Panels<kBits, 4>(call, t, panel, stop);
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
                         /*scratch_bytes=*/0, stream));
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
