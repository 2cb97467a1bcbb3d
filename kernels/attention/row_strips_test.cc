#include "kernels/attention/row_strips.h"

#include <numeric>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/core/thread_pool.h"

namespace thinwire {
namespace {

using ::testing::ElementsAre;

class RowStripsTest : public ::testing::Test {
 protected:
  RowStripsTest() : memory_(24) {
    std::iota(memory_.begin(), memory_.end(), uint8_t{0});
    auto* const bytes = reinterpret_cast<std::byte*>(memory_.data());
    // Pages of two rows of 4 bytes; of the first strip's rows 3 bytes are used.
    strips_ = {
        {.pages = bytes, .page_bytes = 8, .row_bytes = 4, .used_bytes = 3, .first = 1, .count = 2},
        {.pages = bytes, .page_bytes = 8, .row_bytes = 4, .used_bytes = 4, .count = 3}};
  }

  RowStrips rows() const { return {strips_, page_ids_, 2}; }

  ThreadPool pool_{1};
  Stream stream_ = Stream::Cpu(&pool_);
  std::vector<uint8_t> memory_;
  std::vector<RowStrip> strips_;
  const std::vector<int32_t> page_ids_ = {2, 0};
};

TEST_F(RowStripsTest, RowsOfPagesArePackedOneBehindTheOther) {
  ASSERT_EQ(PackedBytes(rows()), 2 * 3 + 3 * 4);
  std::vector<uint8_t> packed(18);
  ASSERT_TRUE(PackRows(rows(), TensorView(packed.data(), DType::kU8, {18}), stream_).ok());
  EXPECT_THAT(packed, ElementsAre(20, 21, 22, 0, 1, 2, 16, 17, 18, 19, 20, 21, 22, 23, 0, 1, 2, 3));
}

TEST_F(RowStripsTest, WhatIsUnpackedLiesInTheRowsAndTheirRestIsZero) {
  strips_.resize(1);
  std::vector<uint8_t> packed = {101, 102, 103, 104, 105, 106};
  ASSERT_TRUE(UnpackRows(rows(), ConstTensorView(packed.data(), DType::kU8, {6}), stream_).ok());
  EXPECT_THAT(memory_, ElementsAre(104, 105, 106, 0, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16,
                                   17, 18, 19, 101, 102, 103, 0));
}

TEST_F(RowStripsTest, AnotherSizeIsRefused) {
  std::vector<uint8_t> packed(17);
  const TensorView view(packed.data(), DType::kU8, {17});
  EXPECT_EQ(PackRows(rows(), view, stream_).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(UnpackRows(rows(), view, stream_).code(), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace thinwire
