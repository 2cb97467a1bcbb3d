#include "runtime/quant/column_fold.h"

#include <algorithm>
#include <cmath>
#include <random>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "runtime/quant/cholesky.h"

namespace thinwire {
namespace {

std::vector<double> Positive(int64_t size, uint32_t seed) {
  std::mt19937 random(seed);
  std::uniform_real_distribution<double> uniform(0.1, 10.0);
  std::vector<double> values(static_cast<size_t>(size));
  for (double& value : values) value = uniform(random);
  return values;
}

TEST(ColumnFoldTest, EndsEqualiseInputsOrColumns) {
  const std::vector<double> rms = Positive(30, 1);
  const std::vector<double> norm = Positive(30, 2);
  for (const double alpha : {0.0, 0.5, 1.0}) {
    const std::vector<double> fold = ColumnFold(rms, norm, alpha, 0.5);
    double sum = 0.0;
    for (size_t i = 0; i < 30; ++i) {
      EXPECT_NEAR(fold[i] / fold[0],
                  std::pow(rms[i] / rms[0], alpha) * std::pow(norm[0] / norm[i], 1.0 - alpha),
                  1e-12 * fold[i] / fold[0]);
      sum += std::log(fold[i] * norm[i]) / 30.0;
    }
    EXPECT_NEAR(std::exp(sum), 0.5, 1e-12);
  }
}

TEST(ColumnFoldTest, ARescaledModelFoldsToTheSame) {
  std::vector<double> rms = Positive(30, 3);
  std::vector<double> norm = Positive(30, 4);
  const std::vector<double> scales = Positive(30, 5);
  for (const double alpha : {0.0, 0.3, 1.0}) {
    const std::vector<double> before = ColumnFold(rms, norm, alpha, 1.0);
    std::vector<double> rescaled_rms = rms;
    std::vector<double> rescaled_norm = norm;
    for (size_t i = 0; i < 30; ++i) {
      rescaled_rms[i] *= scales[i];
      rescaled_norm[i] /= scales[i];
    }
    const std::vector<double> after = ColumnFold(rescaled_rms, rescaled_norm, alpha, 1.0);
    for (size_t i = 0; i < 30; ++i) {
      EXPECT_NEAR(after[i] / scales[i], before[i], 1e-12 * before[i]);
    }
  }
}

TEST(ColumnFoldTest, DeadChannelsHaveFiniteScales) {
  for (const double alpha : {0.0, 0.5, 1.0}) {
    for (const auto& [rms, norm] :
         {std::pair(std::vector<double>{0.0, 1.0, 2.0}, std::vector<double>{1.0, 0.0, 3.0}),
          std::pair(std::vector<double>{0.0, 0.0, 2.0}, std::vector<double>{0.0, 0.0, 0.0})}) {
      for (const double f : ColumnFold(rms, norm, alpha, 1.0)) {
        EXPECT_TRUE(std::isfinite(f));
        EXPECT_GT(f, 0.0);
      }
    }
  }
  EXPECT_TRUE(ColumnFold({}, {}, 0.5, 1.0).empty());
}

TEST(ColumnFoldTest, FoldingCommutesWithRelativeDampingAndFactoring) {
  constexpr int64_t kWidth = 12;
  std::vector<double> hessian(kWidth * kWidth, 1.0);
  const std::vector<double> diagonal = Positive(kWidth, 6);
  for (int64_t i = 0; i < kWidth; ++i) hessian[i * kWidth + i] += diagonal[i];
  const std::vector<double> fold = Positive(kWidth, 7);
  const auto factor = [&](std::vector<double> matrix) {
    DampHessian(Damping::kRelative, 0.01, kWidth, absl::MakeSpan(matrix));
    EXPECT_TRUE(UpperFactorOfInverse(kWidth, absl::MakeSpan(matrix)).ok());
    return matrix;
  };
  std::vector<double> folded_after = factor(hessian);
  FoldFactor(fold, absl::MakeSpan(folded_after));
  FoldHessian(fold, absl::MakeSpan(hessian));
  const std::vector<double> folded_before = factor(hessian);
  for (size_t i = 0; i < folded_before.size(); ++i) {
    EXPECT_NEAR(folded_after[i], folded_before[i], 1e-11 * (1.0 + std::abs(folded_before[i])));
  }
}

TEST(ColumnFoldTest, NormsAreThoseOfColumns) {
  const std::vector<float> weights = {3.0f, 1.0f, -4.0f, 0.0f};
  EXPECT_EQ(ColumnNorms(weights, 2), (std::vector<double>{5.0, 1.0}));
  EXPECT_EQ(ColumnNorms({}, 2), (std::vector<double>{0.0, 0.0}));
}

}  // namespace
}  // namespace thinwire
