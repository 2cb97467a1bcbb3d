// Many tokens: the time goes into multiplying. A few panels of weights are unpacked into memory,
// some columns at a time so that they stay in the first-level cache, and multiplied with all tokens
// of an item of work.
#include <algorithm>
#include <cstddef>
#include <vector>

#include "kernels/coded_linear/integer_cpu.h"
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

// Columns of a chunk in fours: 16 KiB of unpacked weights.
constexpr int64_t kChunkQuads = 64;
constexpr int64_t kChunkBytes = kChunkQuads * 4 * kItemRows;

// The whole of a segment, or the part of one that falls into a chunk.
struct Piece {
  int64_t segment;
  int64_t first_block;  // of the panel
  int64_t num_quads;
  bool first;  // the segment begins here
  bool last;   // and ends
};

struct Chunk {
  absl::Span<const Piece> pieces;
  int64_t blocked;  // where its columns begin in a rearranged row of x
};

// What one thread needs beside the arguments.
struct Scratch {
  uint8_t weights[kChunkBytes];               // signed, [quad, panel, row, 4 columns]
  float factors[kChunkQuads * kItemRows];     // [piece, panel, row]
  int32_t zeros[kChunkQuads * kItemRows];     // the same, unless subtracted from the weights
  float sums[kMaxItemTokens * kItemRows];     // [token, panel, row]
  int32_t parts[kMaxItemTokens * kItemRows];  // of a segment that goes on in the next chunk
};

struct ManyTokensCall {
  IntegerCall call;
  std::vector<Piece> pieces;
  std::vector<Chunk> chunks;
  bool subtracted;  // zeros are subtracted from the weights as these are unpacked
};

}  // namespace
}  // namespace thinwire
#endif  // THINWIRE_KERNELS_CODED_LINEAR_MANY_TOKENS_

