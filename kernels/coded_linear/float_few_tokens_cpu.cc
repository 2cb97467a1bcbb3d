// Few tokens: the time goes into reading the weights, so they become floats in registers, each time
// for a few tokens. Codes are multiplied less the middle of their range, where most of them are.
//
// An output's order of summation depends on the groups only, not on the other tokens, features or
// threads.
#include <algorithm>
#include <cstddef>
#include <vector>

#include "kernels/coded_linear/coded_linear_cpu.h"
#include "kernels/convert/convert.h"
#include "kernels/core/status_macros.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/coded_linear/float_few_tokens_cpu.cc"
#include "hwy/foreach_target.h"
// After foreach_target.h.
#include "hwy/highway.h"
#include "kernels/coded_linear/floats_inl.h"

#ifndef THINWIRE_KERNELS_CODED_LINEAR_FLOAT_FEW_TOKENS_
#define THINWIRE_KERNELS_CODED_LINEAR_FLOAT_FEW_TOKENS_
namespace thinwire {
namespace {

struct FloatCall {
  const CodedLinearArgs* args;
  std::vector<Segment> groups;
  const float* x;  // rearranged, [num_tokens, x_stride]
  int64_t x_stride;
  const float* x_sums;  // of each group, [num_tokens, num_groups]
};

}  // namespace
}  // namespace thinwire
#endif  // THINWIRE_KERNELS_CODED_LINEAR_FLOAT_FEW_TOKENS_

