#include "runtime/quant/second_moments.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "gtest/gtest.h"

namespace thinwire {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// Rows of correlated channels; channel c sits at offset[c] with deviation about 1.
std::vector<float> Rows(int64_t num_rows, int64_t width, uint32_t seed, float offset) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> x(static_cast<size_t>(num_rows * width));
  for (int64_t t = 0; t < num_rows; ++t) {
    const float common = normal(random);
    for (int64_t c = 0; c < width; ++c) {
      x[t * width + c] = (c % 3 == 1 ? offset : 0.0f) + 0.5f * common + normal(random);
    }
  }
  return x;
}

// mean of a_i b_j, less the product of the means where centred.
double Moment(const std::vector<float>& a, const std::vector<float>& b, int64_t width, int64_t i,
              int64_t j, bool centred) {
  const auto n = static_cast<int64_t>(a.size()) / width;
  double sum_a = 0.0;
  double sum_b = 0.0;
  for (int64_t t = 0; t < n; ++t) {
    sum_a += static_cast<double>(a[t * width + i]);
    sum_b += static_cast<double>(b[t * width + j]);
  }
  const double mean_a = centred ? sum_a / static_cast<double>(n) : 0.0;
  const double mean_b = centred ? sum_b / static_cast<double>(n) : 0.0;
  double sum = 0.0;
  for (int64_t t = 0; t < n; ++t) {
    sum += (static_cast<double>(a[t * width + i]) - mean_a) *
           (static_cast<double>(b[t * width + j]) - mean_b);
  }
  return sum / static_cast<double>(n);
}

TEST(SecondMomentsTest, EqualSumsInDouble) {
  ThreadPool pool(2);
  for (const int64_t width : {1, 3, 130}) {
    for (const int64_t num_rows : {1, 2, 513, 1100}) {
      const std::vector<float> x = Rows(num_rows, width, 1, 0.0f);
      const std::vector<float> y = Rows(num_rows, width, 2, 0.0f);
      std::vector<float> shift(x.size());
      for (size_t i = 0; i < x.size(); ++i) shift[i] = y[i] - x[i];
      SecondMoments moments(width, true);
      ASSERT_TRUE(moments.Add(x.data(), width, y.data(), width, num_rows, pool).ok());
      EXPECT_EQ(moments.count(), num_rows);
      for (const bool centred : {false, true}) {
        const std::vector<double> hessian = moments.Hessian(centred);
        const std::vector<double> cross = moments.TargetShift(centred);
        const std::vector<double> variance = moments.Variance(centred);
        // Products of numbers below 6 are summed over 512 rows in fp32: at most 512 * 2^-24 * 36
        // off, and in practice far less.
        const double bound = 512 * 0x1p-24 * 36;
        for (int64_t i = 0; i < width; i += 7) {
          for (int64_t j = 0; j < width; ++j) {
            EXPECT_NEAR(hessian[i * width + j], Moment(x, x, width, i, j, centred), bound);
            EXPECT_EQ(hessian[i * width + j], hessian[j * width + i]);
            EXPECT_NEAR(cross[i * width + j], Moment(shift, x, width, i, j, centred), bound);
          }
          EXPECT_EQ(variance[i], hessian[i * width + i]);
          EXPECT_GE(variance[i], 0.0);
        }
      }
    }
  }
}

TEST(SecondMomentsTest, AnOffsetOfThousandsLeavesTheVarianceExact) {
  constexpr int64_t kWidth = 5;
  constexpr int64_t kNumRows = 1500;
  ThreadPool pool(1);
  const std::vector<float> x = Rows(kNumRows, kWidth, 3, 4096.0f);
  SecondMoments moments(kWidth, false);
  ASSERT_TRUE(moments.Add(x.data(), kWidth, nullptr, 0, kNumRows, pool).ok());
  const std::vector<double> hessian = moments.Hessian(true);
  for (int64_t i = 0; i < kWidth; ++i) {
    for (int64_t j = 0; j < kWidth; ++j) {
      // As without the offset, and double's rounding of 4096^2.
      EXPECT_NEAR(hessian[i * kWidth + j], Moment(x, x, kWidth, i, j, true),
                  512 * 0x1p-24 * 36 + 4096.0 * 4096.0 * 0x1p-50);
    }
  }
  double mean = 0.0;
  for (int64_t t = 0; t < kNumRows; ++t) mean += static_cast<double>(x[t * kWidth + 1]) / kNumRows;
  EXPECT_NEAR(moments.Mean()[1], mean, 4096 * kNumRows * 0x1p-53);
}

TEST(SecondMomentsTest, ManyRowsLoseNothing) {
  constexpr int64_t kRowsOfOne = 512;
  ThreadPool pool(1);
  const std::vector<float> ones(kRowsOfOne, 1.0f);
  SecondMoments moments(1, false);
  for (int i = 0; i < 1024; ++i) {  // 2^19 rows of variance 0 around 1
    ASSERT_TRUE(moments.Add(ones.data(), 1, nullptr, 0, kRowsOfOne, pool).ok());
  }
  EXPECT_EQ(moments.Hessian(false)[0], 1.0);
  EXPECT_EQ(moments.Hessian(true)[0], 0.0);
}

