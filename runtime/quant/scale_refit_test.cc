#include "runtime/quant/scale_refit.h"

#include <algorithm>
#include <cmath>
#include <random>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/core/float16.h"

namespace thinwire {
namespace {

constexpr int64_t kOut = 20;
constexpr int64_t kIn = 24;

struct Problem {
  std::vector<float> weights, hessian;
  GptqCodes codes;

  double Error(const GptqCodes& of) const {
    const std::vector<float> values = Dequantize(of);
    double sum = 0.0;
    for (int64_t row = 0; row < kOut; ++row) {
      for (int64_t i = 0; i < kIn; ++i) {
        for (int64_t j = 0; j < kIn; ++j) {
          sum += static_cast<double>(values[row * kIn + i] - weights[row * kIn + i]) *
                 static_cast<double>(hessian[i * kIn + j]) *
                 static_cast<double>(values[row * kIn + j] - weights[row * kIn + j]);
        }
      }
    }
    return sum;
  }

  std::vector<float> Slopes(const GptqCodes& of) const {
    const std::vector<float> values = Dequantize(of);
    std::vector<float> slopes(kOut * kIn, 0.0f);
    for (int64_t row = 0; row < kOut; ++row) {
      for (int64_t j = 0; j < kIn; ++j) {
        double sum = 0.0;
        for (int64_t i = 0; i < kIn; ++i) {
          sum += static_cast<double>(values[row * kIn + i] - weights[row * kIn + i]) *
                 static_cast<double>(hessian[i * kIn + j]);
        }
        slopes[row * kIn + j] = static_cast<float>(sum);
      }
    }
    return slopes;
  }
};

// Codes of a weight that is on their grid, apart from noise, with scales that are `off` of it.
Problem MakeProblem(float noise, float off) {
  Problem problem;
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  std::uniform_int_distribution<int> code(0, 15);
  problem.codes = {.out_features = kOut, .in_features = kIn, .bits = 4};
  problem.codes.group_offsets = {0, 5, 16, 24};
  problem.codes.codes.resize(kOut * kIn);
  for (uint8_t& value : problem.codes.codes) value = static_cast<uint8_t>(code(random));
  problem.codes.zeros.assign(kOut * 3, 7);
  problem.codes.scales.assign(kOut * 3, 0.25f);
  problem.weights = Dequantize(problem.codes);
  for (float& weight : problem.weights) weight += noise * normal(random);
  for (float& scale : problem.codes.scales) scale = ToFloat(ToHalf(0.25f * off));
  std::vector<float> x(2 * kIn * kIn);
  for (float& value : x) value = normal(random);
  problem.hessian.assign(kIn * kIn, 0.0f);
  for (int64_t t = 0; t < 2 * kIn; ++t) {
    for (int64_t i = 0; i < kIn; ++i) {
      for (int64_t j = 0; j < kIn; ++j) {
        problem.hessian[i * kIn + j] += x[t * kIn + i] * x[t * kIn + j];
      }
    }
  }
  return problem;
}

TEST(ScaleRefitTest, FindsTheScalesThatWeightsWereMadeWith) {
  Problem problem = MakeProblem(0.0f, 1.25f);
  ThreadPool pool(2);
  for (int i = 0; i < 3; ++i) {  // each leaves a thousandth: the ridge
    RefitScales(problem.Slopes(problem.codes), problem.hessian, problem.codes, pool);
  }
  for (const float scale : problem.codes.scales) EXPECT_NEAR(scale, 0.25f, 0x1p-12f);
}

TEST(ScaleRefitTest, NoOtherScaleNearbyIsBetter) {
  Problem problem = MakeProblem(0.2f, 1.1f);
  ThreadPool pool(3);
  const double before = problem.Error(problem.codes);
  for (int i = 0; i < 3; ++i) {
    RefitScales(problem.Slopes(problem.codes), problem.hessian, problem.codes, pool);
  }
  const double after = problem.Error(problem.codes);
  EXPECT_LT(after, before);
  for (size_t g = 0; g < problem.codes.scales.size(); ++g) {
    for (const float factor : {0.99f, 1.01f}) {
      GptqCodes moved = problem.codes;
      moved.scales[g] *= factor;
      EXPECT_GT(problem.Error(moved), after);
    }
    EXPECT_EQ(ToFloat(ToHalf(problem.codes.scales[g])), problem.codes.scales[g]);
  }
}

TEST(ScaleRefitTest, FarScalesAndEmptyGroupsStay) {
  Problem problem = MakeProblem(0.0f, 4.0f);
  ThreadPool pool(1);
  GptqCodes codes = problem.codes;
  RefitScales(problem.Slopes(codes), problem.hessian, codes, pool);
  EXPECT_EQ(codes.scales, problem.codes.scales);         // the best would be a quarter
  std::fill(codes.codes.begin(), codes.codes.end(), 7);  // all weights 0
  RefitScales(problem.Slopes(codes), problem.hessian, codes, pool);
  EXPECT_EQ(codes.scales, problem.codes.scales);
}

}  // namespace
}  // namespace thinwire
