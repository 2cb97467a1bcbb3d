#include "runtime/quant/bit_allocation.h"

#include <algorithm>
#include <limits>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "gtest/gtest.h"

namespace thinwire {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

TEST(BitAllocationTest, EqualsTheBestOfAllChoices) {
  const std::vector<uint8_t> widths = {2, 3, 5, 8};
  constexpr int64_t kUnits = 5;
  std::mt19937 random(1);
  std::uniform_real_distribution<double> uniform(0.0, 1.0);
  for (int round = 0; round < 20; ++round) {
    std::vector<double> costs(kUnits * 4);
    for (double& cost : costs) cost = uniform(random);  // neither convex nor falling
    for (const int64_t budget : {10, 13, 20, 27, 40, 1000}) {
      double least = kInfinity;
      for (int code = 0; code < 1024; ++code) {
        int64_t bits = 0;
        double cost = 0.0;
        for (int64_t u = 0, rest = code; u < kUnits; ++u, rest /= 4) {
          bits += widths[rest % 4];
          cost += costs[u * 4 + rest % 4];
        }
        if (bits <= budget) least = std::min(least, cost);
      }
      const auto found = AllocateBits(costs, kUnits, widths, budget);
      ASSERT_TRUE(found.ok());
      EXPECT_NEAR(found->cost, least, 1e-12);
      double cost = 0.0;
      int64_t bits = 0;
      for (int64_t u = 0; u < kUnits; ++u) {
        const auto j = std::find(widths.begin(), widths.end(), found->bits[u]) - widths.begin();
        ASSERT_LT(j, 4);
        cost += costs[u * 4 + j];
        bits += found->bits[u];
      }
      EXPECT_NEAR(cost, least, 1e-12);
      EXPECT_EQ(bits, found->total_bits);
      EXPECT_LE(bits, budget);
    }
  }
}

TEST(BitAllocationTest, ExponentialCostsSpendTheWholeBudgetOnTheLoudUnits) {
  std::vector<double> costs;
  for (int u = 0; u < 8; ++u) {
    for (int b = 1; b <= 8; ++b) {
      costs.push_back((u == 5 ? 256.0 : 1.0) / static_cast<double>(1 << (2 * b)));
    }
  }
  const std::vector<uint8_t> widths = {1, 2, 3, 4, 5, 6, 7, 8};
  const auto found = AllocateBits(costs, 8, widths, 8 * 4);
  ASSERT_TRUE(found.ok());
  EXPECT_EQ(found->total_bits, 32);
  EXPECT_EQ(found->order.front(), 5);
  EXPECT_GE(found->bits[5], 7);
  for (size_t j = 1; j < 8; ++j) {
    const int32_t before = found->order[j - 1];
    const int32_t after = found->order[j];
    EXPECT_GE(found->bits[before], found->bits[after]);
    if (found->bits[before] == found->bits[after]) {
      EXPECT_LT(before, after);
    }
  }
}

TEST(BitAllocationTest, EqualCostsTakeFewBits) {
  const std::vector<uint8_t> widths = {2, 4};
  const auto found = AllocateBits({1.0, 1.0, 3.0, 0.0, 3.0, 0.0}, 3, widths, 8);
  ASSERT_TRUE(found.ok());
  EXPECT_EQ(found->bits, (std::vector<uint8_t>{2, 4, 2}));
  EXPECT_EQ(found->order, (std::vector<int32_t>{1, 0, 2}));
}

TEST(BitAllocationTest, BadInputIsNamed) {
  const std::vector<uint8_t> widths = {3, 4};
  const auto message = [&](const std::vector<double>& costs, int64_t budget) {
    const absl::Status status = AllocateBits(costs, 2, widths, budget).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    return std::string(status.message());
  };
  const double nan = std::numeric_limits<double>::quiet_NaN();
  EXPECT_NE(message({0.0, 0.0, 0.0, nan}, 8).find("unit 1 with 4 bits"), std::string::npos);
  EXPECT_NE(message({0.0, 0.0, 0.0, 0.0}, 5).find("expected at least 6"), std::string::npos);
  EXPECT_NE(message({kInfinity, 0.0, kInfinity, 0.0}, 7).find("infinite"), std::string::npos);
  const auto none = AllocateBits({}, 0, widths, 0);
  ASSERT_TRUE(none.ok());
  EXPECT_TRUE(none->bits.empty());
}

}  // namespace
}  // namespace thinwire