TEST(SecondMomentsTest, ThreadsChangeNoBit) {
  constexpr int64_t kWidth = 300;
  const std::vector<float> x = Rows(700, kWidth, 4, 10.0f);
  const std::vector<float> y = Rows(700, kWidth, 5, 10.0f);
  std::vector<std::vector<double>> sums;
  for (const int num_threads : {1, 2, 5}) {
    ThreadPool pool(num_threads);
    SecondMoments moments(kWidth, true);
    ASSERT_TRUE(moments.Add(x.data(), kWidth, y.data(), kWidth, 700, pool).ok());
    sums.emplace_back(moments.sums().begin(), moments.sums().end());
  }
  EXPECT_EQ(sums[0], sums[1]);
  EXPECT_EQ(sums[0], sums[2]);
}

TEST(SecondMomentsTest, MergingRanksEqualsAddingTheirRowsInTurn) {
  constexpr int64_t kWidth = 20;
  ThreadPool pool(2);
  const std::vector<float> x = Rows(90, kWidth, 6, 3.0f);
  SecondMoments whole(kWidth, false);
  SecondMoments merged(kWidth, false);
  for (int64_t first = 0; first < 90; first += 30) {
    const float* rows = x.data() + first * kWidth;
    ASSERT_TRUE(whole.Add(rows, kWidth, nullptr, 0, 30, pool).ok());
    SecondMoments part(kWidth, false);
    ASSERT_TRUE(part.Add(rows, kWidth, nullptr, 0, 30, pool).ok());
    merged.Merge(part);
  }
  EXPECT_EQ(whole.sums(), merged.sums());
  EXPECT_EQ(whole.minima(), merged.minima());
  EXPECT_EQ(whole.maxima(), merged.maxima());
  for (int64_t c = 0; c < kWidth; ++c) {
    float lowest = kInfinity;
    for (int64_t t = 0; t < 90; ++t) lowest = std::min(lowest, x[t * kWidth + c]);
    EXPECT_EQ(merged.minima()[c], lowest);
  }
}

TEST(SecondMomentsTest, RowsMayLieApart) {
  constexpr int64_t kWidth = 4;
  constexpr int64_t kStride = 7;
  ThreadPool pool(2);
  const std::vector<float> dense = Rows(40, kWidth, 7, 1.0f);
  std::vector<float> apart(40 * kStride, std::numeric_limits<float>::quiet_NaN());
  for (int64_t t = 0; t < 40; ++t) {
    std::copy_n(dense.begin() + t * kWidth, kWidth, apart.begin() + t * kStride);
  }
  SecondMoments a(kWidth, true);
  SecondMoments b(kWidth, true);
  ASSERT_TRUE(a.Add(dense.data(), kWidth, dense.data(), kWidth, 40, pool).ok());
  ASSERT_TRUE(b.Add(apart.data(), kStride, apart.data(), kStride, 40, pool).ok());
  EXPECT_EQ(a.sums(), b.sums());
  EXPECT_EQ(a.TargetShift(false), std::vector<double>(kWidth * kWidth, 0.0));
}

TEST(SecondMomentsTest, NonFiniteInputIsNamedAndLeavesTheSumsAlone) {
  ThreadPool pool(3);
  std::vector<float> x = Rows(600, 10, 8, 0.0f);
  SecondMoments moments(10, false);
  ASSERT_TRUE(moments.Add(x.data(), 10, nullptr, 0, 600, pool).ok());
  const std::vector<double> before(moments.sums().begin(), moments.sums().end());
  x[555 * 10 + 2] = kInfinity;
  x[550 * 10 + 7] = std::numeric_limits<float>::quiet_NaN();
  const absl::Status status = moments.Add(x.data(), 10, nullptr, 0, 600, pool);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_NE(status.message().find("input row 550, channel 7"), absl::string_view::npos) << status;
  EXPECT_EQ(std::vector<double>(moments.sums().begin(), moments.sums().end()), before);
  SecondMoments paired(10, true);
  const std::vector<float> good(6000, 0.0f);
  const absl::Status target = paired.Add(good.data(), 10, x.data(), 10, 600, pool);
  EXPECT_NE(target.message().find("target row 550, channel 7"), absl::string_view::npos) << target;
}

TEST(SecondMomentsTest, NothingAddedIsZero) {
  ThreadPool pool(2);
  SecondMoments moments(3, true);
  ASSERT_TRUE(moments.Add(nullptr, 3, nullptr, 3, 0, pool).ok());
  EXPECT_EQ(moments.count(), 0);
  EXPECT_EQ(moments.Mean(), std::vector<double>(3, 0.0));
  EXPECT_EQ(moments.Hessian(true), std::vector<double>(9, 0.0));
  EXPECT_EQ(moments.TargetShift(true), std::vector<double>(9, 0.0));
  EXPECT_EQ(moments.minima()[0], kInfinity);
  SecondMoments none(0, false);
  const float x = 0.0f;
  ASSERT_TRUE(none.Add(&x, 0, nullptr, 0, 5, pool).ok());
  EXPECT_EQ(none.count(), 5);
  EXPECT_TRUE(none.Hessian(true).empty());
}

}  // namespace
}  // namespace thinwire
