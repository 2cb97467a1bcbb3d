#include <set>

#include "gtest/gtest.h"
#include "runtime/cache/page_allocator.h"
#include "runtime/cache/paged_kv_cache.h"

namespace thinwire {
namespace {

TEST(PageAllocatorTest, HandsOutEveryPageOnceThenNothing) {
  PageAllocator allocator(5);
  std::set<int32_t> pages;
  for (int i = 0; i < 5; ++i) pages.insert(allocator.Allocate().value());
  EXPECT_EQ(pages.size(), 5u);
  EXPECT_FALSE(allocator.Allocate().has_value());
  allocator.Free(3);
  EXPECT_EQ(allocator.num_free(), 1);
  EXPECT_EQ(allocator.Allocate(), 3);
}

TEST(PageAllocatorDeathTest, FreeingAFreePageIsABug) {
  PageAllocator allocator(2);
  EXPECT_DEATH(allocator.Free(0), "check failed");
}

TEST(PagedKvCacheTest, BytesAreWhatTheShapeSays) {
  // 2 layers x (K and V) x 3 heads x 16 tokens x 8 dims x 2 bytes.
  const KvCacheShape shape = {2, 3, 8, 16, DType::kF16};
  EXPECT_EQ(shape.PageBytes(), 2 * 2 * 3 * 16 * 8 * 2);
  PagedKvCache cache = PagedKvCache::Allocate(shape, 7, 0, Device::Cpu()).value();
  EXPECT_EQ(cache.size_bytes(), 7 * shape.PageBytes());
  EXPECT_EQ(cache.k_pages(1).DebugString(), "fp16[7, 3, 16, 8]");
  EXPECT_NE(cache.k_pages(0).raw(), cache.v_pages(0).raw());
}

TEST(PagedKvCacheTest, CodesTakeTheirShareOfFp16AndFirstTokensLittleMore) {
  // A head of 128 channels: 64 bytes of 4 bits, 48 of 3.
  for (const int64_t bits : {4, 3}) {
    const KvCacheShape fp16 = {
        .num_layers = 2, .num_kv_heads = 3, .head_dim = 128, .page_size = 16, .dtype = DType::kF16};
    KvCacheShape coded = fp16;
    const int64_t row = 128 * bits / 8;
    coded.coded_rows = {{row, row}, {row + 16, row - 16}};
    coded.exact_first_tokens = true;
    EXPECT_EQ(coded.PageBytes() * 16, fp16.PageBytes() * bits);
    // 8 sequences of 2048 tokens.
    constexpr int64_t kSeqs = 8, kPages = kSeqs * 2048 / 16;
    PagedKvCache cache = PagedKvCache::Allocate(coded, kPages, kSeqs, Device::Cpu()).value();
    EXPECT_EQ(cache.size_bytes(), kPages * coded.PageBytes() + kSeqs * coded.ExactRowBytes());
    EXPECT_LE(static_cast<double>(cache.size_bytes()),
              1.01 * static_cast<double>(kPages * fp16.PageBytes()) * bits / 16);
    EXPECT_EQ(cache.v_pages(1).dim(3), row - 16);
    EXPECT_EQ(cache.exact_k(0).DebugString(), "fp16[8, 3, 128]");
  }
}

TEST(PagedKvCacheTest, TooMuchMemoryIsAStatus) {
  const KvCacheShape shape = {1, 1024, 1024, 1024, DType::kF32};
  const absl::Status status =
      PagedKvCache::Allocate(shape, int64_t{1} << 20, 0, Device::Cpu()).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
}

}  // namespace
}  // namespace thinwire
