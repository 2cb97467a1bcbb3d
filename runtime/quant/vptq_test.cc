#include "runtime/quant/vptq.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/vptq_linear/byte_book.h"
#include "runtime/quant/vector_kmeans.h"

namespace thinwire {
namespace {

using ::testing::HasSubstr;

// Correlated inputs with some loud channels, and weights with heavy tails.
struct Problem {
  Problem(int64_t out_features, int64_t in_features, uint32_t seed)
      : out(out_features), in(in_features) {
    std::mt19937 random(seed);
    std::normal_distribution<double> normal(0.0, 1.0);
    const int64_t n = 2 * in;
    std::vector<double> x(static_cast<size_t>(n * in));
    for (int64_t t = 0; t < n; ++t) {
      const double common = normal(random);
      for (int64_t i = 0; i < in; ++i) {
        x[t * in + i] = (0.5 * common + normal(random)) * (i % 17 == 3 ? 20.0 : 1.0);
      }
    }
    hessian.assign(static_cast<size_t>(in * in), 0.0);
    for (int64_t t = 0; t < n; ++t) {
      for (int64_t i = 0; i < in; ++i) {
        for (int64_t j = 0; j < in; ++j) {
          hessian[i * in + j] += x[t * in + i] * x[t * in + j] / static_cast<double>(n);
        }
      }
    }
    for (int64_t k = 0; k < out * in; ++k) {
      const double value = normal(random);
      weights.push_back(static_cast<float>(0.02 * value * std::fabs(value)));
    }
  }

  VptqResult Solve(const VptqOptions& options, int threads = 2) const {
    ThreadPool pool(threads);
    return Vptq({out, in, weights, hessian}, options, pool).value();
  }

  double Error(const VptqCodes& codes) const {
    const std::vector<float> found = Dequantize(codes);
    double error = 0.0, whole = 0.0;
    for (int64_t o = 0; o < out; ++o) {
      for (int64_t i = 0; i < in; ++i) {
        for (int64_t j = 0; j < in; ++j) {
          const auto e = [&](int64_t c) {
            return double{found[o * in + c]} - double{weights[o * in + c]};
          };
          error += e(i) * hessian[i * in + j] * e(j);
          whole += double{weights[o * in + i]} * hessian[i * in + j] * double{weights[o * in + j]};
        }
      }
    }
    return error / whole;
  }

