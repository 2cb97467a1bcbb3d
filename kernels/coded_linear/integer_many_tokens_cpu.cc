// Many tokens: the time goes into multiplying. A few panels of weights are unpacked into memory,
// some segments at a time so that they stay in the first-level cache, and multiplied with all
// tokens of an item of work.
#include <algorithm>
#include <cstddef>
#include <utility>
#include <vector>

#include "kernels/coded_linear/integer_cpu.h"
#include "kernels/core/check.h"
#include "kernels/core/status_macros.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/coded_linear/integer_many_tokens_cpu.cc"
#include "hwy/foreach_target.h"
// After foreach_target.h.
#include "hwy/highway.h"
#include "kernels/coded_linear/integer_inl.h"

#ifndef THINWIRE_KERNELS_CODED_LINEAR_MANY_TOKENS_
#define THINWIRE_KERNELS_CODED_LINEAR_MANY_TOKENS_
namespace thinwire {
namespace {

constexpr int kItemPanels = 4;  // of an item of work
constexpr int kItemRows = kItemPanels * static_cast<int>(kPanelRows);
constexpr int64_t kMaxItemTokens = 512;
constexpr int64_t kMinItemTokens = 64;

// Columns of a chunk in fours, unless one segment has more: 24 KiB of unpacked weights.
constexpr int64_t kChunkQuads = 96;

// Segments [begin, end).
struct Chunk {
  int64_t begin, end;
};

// What one thread needs beside the arguments.
struct Scratch {
  float* sums;       // [token, panel, row]
  float* factors;    // [segment of the chunk, panel, row]
  int32_t* zeros;    // the same, unless subtracted from the weights
  uint8_t* weights;  // [quad, panel, row, 4 columns], signed
};

struct ManyTokensCall {
  IntegerCall call;
  std::vector<Chunk> chunks;
  bool subtracted;  // zeros are subtracted from the weights as these are unpacked
};

}  // namespace
}  // namespace thinwire
#endif  // THINWIRE_KERNELS_CODED_LINEAR_MANY_TOKENS_

