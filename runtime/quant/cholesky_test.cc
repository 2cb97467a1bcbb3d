#include "runtime/quant/cholesky.h"

#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "gtest/gtest.h"

namespace thinwire {
namespace {

// X^T X / n of n = 2 width random rows, its channels scaled by up to `spread`.
std::vector<double> RandomHessian(int64_t width, uint32_t seed, double spread) {
  std::mt19937 random(seed);
  std::normal_distribution<double> normal;
  const int64_t n = 2 * width;
  std::vector<double> x(static_cast<size_t>(n * width));
  for (double& value : x) value = normal(random);
  std::vector<double> scale(static_cast<size_t>(width));
  for (double& value : scale) value = std::pow(spread, normal(random) / 3.0);
  std::vector<double> hessian(static_cast<size_t>(width * width), 0.0);
  for (int64_t i = 0; i < width; ++i) {
    for (int64_t j = 0; j < width; ++j) {
      for (int64_t t = 0; t < n; ++t) {
        hessian[i * width + j] +=
            x[t * width + i] * x[t * width + j] * scale[i] * scale[j] / static_cast<double>(n);
      }
    }
  }
  return hessian;
}

TEST(CholeskyTest, TheFactorsProductInvertsTheMatrix) {
  for (const int64_t width : {1, 2, 3, 17, 64, 131}) {
    for (const double spread : {1.0, 1000.0}) {
      const std::vector<double> hessian = RandomHessian(width, 1, spread);
      std::vector<double> u = hessian;
      ASSERT_TRUE(UpperFactorOfInverse(width, absl::MakeSpan(u)).ok());
      // U H U^T = 1. Rescaled to a unit diagonal, H's condition is below 1e3: the error is a small
      // multiple of width * 1e3 * 2^-53.
      const double bound = 1e5 * static_cast<double>(width) * 0x1p-53;
      std::vector<double> uh(u.size(), 0.0);
      for (int64_t i = 0; i < width; ++i) {
        EXPECT_GT(u[i * width + i], 0.0);
        for (int64_t j = 0; j < i; ++j) EXPECT_EQ(u[i * width + j], 0.0);
        for (int64_t k = i; k < width; ++k) {
          for (int64_t j = 0; j < width; ++j) {
            uh[i * width + j] += u[i * width + k] * hessian[k * width + j];
          }
        }
      }
      for (int64_t i = 0; i < width; ++i) {
        for (int64_t j = 0; j < width; ++j) {
          double sum = 0.0;
          for (int64_t k = j; k < width; ++k) sum += uh[i * width + k] * u[j * width + k];
          EXPECT_NEAR(sum, i == j ? 1.0 : 0.0, bound) << width << " " << i << " " << j;
        }
      }
    }
  }
}

TEST(CholeskyTest, TheIndefiniteIsRefusedByChannel) {
  std::vector<double> hessian = RandomHessian(20, 2, 1.0);
  for (int64_t j = 0; j < 20; ++j) {  // channel 13 a copy of channel 16, its variance too small
    hessian[13 * 20 + j] = hessian[16 * 20 + j];
    hessian[j * 20 + 13] = hessian[j * 20 + 16];
  }
  hessian[13 * 20 + 13] = 0.5 * hessian[16 * 20 + 16];
  const absl::Status status = UpperFactorOfInverse(20, absl::MakeSpan(hessian));
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_NE(status.message().find("channel 13"), absl::string_view::npos) << status;
}

TEST(CholeskyTest, DeadAndNonFiniteDiagonalsAreRefusedByChannel) {
  const double bad[] = {0.0, -1.0, std::numeric_limits<double>::quiet_NaN(),
                        std::numeric_limits<double>::infinity()};
  for (const double value : bad) {
    std::vector<double> hessian = RandomHessian(6, 3, 1.0);
    hessian[4 * 7] = value;
    const absl::Status status = UpperFactorOfInverse(6, absl::MakeSpan(hessian));
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
    EXPECT_NE(status.message().find("channel 4"), absl::string_view::npos) << status;
  }
  std::vector<double> hessian = RandomHessian(6, 3, 1.0);
  hessian[1 * 6 + 3] = std::numeric_limits<double>::quiet_NaN();
  EXPECT_EQ(UpperFactorOfInverse(6, absl::MakeSpan(hessian)).code(),
            absl::StatusCode::kFailedPrecondition);
  EXPECT_TRUE(UpperFactorOfInverse(0, {}).ok());
}

TEST(CholeskyTest, DampingRaisesTheDiagonalOnly) {
  std::vector<double> mean = {4.0, 1.0, 1.0, 2.0};
  std::vector<double> relative = mean;
  DampHessian(Damping::kMeanDiagonal, 0.1, 2, absl::MakeSpan(mean));
  DampHessian(Damping::kRelative, 0.1, 2, absl::MakeSpan(relative));
  const double added = 0.1 * (4.0 / 2.0 + 2.0 / 2.0);
  EXPECT_EQ(mean, (std::vector<double>{4.0 + added, 1.0, 1.0, 2.0 + added}));
  EXPECT_EQ(relative, (std::vector<double>{4.0 + 0.1 * 4.0, 1.0, 1.0, 2.0 + 0.1 * 2.0}));
}

TEST(CholeskyTest, DampingMakesDeadChannelsHarmless) {
  for (const Damping kind : {Damping::kMeanDiagonal, Damping::kRelative}) {
    std::vector<double> hessian = {4.0, 0.0, 1.0,  //
                                   0.0, 0.0, 0.0,  //
                                   1.0, 0.0, 2.0};
    DampHessian(kind, 0.01, 3, absl::MakeSpan(hessian));
    EXPECT_EQ(hessian[4], 1.0);
    ASSERT_TRUE(UpperFactorOfInverse(3, absl::MakeSpan(hessian)).ok());
    EXPECT_EQ(hessian[4], 1.0);
    EXPECT_EQ(hessian[1], 0.0);
    EXPECT_EQ(hessian[5], 0.0);
  }
}

}  // namespace
}  // namespace thinwire