  int64_t out, in;
  std::vector<float> weights;
  std::vector<double> hessian;
};

TEST(VptqTest, TheErrorItReportsIsThatOfItsCodes) {
  for (const bool residual : {false, true}) {
    for (const VptqRecipe recipe : {VptqRecipe::kBest, VptqRecipe::kPublished}) {
      const Problem problem(70, 48, 1);
      const VptqResult result = problem.Solve({.length = 4,
                                               .index_bits = 5,
                                               .residual = residual,
                                               .residual_bits = 3,
                                               .recipe = recipe});
      // Sums in fp32 of 48 terms, and errors that are differences of rounded numbers.
      EXPECT_NEAR(result.relative_error, problem.Error(result.codes), 1e-3 * result.relative_error);
      EXPECT_LT(result.relative_error, 0.5);
    }
  }
}

TEST(VptqTest, GroupsAndOutliersHaveBooksOfTheirOwn) {
  const Problem problem(70, 50, 6);  // 7 percent are 4 columns, and 2 more for 4 equal groups
  for (const VptqRecipe recipe : {VptqRecipe::kBest, VptqRecipe::kPublished}) {
    const VptqResult result = problem.Solve({.length = 6,
                                             .index_bits = 4,
                                             .residual = true,
                                             .residual_bits = 2,
                                             .num_groups = 4,
                                             .outlier_percent = 7,
                                             .outlier_length = 4,
                                             .outlier_bits = 7,
                                             .recipe = recipe});
    const VptqCodes& codes = result.codes;
    EXPECT_EQ(codes.outlier_size, 6);
    EXPECT_EQ(codes.group_size(), 11);
    EXPECT_EQ(codes.indices.size(), 12u * 44);
    EXPECT_EQ(codes.outlier_indices.size(), 18u * 6);
    EXPECT_EQ(codes.centroids.size(), 4u * 16 * 6);
    EXPECT_EQ(codes.residual_centroids.size(), 4u * 4 * 6);
    EXPECT_EQ(codes.outlier_centroids.size(), 128u * 4);
    EXPECT_THAT(codes.order, ::testing::UnorderedElementsAreArray([] {
                  std::vector<int32_t> all(50);
                  std::iota(all.begin(), all.end(), 0);
                  return all;
                }()));
    if (recipe == VptqRecipe::kBest) {  // the loud ones are outliers, the others where they were
      for (const int32_t loud : {3, 20, 37}) {
        EXPECT_THAT(std::vector<int32_t>(codes.order.begin(), codes.order.begin() + 6),
                    ::testing::Contains(loud));
      }
      EXPECT_TRUE(std::is_sorted(codes.order.begin() + 6, codes.order.end()));
    }
    EXPECT_NEAR(result.relative_error, problem.Error(codes), 1e-3 * result.relative_error);
  }
}

TEST(VptqTest, ByteBooksCostLittle) {
  const Problem problem(130, 96, 8);
  VptqOptions options = {.length = 4,
                         .index_bits = 6,
                         .residual = true,
                         .residual_bits = 3,
                         .num_groups = 2,
                         .outlier_percent = 3,
                         .outlier_length = 2,
                         .outlier_bits = 6};
  const double error = problem.Solve(options).relative_error;
  options.byte_books = true;
  const VptqResult result = problem.Solve(options);
  EXPECT_TRUE(result.codes.byte_books);
  const auto expect_bytes = [](const std::vector<float>& books, int64_t count, int length) {
    const auto size = static_cast<int64_t>(books.size()) / count;
    for (int64_t g = 0; g < count; ++g) {
      const ConstTensorView book(books.data() + g * size, DType::kF32, {size / length, length});
      EXPECT_TRUE(AsByteBook(book, length).has_value());
    }
  };
  expect_bytes(result.codes.centroids, 2, 4);
  expect_bytes(result.codes.residual_centroids, 2, 4);
  expect_bytes(result.codes.outlier_centroids, 1, 2);
  EXPECT_NEAR(result.relative_error, problem.Error(result.codes), 1e-3 * result.relative_error);
  // A step is a 30th of a deviation, its square over 12 a few percent of what these books leave.
  EXPECT_LT(result.relative_error, 1.1 * error);
}

TEST(VptqTest, MoreBooksLowerTheError) {
  const Problem problem(128, 96, 7);
  const VptqOptions plain = {.length = 4, .index_bits = 4};
  VptqOptions groups = plain, outliers = plain;
  groups.num_groups = 4;
  outliers.outlier_percent = 6;
  outliers.outlier_length = 2;
  outliers.outlier_bits = 8;
  const double error = problem.Solve(plain).relative_error;
  EXPECT_TRUE(problem.Solve(plain).codes.order.empty());
  EXPECT_TRUE(problem.Solve(groups).codes.order.empty());
  EXPECT_LT(problem.Solve(groups).relative_error, 0.95 * error);
  EXPECT_LT(problem.Solve(outliers).relative_error, 0.7 * error);
}

TEST(VptqTest, EachStepLowersTheError) {
  const Problem problem(128, 96, 2);
  const VptqOptions plain = {
      .length = 4, .index_bits = 6, .refits = 0, .sweeps = 0, .damping = 0.01};
  const auto error = [&](auto change) {
    VptqOptions options = plain;
    change(options);
    return problem.Solve(options).relative_error;
  };
  const double published =
      error([](VptqOptions& options) { options.recipe = VptqRecipe::kPublished; });
  const double once = error([](VptqOptions&) {});
  const double swept = error([](VptqOptions& options) { options.sweeps = 4; });
  const double more = error([](VptqOptions& options) {
    options.residual = true;
    options.residual_bits = 4;
  });
  const double unscaled = error([](VptqOptions& options) { options.scaled_hessian = false; });
  const double open = error([](VptqOptions& options) { options.feedback = false; });
  EXPECT_LT(once, 0.9 * published);
  EXPECT_LT(once, unscaled);
  EXPECT_LT(once, 0.9 * open);
  EXPECT_LT(swept, once);
  EXPECT_LT(more, 0.7 * once);
}

TEST(VptqTest, ResultsDependOnTheSeedAndNotOnTheThreads) {
  const Problem problem(300, 40, 3);
  const VptqOptions options = {
      .length = 6, .index_bits = 6, .residual = true, .residual_bits = 2, .seed = 5};
  const VptqCodes one = problem.Solve(options, 1).codes;
  const VptqCodes three = problem.Solve(options, 3).codes;
  EXPECT_EQ(one.indices, three.indices);
  EXPECT_EQ(one.residuals, three.residuals);
  EXPECT_EQ(one.centroids, three.centroids);
  VptqOptions other = options;
  other.seed = 6;
  EXPECT_NE(problem.Solve(other).codes.centroids, one.centroids);
}

TEST(VptqTest, DeadAndConstantColumnsAreNoTrouble) {
  Problem problem(20, 12, 4);
  for (int64_t i = 0; i < 12; ++i) problem.hessian[5 * 12 + i] = problem.hessian[i * 12 + 5] = 0.0;
  for (int64_t o = 0; o < 20; ++o) problem.weights[o * 12 + 7] = 0.25f;
  const VptqResult result = problem.Solve({.length = 8, .index_bits = 4});
  for (const float value : Dequantize(result.codes)) EXPECT_TRUE(std::isfinite(value));
  EXPECT_LT(result.relative_error, 1.0);
}

TEST(VptqTest, WhatCannotBeQuantisedIsNamed) {
  Problem problem(8, 4, 5);
  ThreadPool pool(1);
  problem.weights[2 * 4 + 1] = NAN;
  const auto status =
      Vptq({8, 4, problem.weights, problem.hessian}, {.length = 4, .index_bits = 1}, pool).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("output 2, input 1"));
  problem.weights[2 * 4 + 1] = 0.0f;
  const auto unequal = Vptq({8, 4, problem.weights, problem.hessian},
                            {.length = 4, .index_bits = 1, .num_groups = 3}, pool)
                           .status();
  EXPECT_EQ(unequal.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(unequal.message()), HasSubstr("3 equal groups, found 4"));
}

TEST(VectorKMeansTest, FindsClustersThatAreThere) {
  std::mt19937 random(7);
  std::normal_distribution<float> normal(0.0f, 0.01f);
  std::vector<float> vectors;
  for (int i = 0; i < 600; ++i) {
    vectors.push_back(static_cast<float>(i % 3) + normal(random));
    vectors.push_back(static_cast<float>(i % 2) + normal(random));
  }
  const std::vector<float> weights(600, 1.0f);
  ThreadPool pool(2);
  const std::vector<float> centroids = VectorKMeans({.vectors = vectors,
                                                     .weights = weights,
                                                     .length = 2,
                                                     .count = 6,
                                                     .iterations = 10,
                                                     .seed = 1},
                                                    pool);
  std::vector<bool> found(6, false);
  for (int c = 0; c < 6; ++c) {
    const auto x = static_cast<int>(std::lround(centroids[2 * c]));
    const auto y = static_cast<int>(std::lround(centroids[2 * c + 1]));
    EXPECT_NEAR(centroids[2 * c], x, 0.01);
    EXPECT_NEAR(centroids[2 * c + 1], y, 0.01);
    found[x * 2 + y] = true;
  }
  EXPECT_EQ(found, std::vector<bool>(6, true));
}

}  // namespace
}  // namespace thinwire