HWY_BEFORE_NAMESPACE();
namespace thinwire {
namespace HWY_NAMESPACE {

// The largest tile whose sums, as integers and as floats, stay in registers.
#if HWY_TARGET == HWY_AVX3 || HWY_TARGET == HWY_AVX3_DL
inline constexpr int kTileTokens = 6;
inline constexpr int kTilePanels = 2;
#else
inline constexpr int kTileTokens = 2;
inline constexpr int kTilePanels = 1;
#endif

// Bytes of a panel's quads.
inline constexpr int kPanelQuadBytes = 4 * static_cast<int>(kPanelRows);

// Panel `p` of the num_panels of an item.
template <int kBits>
void UnpackPanel(const ManyTokensCall& many, const Chunk& chunk, int64_t panel, int p,
                 int num_panels, const Scratch& scratch) {
  const DF32 df32;
  const DI32 di32;
  const CodedWeights& weights = *many.call.args->weights;
  const uint8_t* const panel_codes = weights.panel_codes(panel);
  const uint8_t* const panel_zeros = weights.panel_zeros(panel);
  const Half* const panel_scales = weights.panel_scales(panel);
  uint8_t* HWY_RESTRICT to = scratch.weights + p * kPanelQuadBytes;
  int64_t at = p * kPanelRows;
  for (int64_t s = chunk.begin; s < chunk.end; ++s) {
    const Segment& segment = many.call.segments[static_cast<size_t>(s)];
    const VF32 step = hn::Set(df32, segment.step);
    Quads zero_bytes[kPanelVectors];
    for (int v = 0; v < kPanelVectors; ++v) {
      const VI32 zeros = LoadZeros<kBits>(panel_zeros + segment.group * kPanelRows, v);
      if (many.subtracted) {
        zero_bytes[v] = hn::BitCast(DU32(), hn::Mul(zeros, hn::Set(di32, 0x01010101)));
      } else {
        zero_bytes[v] = hn::Zero(DU32());
        hn::StoreU(zeros, di32, scratch.zeros + at + v * kLanes);
      }
      const Half* const scales = panel_scales + segment.group * kPanelRows + v * kLanes;
      hn::StoreU(hn::Mul(LoadFloats(df32, scales), step), df32, scratch.factors + at + v * kLanes);
    }
    at += num_panels * kPanelRows;
    const uint8_t* block = panel_codes + segment.first_block * BlockBytes(kBits);
    const uint8_t* const end = block + segment.num_blocks * BlockBytes(kBits);
    for (; block != end; block += BlockBytes(kBits)) {
#pragma GCC unroll 16
      for (int v = 0; v < kPanelVectors; ++v) {
        Quads w[kQuads<kBits>];
        UnpackBlock<kBits>(block, v, w);
#pragma GCC unroll 16
        for (int j = 0; j < kQuads<kBits>; ++j) {
          StoreQuads(SubBytes(w[j], zero_bytes[v]),
                     to + j * num_panels * kPanelQuadBytes + v * 4 * kLanes);
        }
      }
      to += kQuads<kBits> * num_panels * kPanelQuadBytes;
    }
  }
}

// Adds a chunk to the sums of kTokens tokens from `token` on (`row` of the scratch) and kPanels
// panels, of the num_panels unpacked, from `p` on.
template <int kTokens, int kPanels, bool kSubtracted>
HWY_NOINLINE void MultiplyTile(const ManyTokensCall& many, const Chunk& chunk, int64_t token,
                               int64_t row, int p, int num_panels, const Scratch& scratch) {
  const DI32 di32;
  const DF32 df32;
  const auto num_segments = static_cast<int64_t>(many.call.segments.size());
  const Segment* segment = many.call.segments.data() + chunk.begin;
  const Segment* const end_segment = many.call.segments.data() + chunk.end;
  const int64_t quad_columns = BlockColumns(many.call.args->weights->bits());
  const int64_t x_stride = many.call.x_stride;
  const uint8_t* HWY_RESTRICT x = many.call.x + token * x_stride + segment->blocked;
  const int32_t* HWY_RESTRICT code_sums = many.call.code_sums + token * num_segments + chunk.begin;
  const uint8_t* HWY_RESTRICT w = scratch.weights + p * kPanelQuadBytes;
  const float* HWY_RESTRICT factors = scratch.factors + p * kPanelRows;
  const int32_t* HWY_RESTRICT zeros = scratch.zeros + p * kPanelRows;
  float* HWY_RESTRICT sums_at = scratch.sums + row * kItemRows + p * kPanelRows;
  constexpr int kVectors = kPanels * kPanelVectors;
  VF32 sums[kTokens][kVectors];
#pragma GCC unroll 16
  for (int t = 0; t < kTokens; ++t) {
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) {
      sums[t][v] = hn::LoadU(df32, sums_at + t * kItemRows + v * kLanes);
    }
  }
  for (; segment != end_segment; ++segment) {
    VI32 isums[kTokens][kVectors];
#pragma GCC unroll 16
    for (int t = 0; t < kTokens; ++t) {
#pragma GCC unroll 16
      for (int v = 0; v < kVectors; ++v) isums[t][v] = hn::Zero(di32);
    }
    const uint8_t* const end = x + segment->num_blocks * quad_columns;
    for (; x != end; x += 4) {
      Quads w_values[kVectors];
#pragma GCC unroll 16
      for (int v = 0; v < kVectors; ++v) w_values[v] = LoadQuads(w + v * 4 * kLanes);
#pragma GCC unroll 16
      for (int t = 0; t < kTokens; ++t) {
        const Quads x_values = BroadcastQuad(x + t * x_stride);
#pragma GCC unroll 16
        for (int v = 0; v < kVectors; ++v) {
          isums[t][v] = AddDot<kSubtracted>(isums[t][v], x_values, w_values[v]);
        }
      }
      w += num_panels * kPanelQuadBytes;
    }
    [[maybe_unused]] const bool is_short = IsShort(*segment);
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) {
      const VF32 factor = hn::LoadU(df32, factors + v * kLanes);
#pragma GCC unroll 16
      for (int t = 0; t < kTokens; ++t) {
        VI32 isum = isums[t][v];
        if constexpr (!kSubtracted) {
          const VI32 zero = hn::LoadU(di32, zeros + v * kLanes);
          isum =
              SubtractZeros(isum, zero, PairOfZeros(zero), code_sums[t * num_segments], is_short);
        }
        sums[t][v] = AddSegment(sums[t][v], factor, isum);
      }
    }
    if constexpr (!kSubtracted) ++code_sums;
    factors += num_panels * kPanelRows;
    zeros += num_panels * kPanelRows;
  }
#pragma GCC unroll 16
  for (int t = 0; t < kTokens; ++t) {
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) {
      hn::StoreU(sums[t][v], df32, sums_at + t * kItemRows + v * kLanes);
    }
  }
}

