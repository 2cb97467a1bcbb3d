#include "runtime/cache/kv_part.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/core/thread_pool.h"

namespace thinwire {
namespace {

constexpr int64_t kLayers = 3, kHeads = 4, kHeadDim = 32, kPageSize = 4, kPages = 9;
// Two full pages and a part of a third, not in order.
const std::vector<int32_t> kFrom = {7, 2, 5};
const std::vector<int32_t> kTo = {0, 8, 3};
constexpr int64_t kTokens = 2 * kPageSize + 1;

// The whole model's cache, or that of a rank with these layers and heads of it.
PagedKvCache MakeCache(const KvCacheShape& whole, const KvPart& held) {
  KvCacheShape shape = whole;
  shape.num_layers = held.layers.size();
  shape.num_kv_heads = held.kv_heads.size();
  shape.coded_rows.clear();
  shape.used_rows.clear();
  for (int64_t layer = held.layers.begin; layer < held.layers.end; ++layer) {
    if (whole.coded_rows.empty()) break;
    KvCacheShape::RowBytes widest;
    for (int64_t head = held.kv_heads.begin; head < held.kv_heads.end; ++head) {
      const KvCacheShape::RowBytes used = whole.UsedRow(layer, head);
      widest = {std::max(widest.k, used.k), std::max(widest.v, used.v)};
      shape.used_rows.push_back(used);
    }
    shape.coded_rows.push_back(widest);  // as kernels/attention packs the heads of one rank
  }
  return PagedKvCache::Allocate(shape, kPages, /*num_exact_rows=*/2, Device::Cpu()).value();
}

uint8_t* Bytes(const TensorView& view) { return static_cast<uint8_t*>(view.mutable_raw()); }

// The first byte of a token's row.
uint8_t* RowOf(const TensorView& pages, const std::vector<int32_t>& table, int64_t head,
               int64_t token, int64_t row_bytes) {
  const int64_t slot = (table[token / kPageSize] * pages.dim(1) + head) * kPageSize;
  return Bytes(pages) + (slot + token % kPageSize) * row_bytes;
}

// A value for byte i of a token's row; layers and heads are the model's.
uint8_t Value(int64_t layer, int64_t head, int64_t token, int64_t i, int64_t what) {
  return static_cast<uint8_t>(1 + layer * 101 + head * 37 + token * 11 + i * 3 + what * 59);
}

// Calls visit(byte, expected) for each byte that a sequence has in `cache`, which holds `held`.
template <typename Visit>
void ForEachByte(PagedKvCache& cache, const KvPart& held, const std::vector<int32_t>& table,
                 int64_t exact_row, const Visit& visit) {
  const KvCacheShape& shape = cache.shape();
  for (int64_t l = 0; l < shape.num_layers; ++l) {
    for (int64_t h = 0; h < shape.num_kv_heads; ++h) {
      const int64_t layer = held.layers.begin + l, head = held.kv_heads.begin + h;
      const KvCacheShape::RowBytes row = shape.Row(l), used = shape.UsedRow(l, h);
      for (int64_t token = 0; token < kTokens; ++token) {
        uint8_t* k = RowOf(cache.k_pages(l), table, h, token, row.k);
        uint8_t* v = RowOf(cache.v_pages(l), table, h, token, row.v);
        for (int64_t i = 0; i < row.k; ++i) {
          visit(k[i], i < used.k ? Value(layer, head, token, i, 0) : 0);
        }
        for (int64_t i = 0; i < row.v; ++i) {
          visit(v[i], i < used.v ? Value(layer, head, token, i, 1) : 0);
        }
      }
      if (!shape.exact_first_tokens) continue;
      for (int64_t i = 0; i < 2 * kHeadDim; ++i) {
        const int64_t at = (exact_row * shape.num_kv_heads + h) * 2 * kHeadDim + i;
        visit(Bytes(cache.exact_k(l))[at], Value(layer, head, 0, i, 2));
        visit(Bytes(cache.exact_v(l))[at], Value(layer, head, 0, i, 3));
      }
    }
  }
}

// Local indices of what both hold, in the cache that holds `held`.
KvPart Shared(const KvPart& held, const KvPart& other) {
  const auto cut = [](Range a, Range b) {
    return Range{std::max(a.begin, b.begin) - a.begin, std::min(a.end, b.end) - a.begin};
  };
  return {cut(held.layers, other.layers), cut(held.kv_heads, other.kv_heads)};
}

// A sequence moves from ranks that hold `from` to ranks that hold `to`, and is the same there.
void ExpectMoves(const KvCacheShape& whole, const std::vector<KvPart>& from,
                 const std::vector<KvPart>& to) {
  ThreadPool pool(1);
  Stream stream = Stream::Cpu(&pool);
  for (const KvPart& target_part : to) {
    PagedKvCache target = MakeCache(whole, target_part);
    // What another sequence has left there.
    for (int64_t l = 0; l < target.shape().num_layers; ++l) {
      for (const TensorView& view : {target.k_pages(l), target.v_pages(l)}) {
        std::memset(view.mutable_raw(), 0xee, view.size_bytes());
      }
    }
    for (const KvPart& source_part : from) {
      const KvPart out = Shared(source_part, target_part), in = Shared(target_part, source_part);
      if (out.layers.size() <= 0 || out.kv_heads.size() <= 0) continue;
      PagedKvCache source = MakeCache(whole, source_part);
      ForEachByte(source, source_part, kFrom, /*exact_row=*/1,
                  [](uint8_t& byte, uint8_t value) { byte = value; });
      const int64_t bytes = KvPartBytes(source.shape(), out, kTokens);
      ASSERT_EQ(bytes, KvPartBytes(target.shape(), in, kTokens));
      std::vector<uint8_t> message(bytes);
      const TensorView view(message.data(), DType::kU8, {bytes});
      ASSERT_TRUE(ReadKvPart(source, out, {kFrom, kTokens, /*exact_row=*/1}, view, stream).ok());
      ASSERT_TRUE(WriteKvPart(target, in, {kTo, kTokens, /*exact_row=*/0}, view, stream).ok());
    }
    int64_t wrong = 0;
    ForEachByte(target, target_part, kTo, /*exact_row=*/0,
                [&](uint8_t byte, uint8_t value) { wrong += byte != value; });
    EXPECT_EQ(wrong, 0);
    // The other tokens of the last page belong to nobody yet and stay as they were.
    const int64_t row = target.shape().Row(0).k;
    EXPECT_EQ(*RowOf(target.k_pages(0), kTo, 0, kTokens, row), 0xee);
  }
}

void ExpectMovesBetweenAllCuts(const KvCacheShape& whole) {
  const Range layers = {0, kLayers}, heads = {0, kHeads};
  const std::vector<KvPart> one = {{layers, heads}};
  const std::vector<KvPart> tp2 = {{layers, {0, 2}}, {layers, {2, 4}}};
  const std::vector<KvPart> pp2 = {{{0, 1}, heads}, {{1, 3}, heads}};
  const std::vector<KvPart> tp4_pp2 = {{{0, 1}, {0, 1}}, {{0, 1}, {1, 2}}, {{0, 1}, {2, 3}},
                                       {{0, 1}, {3, 4}}, {{1, 3}, {0, 1}}, {{1, 3}, {1, 2}},
                                       {{1, 3}, {2, 3}}, {{1, 3}, {3, 4}}};
  for (const auto& from : {one, tp2, pp2, tp4_pp2}) {
    for (const auto& to : {one, tp2, pp2, tp4_pp2}) ExpectMoves(whole, from, to);
  }
}

KvCacheShape Whole(DType dtype) {
  return {.num_layers = kLayers,
          .num_kv_heads = kHeads,
          .head_dim = kHeadDim,
          .page_size = kPageSize,
          .dtype = dtype};
}

TEST(KvPartTest, FloatsMoveBetweenAllCuts) {
  for (const DType dtype : {DType::kF32, DType::kF16}) ExpectMovesBetweenAllCuts(Whole(dtype));
}

TEST(KvPartTest, CodesAndExactFirstTokensMoveBetweenAllCuts) {
  KvCacheShape whole = Whole(DType::kF32);
  whole.exact_first_tokens = true;
  whole.coded_rows.assign(kLayers, {kHeadDim / 2, kHeadDim / 2});
  ExpectMovesBetweenAllCuts(whole);
}

TEST(KvPartTest, HeadsOfDifferentWidthsMoveBetweenRanksWhoseRowsDiffer) {
  KvCacheShape whole = Whole(DType::kF32);
  whole.coded_rows.assign(kLayers, {20, 16});
  for (int64_t layer = 0; layer < kLayers; ++layer) {
    for (int64_t head = 0; head < kHeads; ++head) {
      whole.used_rows.push_back({20 - 4 * (head % 3), 8 + 4 * (head % 3)});
    }
  }
  ExpectMovesBetweenAllCuts(whole);
}

TEST(KvPartTest, FourBitsOfAHundredTokensAreLittleMoreThanAQuarterOfFp16) {
  KvCacheShape whole = Whole(DType::kF32);
  whole.exact_first_tokens = true;
  whole.coded_rows.assign(kLayers, {kHeadDim / 2, kHeadDim / 2});
  const KvPart all = {{0, kLayers}, {0, kHeads}};
  const int64_t fp16 = kLayers * kHeads * 100 * 2 * kHeadDim * 2;
  EXPECT_EQ(KvPartFp16Bytes(whole, all, 100), fp16);
  EXPECT_EQ(KvPartBytes(whole, all, 100), fp16 / 4 + fp16 / 100);
}

}  // namespace
}  // namespace thinwire
