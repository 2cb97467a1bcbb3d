#include "parallel/comm/shared_segment.h"

#include <cstring>
#include <utility>

#include "gtest/gtest.h"

namespace thinwire {
namespace {

constexpr int64_t kBytes = 10000;  // no whole pages

TEST(SharedSegmentTest, BothMappingsAreTheSameMemory) {
  absl::StatusOr<SharedSegment> mine = SharedSegment::Create(kBytes);
  if (absl::IsUnavailable(mine.status())) GTEST_SKIP() << mine.status();
  ASSERT_TRUE(mine.ok()) << mine.status();
  for (int64_t i = 0; i < kBytes; ++i) ASSERT_EQ(mine->data()[i], std::byte{0});
  absl::StatusOr<SharedSegment> theirs = SharedSegment::Open(mine->name(), kBytes);
  ASSERT_TRUE(theirs.ok()) << theirs.status();
  std::memset(mine->data(), 7, kBytes);
  EXPECT_EQ(theirs->data()[0], std::byte{7});
  EXPECT_EQ(theirs->data()[kBytes - 1], std::byte{7});
}

TEST(SharedSegmentTest, WhoHasMappedItKeepsItWithoutAName) {
  absl::StatusOr<SharedSegment> mine = SharedSegment::Create(kBytes);
  if (absl::IsUnavailable(mine.status())) GTEST_SKIP() << mine.status();
  ASSERT_TRUE(mine.ok()) << mine.status();
  SharedSegment theirs = SharedSegment::Open(mine->name(), kBytes).value();
  mine->Unlink();
  EXPECT_EQ(SharedSegment::Open(mine->name(), kBytes).status().code(), absl::StatusCode::kNotFound);
  const SharedSegment moved = std::move(theirs);
  mine->data()[5] = std::byte{9};
  EXPECT_EQ(moved.data()[5], std::byte{9});
}

TEST(SharedSegmentTest, NothingIsLeftBehind) {
  std::string name;
  {
    const absl::StatusOr<SharedSegment> mine = SharedSegment::Create(kBytes);
    if (absl::IsUnavailable(mine.status())) GTEST_SKIP() << mine.status();
    ASSERT_TRUE(mine.ok()) << mine.status();
    name = mine->name();
    EXPECT_LT(name.size(), 64u);
  }
  EXPECT_EQ(SharedSegment::Open(name, kBytes).status().code(), absl::StatusCode::kNotFound);
}

TEST(SharedSegmentTest, AnotherSizeIsRefused) {
  const absl::StatusOr<SharedSegment> mine = SharedSegment::Create(kBytes);
  if (absl::IsUnavailable(mine.status())) GTEST_SKIP() << mine.status();
  ASSERT_TRUE(mine.ok()) << mine.status();
  const absl::Status status = SharedSegment::Open(mine->name(), kBytes + 1).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_NE(status.message().find("expected 10001 bytes, found 10000"), absl::string_view::npos)
      << status;
}

TEST(SharedSegmentTest, MoreThanTheHostHasIsAnError) {
  const absl::Status status = SharedSegment::Create(int64_t{1} << 50).status();
  if (absl::IsUnavailable(status)) GTEST_SKIP() << status;
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
}

}  // namespace
}  // namespace thinwire