template <int kTokens, bool kSubtracted>
void MultiplyPanels(const ManyTokensCall& many, const Chunk& chunk, int64_t token, int64_t row,
                    int num_panels, const Scratch& scratch) {
  int p = 0;
  for (; p + kTilePanels <= num_panels; p += kTilePanels) {
    MultiplyTile<kTokens, kTilePanels, kSubtracted>(many, chunk, token, row, p, num_panels,
                                                    scratch);
  }
  for (; p < num_panels; ++p) {
    MultiplyTile<kTokens, 1, kSubtracted>(many, chunk, token, row, p, num_panels, scratch);
  }
}

template <bool kSubtracted>
void MultiplyTokens(const ManyTokensCall& many, const Chunk& chunk, int64_t token,
                    int64_t num_tokens, int num_panels, const Scratch& scratch) {
  const int64_t num_tiles = (num_tokens + kTileTokens - 1) / kTileTokens;
  for (int64_t tile = 0; tile < num_tiles; ++tile) {
    const int64_t t = num_tokens * tile / num_tiles;
    const auto run = [&](auto multiply) {
      multiply(many, chunk, token + t, t, num_panels, scratch);
    };
    switch (num_tokens * (tile + 1) / num_tiles - t) {
      case 1:
        run(MultiplyPanels<1, kSubtracted>);
        break;
      case 2:
        run(MultiplyPanels<2, kSubtracted>);
        break;
#if HWY_TARGET == HWY_AVX3 || HWY_TARGET == HWY_AVX3_DL
      case 3:
        run(MultiplyPanels<3, kSubtracted>);
        break;
      case 4:
        run(MultiplyPanels<4, kSubtracted>);
        break;
      case 5:
        run(MultiplyPanels<5, kSubtracted>);
        break;
      case 6:
        run(MultiplyPanels<6, kSubtracted>);
        break;
#endif
      default:
        TW_CHECK(false);
    }
  }
}

