#include "kernels/linear/linear.h"

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/convert/convert.h"
#include "kernels/linear/blas.h"
#include "kernels/testing/cpu_targets.h"
#include "kernels/testing/rounded.h"

namespace thinwire {
namespace {

// A matrix whose rows lie `gap` elements apart; the gaps hold NaN.
struct Matrix {
  Matrix(DType dtype, int64_t rows, int64_t columns, int64_t gap, std::mt19937& random)
      : dtype(dtype), rows(rows), columns(columns), stride(columns + gap) {
    std::uniform_real_distribution<float> uniform(-1.0f, 1.0f);
    std::vector<float> values(static_cast<size_t>(rows * stride),
                              std::numeric_limits<float>::quiet_NaN());
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t c = 0; c < columns; ++c) values[r * stride + c] = uniform(random);
    }
    bytes.resize(static_cast<size_t>(DTypeBytes(dtype, rows * stride)));
    ConvertFromFloat(values.data(), bytes.data(), dtype, rows * stride);
  }

  TensorView view() { return TensorView(bytes.data(), dtype, {rows, stride}).Columns(0, columns); }

  // All of it, gaps included, as fp32.
  std::vector<float> Floats() const {
    std::vector<float> values(static_cast<size_t>(rows * stride));
    ConvertToFloat(bytes.data(), dtype, values.data(), rows * stride);
    return values;
  }

  DType dtype;
  int64_t rows, columns, stride;
  std::vector<uint8_t> bytes;
};

struct Case {
  int64_t num_tokens, out, in;
  DType x_dtype, weight_dtype;
  bool bias;
  int64_t x_gap, y_gap;
};

// Half of a dtype's smallest step.
double HalfSubnormal(DType dtype) { return dtype == DType::kF16 ? 0x1p-25 : 0x1p-127; }

void ExpectMatchesReference(const Case& c, int num_threads, const std::string& where) {
  std::mt19937 random(static_cast<uint32_t>(c.num_tokens * 1000003 + c.out * 1009 + c.in));
  Matrix x(c.x_dtype, c.num_tokens, c.in, c.x_gap, random);
  Matrix weight(c.weight_dtype, c.out, c.in, 0, random);
  Matrix bias(DType::kF32, 1, c.out, 0, random);
  Matrix y(c.x_dtype, c.num_tokens, c.out, c.y_gap, random);
  LinearArgs args;
  args.x = x.view();
  args.weight = weight.view();
  if (c.bias) args.bias = ConstTensorView(bias.bytes.data(), DType::kF32, {c.out});
  args.y = y.view();
  ThreadPool pool(num_threads);
  Stream stream = Stream::Cpu(&pool);
  const absl::Status status = Linear(args, stream);
  ASSERT_TRUE(status.ok()) << status;

  // The sums, and the sums of absolute values, both unrounded but for the storage as fp32.
  std::vector<float> sums(static_cast<size_t>(c.num_tokens * c.out));
  std::vector<float> sums_abs(sums.size());
  LinearArgs reference = args;
  reference.y = TensorView(sums.data(), DType::kF32, {c.num_tokens, c.out});
  ASSERT_TRUE(LinearReference(reference).ok());
  std::vector<float> x_abs = x.Floats(), weight_abs = weight.Floats(), bias_abs = bias.Floats();
  for (auto* values : {&x_abs, &weight_abs, &bias_abs}) {
    for (float& value : *values) value = std::abs(value);
  }
  reference.x = TensorView(x_abs.data(), DType::kF32, {c.num_tokens, x.stride}).Columns(0, c.in);
  reference.weight = ConstTensorView(weight_abs.data(), DType::kF32, {c.out, c.in});
  if (c.bias) reference.bias = ConstTensorView(bias_abs.data(), DType::kF32, {c.out});
  reference.y = TensorView(sums_abs.data(), DType::kF32, {c.num_tokens, c.out});
  ASSERT_TRUE(LinearReference(reference).ok());

  const std::vector<float> found = y.Floats();
  for (int64_t t = 0; t < c.num_tokens; ++t) {
    for (int64_t o = 0; o < y.stride; ++o) {
      const float value = found[t * y.stride + o];
      if (o >= c.out) {
        ASSERT_TRUE(std::isnan(value)) << "gap of y overwritten at " << t << ", " << o;
        continue;
      }
      const auto expected = static_cast<double>(sums[t * c.out + o]);
      const auto magnitude = static_cast<double>(sums_abs[t * c.out + o]);
      // A sum of `in` products and the bias in any order, within (in + 1) u of the absolute sum to
      // first order; two more u for rounding the two references; then the rounding of y.
      const double sum_error = 1.001 * static_cast<double>(c.in + 3) * 0x1p-24 * magnitude;
      const double bound = sum_error + UnitRoundoff(c.x_dtype) * (std::abs(expected) + sum_error) +
                           HalfSubnormal(c.x_dtype);
      ASSERT_NEAR(static_cast<double>(value), expected, bound)
          << where << ": token " << t << ", feature " << o << " of " << c.num_tokens << " x "
          << c.out << " x " << c.in << ", " << DTypeName(c.x_dtype) << " by "
          << DTypeName(c.weight_dtype) << ", " << num_threads << " threads";
    }
  }
}