HWY_BEFORE_NAMESPACE();
namespace thinwire {
namespace HWY_NAMESPACE {

// The largest tile whose integer sums stay in registers.
#if HWY_TARGET == HWY_AVX3 || HWY_TARGET == HWY_AVX3_DL
inline constexpr int kTileTokens = 6;
inline constexpr int kTilePanels = 4;
#else
inline constexpr int kTileTokens = 2;
inline constexpr int kTilePanels = 1;
#endif
static_assert(kItemPanels % kTilePanels == 0);

// Bytes of a panel's quads.
inline constexpr int kPanelQuadBytes = 4 * static_cast<int>(kPanelRows);

// Panel `p` of the num_panels of an item.
template <int kBits>
void UnpackPanel(const ManyTokensCall& many, const Chunk& chunk, int64_t panel, int p,
                 int num_panels, Scratch& scratch) {
  const DF32 df32;
  const DI32 di32;
  const CodedWeights& weights = *many.call.args->weights;
  const uint8_t* const panel_codes = weights.panel_codes(panel);
  const uint8_t* const panel_zeros = weights.panel_zeros(panel);
  const Half* const panel_scales = weights.panel_scales(panel);
  uint8_t* HWY_RESTRICT to = scratch.weights + p * kPanelQuadBytes;
  int64_t at = p * kPanelRows;
  for (const Piece& piece : chunk.pieces) {
    const Segment& segment = many.call.segments[static_cast<size_t>(piece.segment)];
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
    const uint8_t* block = panel_codes + piece.first_block * BlockBytes(kBits);
    for (int64_t quad = 0; quad < piece.num_quads; quad += kQuads<kBits>) {
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
      block += BlockBytes(kBits);
    }
  }
}

// Adds a chunk to the sums of kTokens tokens from `token` on (`row` of the scratch) and kPanels
// panels, of the num_panels unpacked, from `p` on.
template <int kTokens, int kPanels, bool kSubtracted>
HWY_NOINLINE void MultiplyTile(const ManyTokensCall& many, const Chunk& chunk, int64_t token,
                               int64_t row, int p, int num_panels, Scratch& scratch) {
  const DI32 di32;
  const DF32 df32;
  const auto num_segments = static_cast<int64_t>(many.call.segments.size());
  const int64_t x_stride = many.call.x_stride;
  const uint8_t* HWY_RESTRICT x = many.call.x + token * x_stride + chunk.blocked;
  const int32_t* const code_sums = many.call.code_sums + token * num_segments;
  const uint8_t* HWY_RESTRICT w = scratch.weights + p * kPanelQuadBytes;
  const float* HWY_RESTRICT factors = scratch.factors + p * kPanelRows;
  const int32_t* HWY_RESTRICT zeros = scratch.zeros + p * kPanelRows;
  float* HWY_RESTRICT sums = scratch.sums + row * kItemRows + p * kPanelRows;
  int32_t* HWY_RESTRICT parts = scratch.parts + row * kItemRows + p * kPanelRows;
  constexpr int kVectors = kPanels * kPanelVectors;
  for (const Piece& piece : chunk.pieces) {
    VI32 isums[kTokens][kVectors];
#pragma GCC unroll 16
    for (int t = 0; t < kTokens; ++t) {
#pragma GCC unroll 16
      for (int v = 0; v < kVectors; ++v) isums[t][v] = hn::Zero(di32);
    }
    if (!piece.first) [[unlikely]] {
#pragma GCC unroll 16
      for (int t = 0; t < kTokens; ++t) {
#pragma GCC unroll 16
        for (int v = 0; v < kVectors; ++v) {
          isums[t][v] = hn::LoadU(di32, parts + t * kItemRows + v * kLanes);
        }
      }
    }
    const uint8_t* const end = x + 4 * piece.num_quads;
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
    if (piece.last) [[likely]] {
      const Segment& segment = many.call.segments[static_cast<size_t>(piece.segment)];
      const bool is_short = IsShort(segment);
#pragma GCC unroll 16
      for (int v = 0; v < kVectors; ++v) {
        const VF32 factor = hn::LoadU(df32, factors + v * kLanes);
#pragma GCC unroll 16
        for (int t = 0; t < kTokens; ++t) {
          VI32 isum = isums[t][v];
          if constexpr (!kSubtracted) {
            const VI32 zero = hn::LoadU(di32, zeros + v * kLanes);
            isum = SubtractZeros(isum, zero, PairOfZeros(zero),
                                 code_sums[t * num_segments + piece.segment], is_short);
          }
          float* const sum = sums + t * kItemRows + v * kLanes;
          hn::StoreU(AddSegment(hn::LoadU(df32, sum), factor, isum), df32, sum);
        }
      }
    } else {
#pragma GCC unroll 16
      for (int t = 0; t < kTokens; ++t) {
#pragma GCC unroll 16
        for (int v = 0; v < kVectors; ++v) {
          hn::StoreU(isums[t][v], di32, parts + t * kItemRows + v * kLanes);
        }
      }
    }
    factors += num_panels * kPanelRows;
    zeros += num_panels * kPanelRows;
  }
}

template <int kPanels, bool kSubtracted>
void MultiplyTokens(const ManyTokensCall& many, const Chunk& chunk, int64_t token,
                    int64_t num_tokens, int p, int num_panels, Scratch& scratch) {
  const int64_t num_tiles = (num_tokens + kTileTokens - 1) / kTileTokens;
  for (int64_t tile = 0; tile < num_tiles; ++tile) {
    const int64_t t = num_tokens * tile / num_tiles;
    const auto run = [&](auto multiply) {
      multiply(many, chunk, token + t, t, p, num_panels, scratch);
    };
    switch (num_tokens * (tile + 1) / num_tiles - t) {
      case 1:
        run(MultiplyTile<1, kPanels, kSubtracted>);
        break;
      case 2:
        run(MultiplyTile<2, kPanels, kSubtracted>);
        break;
#if HWY_TARGET == HWY_AVX3 || HWY_TARGET == HWY_AVX3_DL
      case 3:
        run(MultiplyTile<3, kPanels, kSubtracted>);
        break;
      case 4:
        run(MultiplyTile<4, kPanels, kSubtracted>);
        break;
      case 5:
        run(MultiplyTile<5, kPanels, kSubtracted>);
        break;
      default:
        run(MultiplyTile<6, kPanels, kSubtracted>);
#endif
    }
  }
}

template <bool kSubtracted>
void MultiplyPanels(const ManyTokensCall& many, const Chunk& chunk, int64_t token,
                    int64_t num_tokens, int num_panels, Scratch& scratch) {
  int p = 0;
  for (; p + kTilePanels <= num_panels; p += kTilePanels) {
    MultiplyTokens<kTilePanels, kSubtracted>(many, chunk, token, num_tokens, p, num_panels,
                                             scratch);
  }
  for (; p < num_panels; ++p) {
    MultiplyTokens<1, kSubtracted>(many, chunk, token, num_tokens, p, num_panels, scratch);
  }
}

// Tokens [token, token + num_tokens) and panels [panel, panel + num_panels).
void RunItem(const ManyTokensCall& many, int64_t token, int64_t num_tokens, int64_t panel,
             int num_panels, std::byte* scratch_bytes) {
  const DF32 df32;
  const Output output(*many.call.args);
  auto& scratch = *reinterpret_cast<Scratch*>(scratch_bytes);
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
      MultiplyPanels<true>(many, chunk, token, num_tokens, num_panels, scratch);
    } else {
      MultiplyPanels<false>(many, chunk, token, num_tokens, num_panels, scratch);
    }
  }
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

// Cuts segments, in order, into chunks of at most kChunkQuads.
void PlanChunks(ManyTokensCall& many) {
  const int bits = many.call.args->weights->bits();
  const int64_t quads_per_block = BlockColumns(bits) / 4;
  std::vector<size_t> chunk_begins;
  int64_t room = 0;
  const auto num_segments = static_cast<int64_t>(many.call.segments.size());
  for (int64_t s = 0; s < num_segments; ++s) {
    const Segment& segment = many.call.segments[static_cast<size_t>(s)];
    for (int64_t block = 0; block < segment.num_blocks;) {
      // A segment that would fit into a chunk of its own is not cut.
      const int64_t left = (segment.num_blocks - block) * quads_per_block;
      if (room == 0 || (left > room && left <= kChunkQuads)) {
        chunk_begins.push_back(many.pieces.size());
        room = kChunkQuads;
      }
      const int64_t quads = std::min(left, room);
      const int64_t num_blocks = quads / quads_per_block;
      many.pieces.push_back({s, segment.first_block + block, quads, block == 0,
                             block + num_blocks == segment.num_blocks});
      block += num_blocks;
      room -= quads;
    }
  }
  chunk_begins.push_back(many.pieces.size());
  int64_t blocked = 0;
  for (size_t c = 0; c + 1 < chunk_begins.size(); ++c) {
    const auto pieces = absl::MakeConstSpan(many.pieces)
                            .subspan(chunk_begins[c], chunk_begins[c + 1] - chunk_begins[c]);
    many.chunks.push_back({pieces, blocked});
    for (const Piece& piece : pieces) blocked += 4 * piece.num_quads;
  }
}

}  // namespace