// Tokens [token, token + num_tokens) and panels [panel, panel + num_panels).
void RunItem(const ManyTokensCall& many, int64_t token, int64_t num_tokens, int64_t panel,
             int num_panels, const Scratch& scratch) {
  const DF32 df32;
  std::fill(scratch.sums, scratch.sums + num_tokens * kItemRows, 0.0f);
  for (const Chunk& chunk : many.chunks) {
    for (int p = 0; p < num_panels; ++p) {
      switch (many.call.args->weights->bits()) {
        case 3:
          UnpackPanel<3>(many, chunk, panel + p, p, num_panels, scratch);
          break;
        case 4:
          UnpackPanel<4>(many, chunk, panel + p, p, num_panels, scratch);
          break;
        default:
          UnpackPanel<8>(many, chunk, panel + p, p, num_panels, scratch);
      }
    }
    if (many.subtracted) {
      MultiplyTokens<true>(many, chunk, token, num_tokens, num_panels, scratch);
    } else {
      MultiplyTokens<false>(many, chunk, token, num_tokens, num_panels, scratch);
    }
  }
  const Output output(*many.call.args);
  for (int64_t t = 0; t < num_tokens; ++t) {
    for (int p = 0; p < num_panels; ++p) {
      VF32 sums[kPanelVectors];
      for (int v = 0; v < kPanelVectors; ++v) {
        sums[v] = hn::LoadU(df32, scratch.sums + t * kItemRows + p * kPanelRows + v * kLanes);
      }
      output.Store(token + t, panel + p, sums);
    }
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace thinwire
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace thinwire {
namespace {

HWY_EXPORT(RunItem);

// Weights less their zeros up to here are small enough for every target's fast products.
constexpr int kMaxSubtractedZero = 64;

int64_t NumQuads(const Segment& segment, int bits) {
  return segment.num_blocks * BlockColumns(bits) / 4;
}

// Segments in order, as many in a chunk as fit.
std::vector<Chunk> PlanChunks(absl::Span<const Segment> segments, int bits) {
  std::vector<Chunk> chunks;
  int64_t room = 0;
  for (int64_t s = 0; s < static_cast<int64_t>(segments.size()); ++s) {
    const int64_t quads = NumQuads(segments[static_cast<size_t>(s)], bits);
    if (chunks.empty() || quads > room) {
      chunks.push_back({s, s});
      room = kChunkQuads;
    }
    ++chunks.back().end;
    room -= quads;
  }
  return chunks;
}

}  // namespace

absl::Status IntegerLinearManyTokens(const IntegerLinearArgs& args, Stream& stream) {
  const CodedWeights& weights = *args.weights;
  const int64_t num_tokens = args.codes.dim(0);
  ThreadPool& pool = stream.pool();
  std::vector<Segment> segments = PlanSegments(weights, args.segment_offsets, args.segment_step);
  ManyTokensCall many;
  many.chunks = PlanChunks(segments, weights.bits());
  many.subtracted = weights.bits() < 8 && weights.max_zero() <= kMaxSubtractedZero;
  int64_t max_segments = 0;
  int64_t max_quads = 0;
  for (const Chunk& chunk : many.chunks) {
    int64_t quads = 0;
    for (int64_t s = chunk.begin; s < chunk.end; ++s) {
      quads += NumQuads(segments[static_cast<size_t>(s)], weights.bits());
    }
    max_segments = std::max(max_segments, chunk.end - chunk.begin);
    max_quads = std::max(max_quads, quads);
  }

  // Enough items for threads to share evenly.
  const int64_t num_panels = (weights.out_features() + kPanelRows - 1) / kPanelRows;
  const int64_t items_across = (num_panels + kItemPanels - 1) / kItemPanels;
  int64_t item_tokens = std::min(num_tokens, kMaxItemTokens);
  while (item_tokens > kMinItemTokens && pool.num_threads() > 1 &&
         items_across * ((num_tokens + item_tokens - 1) / item_tokens) < 4 * pool.num_threads()) {
    item_tokens = (item_tokens + 1) / 2;
  }
  const int64_t items_down = (num_tokens + item_tokens - 1) / item_tokens;

  // Each part a multiple of 64 bytes.
  const int64_t weight_bytes = max_quads * 4 * kItemRows;
  const int64_t factor_bytes = max_segments * kItemRows * static_cast<int64_t>(sizeof(float));
  const int64_t sum_bytes = item_tokens * kItemRows * static_cast<int64_t>(sizeof(float));
  const int64_t thread_bytes = weight_bytes + 2 * factor_bytes + sum_bytes;
  TW_ASSIGN_OR_RETURN(many.call,
                      PrepareIntegerCall(args, std::move(segments), /*wants_sums=*/!many.subtracted,
                                         pool.num_threads() * thread_bytes, stream));
  pool.ParallelForDynamic(items_across * items_down, [&](int64_t item) {
    const int64_t token = item / items_across * item_tokens;
    const int64_t panel = item % items_across * kItemPanels;
    std::byte* const bytes = many.call.scratch + ThreadPool::CurrentThread() * thread_bytes;
    const Scratch scratch = {reinterpret_cast<float*>(bytes),
                             reinterpret_cast<float*>(bytes + sum_bytes),
                             reinterpret_cast<int32_t*>(bytes + sum_bytes + factor_bytes),
                             reinterpret_cast<uint8_t*>(bytes + sum_bytes + 2 * factor_bytes)};
    HWY_DYNAMIC_DISPATCH(RunItem)
    (many, token, std::min(item_tokens, num_tokens - token), panel,
     static_cast<int>(std::min<int64_t>(kItemPanels, num_panels - panel)), scratch);
  });
  return absl::OkStatus();
}

}  // namespace thinwire
#endif  // HWY_ONCE