HWY_BEFORE_NAMESPACE();
namespace thinwire {
namespace HWY_NAMESPACE {

inline constexpr int kTilePanels = kPanelVectors == 1 ? 2 : 1;

template <typename T>
HWY_INLINE void StorePanelOf(const CodedLinearArgs& args, int64_t token, int64_t panel,
                             const VF32* HWY_RESTRICT sums) {
  const DF32 d;
  T* const y = args.y.mutable_data<T>() + token * args.y.row_stride();
  const int64_t out_features = args.y.dim(1);
  for (int v = 0; v < kPanelVectors; ++v) {
    const int64_t o = panel * kPanelRows + v * kLanes;
    const int64_t left = std::min<int64_t>(out_features - o, kLanes);
    if (left <= 0) return;
    const float* bias = args.bias.empty() ? nullptr : args.bias.data<float>() + o;
    if (left == kLanes) {
      StoreFloats(d, bias == nullptr ? sums[v] : hn::Add(sums[v], hn::LoadU(d, bias)), y + o);
    } else {
      const auto count = static_cast<size_t>(left);
      const VF32 value =
          bias == nullptr ? sums[v] : hn::Add(sums[v], LoadFloatsPartial(d, bias, count));
      StoreFloatsPartial(d, value, y + o, count);
    }
  }
}

HWY_INLINE void StorePanel(const CodedLinearArgs& args, int64_t token, int64_t panel,
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

template <int kBits, int kTokens, int kPanels>
HWY_INLINE void Tile(const FloatCall& call, int64_t token, int64_t panel) {
  const DF32 df32;
  const CodedWeights& weights = *call.args->weights;
  const Decoder<kBits> decoder;
  const auto num_groups = static_cast<int64_t>(call.groups.size());
  const float* const x_sums = call.x_sums + token * num_groups;
  VF32 sums[kPanels][kTokens][kPanelVectors];
#pragma GCC unroll 16
  for (int p = 0; p < kPanels; ++p) {
#pragma GCC unroll 16
    for (int t = 0; t < kTokens; ++t) {
#pragma GCC unroll 16
      for (int v = 0; v < kPanelVectors; ++v) sums[p][t][v] = hn::Zero(df32);
    }
  }
  for (int64_t g = 0; g < num_groups; ++g) {
    const Segment& group = call.groups[static_cast<size_t>(g)];
    // Even and odd columns.
    VF32 parts[kPanels][kTokens][kPanelVectors][2];
#pragma GCC unroll 16
    for (int p = 0; p < kPanels; ++p) {
#pragma GCC unroll 16
      for (int t = 0; t < kTokens; ++t) {
#pragma GCC unroll 16
        for (int v = 0; v < kPanelVectors; ++v) {
          parts[p][t][v][0] = hn::Zero(df32);
          parts[p][t][v][1] = hn::Zero(df32);
        }
      }
    }
    const float* HWY_RESTRICT x = call.x + token * call.x_stride + group.blocked;
    const uint8_t* HWY_RESTRICT blocks[kPanels];
#pragma GCC unroll 16
    for (int p = 0; p < kPanels; ++p) {
      blocks[p] = weights.panel_codes(panel + p) + group.first_block * BlockBytes(kBits);
    }
    for (int64_t b = 0; b < group.num_blocks; ++b) {
#pragma GCC unroll 16
      for (int p = 0; p < kPanels; ++p) {
#pragma GCC unroll 16
        for (int v = 0; v < kPanelVectors; ++v) {
          Quads quads[kQuads<kBits>];
          decoder.Load(blocks[p] + b * BlockBytes(kBits), v, quads);
#pragma GCC unroll 16
          for (int j = 0; j < kQuads<kBits>; ++j) {
#pragma GCC unroll 16
            for (int k = 0; k < 4; ++k) {
              const VF32 w = decoder.Column(quads[j], k);
#pragma GCC unroll 16
              for (int t = 0; t < kTokens; ++t) {
                const VF32 x_value = hn::Set(df32, x[t * call.x_stride + 4 * j + k]);
                VF32& part = parts[p][t][v][k % 2];
                part = hn::MulAdd(w, x_value, part);
              }
            }
          }
        }
      }
      x += BlockColumns(kBits);
    }
#pragma GCC unroll 16
    for (int p = 0; p < kPanels; ++p) {
#pragma GCC unroll 16
      for (int v = 0; v < kPanelVectors; ++v) {
        const VF32 zero = decoder.Zeros(weights.panel_zeros(panel + p) + g * kPanelRows, v);
        const VF32 scale =
            LoadFloats(df32, weights.panel_scales(panel + p) + g * kPanelRows + v * kLanes);
#pragma GCC unroll 16
        for (int t = 0; t < kTokens; ++t) {
          const VF32 x_sum = hn::Set(df32, x_sums[t * num_groups + g]);
          const VF32 sum = hn::Add(parts[p][t][v][0], parts[p][t][v][1]);
          sums[p][t][v] = hn::MulAdd(scale, hn::NegMulAdd(zero, x_sum, sum), sums[p][t][v]);
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
HWY_NOINLINE void Panels(const FloatCall& call, int64_t token, int64_t begin, int64_t end) {
  // Accumulators of more tokens would not stay in registers.
  constexpr int kPanels = kTokens <= 2 ? kTilePanels : 1;
  int64_t panel = begin;
  for (; panel + kPanels <= end; panel += kPanels) {
    Tile<kBits, kTokens, kPanels>(call, token, panel);
  }
  for (; panel < end; ++panel) Tile<kBits, kTokens, 1>(call, token, panel);
}

template <int kBits>
void AllTokens(const FloatCall& call, int64_t begin, int64_t end) {
  constexpr int kTileTokens = 6;
  const int64_t num_tokens = call.args->x.dim(0);
  const int64_t num_tiles = (num_tokens + kTileTokens - 1) / kTileTokens;
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
        case 4:
          Panels<kBits, 4>(call, t, panel, stop);
          break;
        case 5:
          Panels<kBits, 5>(call, t, panel, stop);
          break;
        default:
          Panels<kBits, kTileTokens>(call, t, panel, stop);
      }
    }
  }
}

// Panels [begin, end), all tokens.
void PanelRange(const FloatCall& call, int64_t begin, int64_t end) {
  switch (call.args->weights->bits()) {
    case 3:
      return AllTokens<3>(call, begin, end);
    case 4:
      return AllTokens<4>(call, begin, end);
    default:
      return AllTokens<8>(call, begin, end);
  }
}

// n: a multiple of 4.
float SumFloats(const float* HWY_RESTRICT x, int64_t n) {
  const hn::CappedTag<float, 4> d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  auto sum = hn::Zero(d);
  for (int64_t i = 0; i < n; i += lanes) sum = hn::Add(sum, hn::LoadU(d, x + i));
  return hn::GetLane(hn::SumOfLanes(d, sum));
}

}  // namespace HWY_NAMESPACE
}  // namespace thinwire
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace thinwire {
namespace {

HWY_EXPORT(PanelRange);
HWY_EXPORT(SumFloats);

// Products that occupy a thread for a few microseconds: less is not worth waking one.
constexpr int64_t kProductsPerThread = 32768;

}  // namespace

absl::Status CodedLinearFewTokens(const CodedLinearArgs& args, Stream& stream) {
  const CodedWeights& weights = *args.weights;
  const int64_t num_tokens = args.x.dim(0);
  const std::vector<float> ones(static_cast<size_t>(weights.num_groups()), 1.0f);
  FloatCall call;
  call.args = &args;
  call.groups = PlanSegments(weights, weights.group_offsets(), ones);
  call.x_stride = BlockedColumns(weights, call.groups);
  TW_ASSIGN_OR_RETURN(std::byte * scratch,
                      stream.Scratch(num_tokens * (call.x_stride + weights.num_groups()) *
                                     static_cast<int64_t>(sizeof(float))));
  auto* const x = reinterpret_cast<float*>(scratch);
  auto* const x_sums = x + num_tokens * call.x_stride;
  for (int64_t t = 0; t < num_tokens; ++t) {
    for (int64_t g = 0; g < weights.num_groups(); ++g) {
      const Segment& group = call.groups[static_cast<size_t>(g)];
      float* const to = x + t * call.x_stride + group.blocked;
      const int64_t padded = group.num_blocks * BlockColumns(weights.bits());
      ConvertToFloat(args.x.Rows(t, 1).Columns(group.first_column, group.num_columns).raw(),
                     args.x.dtype(), to, group.num_columns);
      std::fill(to + group.num_columns, to + padded, 0.0f);
      x_sums[t * weights.num_groups() + g] = HWY_DYNAMIC_DISPATCH(SumFloats)(to, padded);
    }
  }
  call.x = x;
  call.x_sums = x_sums;
  const int64_t num_panels = (weights.out_features() + kPanelRows - 1) / kPanelRows;
  const int64_t panel_products = num_tokens * kPanelRows * weights.in_features();
  stream.pool().ParallelFor(num_panels, std::max<int64_t>(1, kProductsPerThread / panel_products),
                            [&](int64_t begin, int64_t end) {
                              HWY_DYNAMIC_DISPATCH(PanelRange)(call, begin, end);
                            });
  return absl::OkStatus();
}

}  // namespace thinwire
#endif  // HWY_ONCE
