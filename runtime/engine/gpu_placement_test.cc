#include "runtime/engine/gpu_placement.h"

#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace thinwire {
namespace {

TEST(GpuPlacementTest, RanksOfDifferentHostsMayHaveEqualPlaces) {
  const std::vector<GpuPlace> places = {
      {"a", "0000:18:00.0", 0}, {"a", "0000:2a:00.0", 1}, {"b", "0000:18:00.0", 0}};
  EXPECT_TRUE(CheckDistinct(places).ok());
}

TEST(GpuPlacementTest, SharedGpusAreRefusedWithBothRanks) {
  const std::vector<GpuPlace> places = {
      {"a", "0000:18:00.0", 0}, {"a", "0000:2a:00.0", 1}, {"a", "0000:18:00.0", 0}};
  const absl::Status status = CheckDistinct(places);
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()),
              testing::HasSubstr("ranks 0 and 2 on a would share a GPU: cuda:0 (0000:18:00.0)"));
}

}  // namespace
}  // namespace thinwire