constexpr DType kDTypes[] = {DType::kF32, DType::kF16, DType::kBF16};

TEST(LinearTest, AwkwardShapesOfAllTypesMatchTheReference) {
  int turn = 0;
  for (const int64_t num_tokens : {1, 2, 3, 5, 6, 7, 13, 65, 101}) {
    for (const int64_t out : {1, 2, 7, 53}) {
      for (const int64_t in : {1, 3, 31, 64, 97}) {
        for (const DType weight_dtype : kDTypes) {
          ++turn;  // mixes the other properties
          ExpectMatchesReference({num_tokens, out, in, kDTypes[turn % 3], weight_dtype,
                                  turn % 2 == 0, turn % 5, turn % 7},
                                 1 + turn % 3, "default target");
        }
      }
    }
  }
}

TEST(LinearTest, EveryInstructionSetMatchesTheReference) {
  ForEachCpuTarget([](absl::string_view target) {
    for (const int64_t num_tokens : {1, 2, 3, 4, 5, 6, 11}) {
      for (const DType dtype : kDTypes) {
        ExpectMatchesReference({num_tokens, 43, 75, dtype, dtype, true, 3, 1}, 2,
                               std::string(target));
      }
    }
  });
}

TEST(LinearTest, SeveralBlocksOfFeaturesAndTokensMatchTheReference) {
  ExpectMatchesReference({70, 300, 8192, DType::kF32, DType::kF16, true, 0, 0}, 1, "features");
  ExpectMatchesReference({70, 300, 8192, DType::kBF16, DType::kF32, false, 0, 0}, 2, "features");
  ExpectMatchesReference({1100, 70, 8, DType::kF16, DType::kBF16, true, 1, 1}, 2, "tokens");
  for (const int threads : {4, 7, 16}) {
    ExpectMatchesReference({301, 517, 160, DType::kF16, DType::kF16, true, 0, 0}, threads, "grid");
  }
}

TEST(LinearTest, ATokenOfAFewDoesNotDependOnTheOthersNorOnThreads) {
  std::mt19937 random(99);
  constexpr int64_t kMost = 64, kOut = 131, kIn = 203;
  for (const DType weight_dtype : kDTypes) {
    const int64_t most = weight_dtype == DType::kF32 ? 32 : kMost;
    Matrix x(DType::kF32, most, kIn, 0, random);
    Matrix weight(weight_dtype, kOut, kIn, 0, random);
    Matrix expected(DType::kF32, most, kOut, 0, random);
    ThreadPool one(1);
    Stream alone = Stream::Cpu(&one);
    for (int64_t t = 0; t < most; ++t) {
      ASSERT_TRUE(
          Linear({x.view().Rows(t, 1), weight.view(), {}, expected.view().Rows(t, 1)}, alone).ok());
    }
    for (int64_t count = 1; count <= most; ++count) {
      ThreadPool pool(1 + static_cast<int>(count % 4));
      Stream stream = Stream::Cpu(&pool);
      Matrix y(DType::kF32, count, kOut, 0, random);
      ASSERT_TRUE(
          Linear({x.view().Rows(most - count, count), weight.view(), {}, y.view()}, stream).ok());
      const TensorView last = expected.view().Rows(most - count, count);
      ASSERT_EQ(std::memcmp(y.bytes.data(), last.raw(), y.bytes.size()), 0) << count << " tokens";
    }
  }
}

TEST(LinearTest, BatchInvariantMeansAnyNumberOfTokensAndFeatures) {
  std::mt19937 random(100);
  constexpr int64_t kTokens = 150, kOut = 67, kIn = 203;
  ThreadPool pool(2);
  Stream stream = Stream::Cpu(&pool);
  for (const DType weight_dtype : kDTypes) {
    Matrix x(DType::kF32, kTokens, kIn, 0, random);
    Matrix weight(weight_dtype, kOut, kIn, 0, random);
    Matrix whole(DType::kF32, kTokens, kOut, 0, random), part(DType::kF32, 1, 5, 0, random);
    ASSERT_TRUE(
        Linear({.x = x.view(), .weight = weight.view(), .y = whole.view(), .batch_invariant = true},
               stream)
            .ok());
    for (const int64_t t : {int64_t{0}, int64_t{77}, kTokens - 1}) {
      ASSERT_TRUE(Linear({.x = x.view().Rows(t, 1),
                          .weight = ConstTensorView(weight.view()).Rows(31, 5),
                          .y = part.view(),
                          .batch_invariant = true},
                         stream)
                      .ok());
      const TensorView expected = whole.view().Rows(t, 1).Columns(31, 5);
      EXPECT_EQ(std::memcmp(part.bytes.data(), expected.raw(), part.bytes.size()), 0);
    }
  }
}