absl::Status IntegerLinearManyTokens(const IntegerLinearArgs& args, Stream& stream) {
  static_assert(alignof(Scratch) <= 64 && sizeof(Scratch) % 64 == 0);
  static_assert(kChunkQuads % 4 == 0);  // whole blocks
  const CodedWeights& weights = *args.weights;
  ThreadPool& pool = stream.pool();
  ManyTokensCall many;
  TW_ASSIGN_OR_RETURN(
      many.call,
      PrepareIntegerCall(args, PlanSegments(weights, args.segment_offsets, args.segment_step),
                         pool.num_threads() * static_cast<int64_t>(sizeof(Scratch)), stream));
  many.subtracted = weights.bits() < 8 && weights.max_zero() <= kMaxSubtractedZero;
  PlanChunks(many);

  const int64_t num_tokens = args.codes.dim(0);
  const int64_t num_panels = (weights.out_features() + kPanelRows - 1) / kPanelRows;
  const int64_t items_across = (num_panels + kItemPanels - 1) / kItemPanels;
  int64_t item_tokens = kMaxItemTokens;
  while (item_tokens > kMinItemTokens && pool.num_threads() > 1 &&
         items_across * ((num_tokens + item_tokens - 1) / item_tokens) < 4 * pool.num_threads()) {
    item_tokens /= 2;
  }
  const int64_t items_down = (num_tokens + item_tokens - 1) / item_tokens;
  pool.ParallelForDynamic(items_across * items_down, [&](int64_t item) {
    const int64_t token = item / items_across * item_tokens;
    const int64_t panel = item % items_across * kItemPanels;
    HWY_DYNAMIC_DISPATCH(RunItem)
    (many, token, std::min(item_tokens, num_tokens - token), panel,
     static_cast<int>(std::min<int64_t>(kItemPanels, num_panels - panel)),
     many.call.scratch + ThreadPool::CurrentThread() * static_cast<int64_t>(sizeof(Scratch)));
  });
  return absl::OkStatus();
}

}  // namespace thinwire
#endif  // HWY_ONCE