TEST(LinearTest, NoTokensIsNoWork) {
  std::mt19937 random(1);
  Matrix weight(DType::kF16, 4, 8, 0, random);
  ThreadPool pool(1);
  Stream stream = Stream::Cpu(&pool);
  EXPECT_TRUE(Linear({ConstTensorView(nullptr, DType::kF32, {0, 8}),
                      weight.view(),
                      {},
                      TensorView(nullptr, DType::kF32, {0, 4})},
                     stream)
                  .ok());
}

TEST(LinearTest, ArgumentsThatDoNotFitAreNamed) {
  std::mt19937 random(1);
  Matrix x(DType::kF32, 2, 8, 0, random), weight(DType::kF16, 4, 8, 0, random);
  Matrix y(DType::kF32, 2, 4, 0, random), narrow(DType::kF32, 2, 7, 0, random);
  Matrix half(DType::kF16, 2, 4, 0, random), bias(DType::kF16, 1, 4, 0, random);
  ThreadPool pool(1);
  Stream stream = Stream::Cpu(&pool);
  const auto expect_named = [&](const LinearArgs& args, absl::string_view name) {
    const absl::Status status = Linear(args, stream);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_NE(status.message().find(name), absl::string_view::npos) << status;
  };
  expect_named({narrow.view(), weight.view(), {}, y.view()}, "fp32[2, 7]");
  expect_named({x.view(), weight.view(), {}, narrow.view()}, "fp32[2, 7]");
  expect_named({x.view(), weight.view(), {}, half.view()}, "fp16[2, 4]");
  expect_named(
      {x.view(), weight.view(), ConstTensorView(bias.bytes.data(), DType::kF16, {4}), y.view()},
      "bias fp16[4]");
  expect_named({x.view(), weight.view().Columns(0, 8).Rows(0, 3), {}, y.view()}, "fp16[3, 8]");
  expect_named({x.view(),
                ConstTensorView(weight.bytes.data(), DType::kF16, {4, 8}, Device::Cuda(0)),
                {},
                y.view()},
               "cuda:0");
}

TEST(BlasTest, TheLibraryNamesItselfAndMultipliesCorrectly) {
  EXPECT_NE(BlasDescription().find("OpenBLAS"), std::string::npos);
  const absl::Status status = BlasSelfTest();
  EXPECT_TRUE(status.ok()) << status;
}

TEST(BlasTest, TransposedAndDoubleProductsEqualPlainSums) {
  constexpr int64_t kM = 37;
  constexpr int64_t kN = 19;
  constexpr int64_t kK = 130;
  std::mt19937 random(5);
  std::uniform_int_distribution<int> uniform(-8, 8);  // so that all sums are exact
  std::vector<double> a(kM * kK);
  std::vector<double> b(kK * kN);
  for (double& value : a) value = uniform(random);
  for (double& value : b) value = uniform(random);
  std::vector<float> a_transposed(kK * kM);
  std::vector<double> b_transposed(kN * kK);
  std::vector<double> expected(kM * kN, 1.0);
  for (int64_t l = 0; l < kK; ++l) {
    for (int64_t i = 0; i < kM; ++i) {
      a_transposed[l * kM + i] = static_cast<float>(a[i * kK + l]);
      for (int64_t j = 0; j < kN; ++j) expected[i * kN + j] += a[i * kK + l] * b[l * kN + j];
    }
    for (int64_t j = 0; j < kN; ++j) b_transposed[j * kK + l] = b[l * kN + j];
  }
  const std::vector<float> b_single(b.begin(), b.end());
  std::vector<float> single(kM * kN, 1.0f);
  SgemmTN(kM, kN, kK, a_transposed.data(), kM, b_single.data(), kN, 1.0f, single.data(), kN);
  EXPECT_EQ(std::vector<double>(single.begin(), single.end()), expected);
  std::vector<double> c(kM * kN, 1.0);
  DgemmNN(kM, kN, kK, a.data(), kK, b.data(), kN, 1.0, c.data(), kN);
  EXPECT_EQ(c, expected);
  c.assign(kM * kN, 1.0);
  DgemmNT(kM, kN, kK, a.data(), kK, b_transposed.data(), kK, 1.0, c.data(), kN);
  EXPECT_EQ(c, expected);
}

TEST(BlasTest, CholeskyFactorsAndInvertsLowerTriangles) {
  // L = {{2, 0}, {1, 3}}; the upper triangles hold what must not be read or written.
  double a[] = {4.0, 77.0, 2.0, 10.0};
  EXPECT_EQ(CholeskyFactor(2, a), -1);
  EXPECT_EQ(std::vector<double>(a, a + 4), (std::vector<double>{2.0, 77.0, 1.0, 3.0}));
  double l[] = {2.0, 77.0, 1.0, 4.0};
  InvertLowerTriangle(2, l);
  EXPECT_EQ(std::vector<double>(l, l + 4), (std::vector<double>{0.5, 77.0, -0.125, 0.25}));
  double indefinite[] = {1.0, 0.0, 2.0, 1.0};
  EXPECT_EQ(CholeskyFactor(2, indefinite), 1);
  EXPECT_EQ(CholeskyFactor(0, nullptr), -1);
}

}  // namespace
}  // namespace thinwire
