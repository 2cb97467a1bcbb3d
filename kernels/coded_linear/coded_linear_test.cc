#include "kernels/coded_linear/coded_linear.h"

#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/coded_linear/coded_linear_cpu.h"
#include "kernels/coded_linear/random_weights.h"
#include "kernels/testing/cpu_targets.h"
#include "kernels/testing/rounded.h"

namespace thinwire {
namespace {

using ::testing::HasSubstr;

constexpr double kEps = 0x1p-24;  // half an ulp of fp32, relative

TEST(CodedWeightsTest, RowsComeBackAsTheDefinitionSays) {
  std::mt19937 random(1);
  for (const int bits : {3, 4, 8}) {
    for (const int64_t in : {1, 16, 37, 128, 300}) {
      for (const int64_t size : {0, 16, 128}) {
        const Weights w(35, in, bits, Offsets(in, size, random), 255, random);
        std::vector<float> row(static_cast<size_t>(in));
        std::vector<double> x(static_cast<size_t>(in));
        std::vector<double> y(35);
        for (double& value : x) value = static_cast<double>(random() % 1000) - 500.0;
        ASSERT_TRUE(w.coded.Multiply(x, absl::MakeSpan(y)).ok());
        for (int64_t o = 0; o < w.out; ++o) {
          w.coded.DequantizeRow(o, absl::MakeSpan(row));
          double sum = 0.0;
          for (int64_t i = 0; i < in; ++i) {
            const int64_t g = o * w.num_groups + w.Group(i);
            const float want = w.scales[g] * static_cast<float>(w.codes[o * in + i] - w.zeros[g]);
            ASSERT_EQ(row[i], want) << bits << " bits, row " << o << ", column " << i;
            sum += x[i] * static_cast<double>(want);
          }
          ASSERT_EQ(y[o], sum);  // exact: every product has at most 30 bits
        }
      }
    }
  }
}

TEST(CodedWeightsTest, TakesTheBitsOfItsCodesAndThreeBytesAGroup) {
  for (const int bits : {3, 4, 8}) {
    const CodedWeights weights =
        CodedWeights::Allocate(64, 1024, bits, {0, 128, 512, 1024}, Device::Cpu()).value();
    EXPECT_EQ(weights.size_bytes(), 64 * 1024 * bits / 8 + 64 * 3 * 3);
  }
}

TEST(CodedWeightsTest, WrongArgumentsAreNamed) {
  const auto message = [](int64_t in, int bits, std::vector<int32_t> offsets) {
    const auto weights = CodedWeights::Allocate(4, in, bits, std::move(offsets), Device::Cpu());
    EXPECT_EQ(weights.status().code(), absl::StatusCode::kInvalidArgument);
    return std::string(weights.status().message());
  };
  EXPECT_THAT(message(8, 5, {0, 8}), HasSubstr("found 5"));
  EXPECT_THAT(message(0, 4, {0}), HasSubstr("[4, 0]"));
  EXPECT_THAT(message(8, 4, {0, 7}), HasSubstr("from 0 to 7"));
  EXPECT_THAT(message(8, 4, {}), HasSubstr("found 0 offsets"));
  EXPECT_THAT(message(8, 4, {0, 4, 4, 8}), HasSubstr("found 4 before 4"));
  EXPECT_EQ(CodedWeights::Allocate(4, 8, 4, {0, 8}, Device::Cuda(0)).status().code(),
            absl::StatusCode::kUnimplemented);

  CodedWeights weights = CodedWeights::Allocate(2, 3, 4, {0, 3}, Device::Cpu()).value();
  std::vector<uint8_t> codes = {1, 2, 3, 4, 5, 6}, zeros = {1, 2};
  std::vector<float> scales = {1.0f, 2.0f};
  const auto set = [&](int64_t first, int64_t columns) {
    return weights.SetRows(first, ConstTensorView(codes.data(), DType::kU8, {2, columns}),
                           ConstTensorView(scales.data(), DType::kF32, {2, 1}),
                           ConstTensorView(zeros.data(), DType::kU8, {2, 1}));
  };
  EXPECT_TRUE(set(0, 3).ok());
  EXPECT_THAT(std::string(set(1, 3).message()), HasSubstr("rows [1, 3) of 2"));
  EXPECT_THAT(std::string(set(0, 2).message()), HasSubstr("codes uint8[2, 2]"));
  scales[1] = 65520.0f;  // rounds to infinity
  EXPECT_THAT(std::string(set(0, 3).message()), HasSubstr("row 1, group 0"));
  codes[1] = 16;
  EXPECT_THAT(std::string(set(0, 3).message()), HasSubstr("found 16 in row 0, column 1"));
}

struct FloatCase {
  int64_t num_tokens, out, in;
  int bits;
  int64_t group_size;
  int max_zero;
  DType dtype = DType::kF32;
  bool bias = true;
  int64_t x_gap = 0, y_gap = 0;
};

using FloatWay = absl::Status (*)(const CodedLinearArgs&, Stream&);

void ExpectMatchesReference(const FloatCase& c, FloatWay way, int num_threads) {
  SCOPED_TRACE(testing::Message() << c.num_tokens << " x " << c.out << " x " << c.in << ", "
                                  << c.bits << " bits, groups " << c.group_size << ", zeros to "
                                  << c.max_zero << ", " << std::string(DTypeName(c.dtype)));
  std::mt19937 random(static_cast<uint32_t>(c.num_tokens * 7919 + c.out * 31 + c.in));
  const Weights w(c.out, c.in, c.bits, Offsets(c.in, c.group_size, random), c.max_zero, random);
  std::normal_distribution<float> normal(0.0f, 1.0f);
  const int64_t x_stride = c.in + c.x_gap, y_stride = c.out + c.y_gap;
  std::vector<float> values(static_cast<size_t>(c.num_tokens * x_stride),
                            std::numeric_limits<float>::quiet_NaN());
  for (int64_t t = 0; t < c.num_tokens; ++t) {
    for (int64_t i = 0; i < c.in; ++i) values[t * x_stride + i] = normal(random);
  }
  const Tensor x = RoundedTensor(values, c.dtype, c.num_tokens, x_stride);
  const std::vector<float> rounded = Floats(x);
  std::vector<float> bias(static_cast<size_t>(c.out));
  for (float& value : bias) value = normal(random);
  Tensor y = RoundedTensor(std::vector<float>(static_cast<size_t>(c.num_tokens * y_stride),
                                              std::numeric_limits<float>::quiet_NaN()),
                           c.dtype, c.num_tokens, y_stride);
  CodedLinearArgs args;
  args.x = x.view().Columns(0, c.in);
  args.weights = &w.coded;
  if (c.bias) args.bias = ConstTensorView(bias.data(), DType::kF32, {c.out});
  args.y = y.mutable_view().Columns(0, c.out);
  ThreadPool pool(num_threads);
  Stream stream = Stream::Cpu(&pool);
  ASSERT_TRUE(way(args, stream).ok());
  const std::vector<float> found = Floats(y);
  ASSERT_TRUE(CodedLinearReference(args).ok());
  const std::vector<float> expected = Floats(y);
  const double middle = 1 << (c.bits - 1);
  for (int64_t t = 0; t < c.num_tokens; ++t) {
    for (int64_t o = 0; o < y_stride; ++o) {
      const double value = found[t * y_stride + o];
      if (o >= c.out) {
        ASSERT_TRUE(std::isnan(value)) << "gap of y overwritten at " << t << ", " << o;
        continue;
      }
      // Codes and zeros are multiplied apart, each less the middle of the codes' range.
      double magnitude = c.bias ? std::fabs(bias[o]) : 0.0;
      for (int64_t i = 0; i < c.in; ++i) {
        const int64_t g = o * w.num_groups + w.Group(i);
        magnitude += std::fabs(rounded[t * x_stride + i] * w.scales[g]) *
                     (std::fabs(w.codes[o * c.in + i] - middle) + std::fabs(w.zeros[g] - middle));
      }
      // Any order of summation has at most this many roundings in a chain: all columns, the groups'
      // ends, the bias.
      const double depth = static_cast<double>(c.in + 3 * w.num_groups + 4);
      const double want = expected[t * y_stride + o];
      const double error = 1.001 * kEps * depth * magnitude;
      const double bound = error + 2 * UnitRoundoff(c.dtype) * (std::fabs(want) + error) + 0x1p-24;
      ASSERT_NEAR(value, want, bound) << "token " << t << ", feature " << o;
    }
  }
}

TEST(CodedLinearTest, AwkwardShapesMatchTheReference) {
  const FloatWay ways[] = {CodedLinear, CodedLinearFewTokens, CodedLinearManyTokens};
  int turn = 0;
  for (const int64_t num_tokens : {1, 2, 3, 5, 6, 7, 33}) {
    for (const int64_t out : {1, 16, 53, 130}) {
      for (const int64_t in : {1, 16, 31, 97, 259}) {
        for (const int bits : {3, 4, 8}) {
          ++turn;  // mixes the other properties
          const int64_t sizes[] = {16, 128, 0, 24};
          ExpectMatchesReference(
              {num_tokens, out, in, bits, sizes[turn % 4], turn % 5 == 0 ? 255 : (1 << bits) - 1,
               kFloatDTypes[turn % 3], turn % 2 == 0, turn % 3, turn % 4},
              ways[turn % 3], 1 + turn % 3);
        }
      }
    }
  }
}

TEST(CodedLinearTest, EveryInstructionSetMatchesTheReference) {
  ForEachCpuTarget([](absl::string_view target) {
    SCOPED_TRACE(std::string(target));
    for (const int64_t num_tokens : {1, 2, 3, 4, 5, 6, 9}) {
      for (const int bits : {3, 4, 8}) {
        for (const FloatWay way : {CodedLinearFewTokens, CodedLinearManyTokens}) {
          for (const DType dtype : kFloatDTypes) {
            ExpectMatchesReference({num_tokens, 37, 211, bits, 0, 255, dtype}, way, 1);
            ExpectMatchesReference({num_tokens, 64, 192, bits, 64, 7, dtype}, way, 1);
          }
        }
      }
    }
  });
}

TEST(CodedLinearTest, LargeShapesMatchTheReference) {
  for (const FloatWay way : {CodedLinearFewTokens, CodedLinearManyTokens}) {
    ExpectMatchesReference({300, 50, 2050, 4, 128, 15}, way, 2);
    ExpectMatchesReference({5, 1030, 1024, 3, 2048, 7}, way, 2);
    ExpectMatchesReference({1100, 20, 64, 8, 0, 255, DType::kF16}, way, 3);
  }
}

TEST(CodedLinearTest, ATokenOfAFewDoesNotDependOnTheOthersNorOnThreads) {
  std::mt19937 random(99);
  constexpr int64_t kOut = 83, kIn = 300;
  const int64_t most = kFewFloatTokens;
  const Weights w(kOut, kIn, 4, Offsets(kIn, 0, random), 15, random);
  std::normal_distribution<float> normal(0.0f, 1.0f);
  std::vector<float> x(static_cast<size_t>(most * kIn));
  for (float& value : x) value = normal(random);
  std::vector<float> expected(static_cast<size_t>(most * kOut));
  const auto run = [&](int64_t first, int64_t count, float* y, int num_threads) {
    CodedLinearArgs args;
    args.x = ConstTensorView(x.data() + first * kIn, DType::kF32, {count, kIn});
    args.weights = &w.coded;
    args.y = TensorView(y, DType::kF32, {count, kOut});
    ThreadPool pool(num_threads);
    Stream stream = Stream::Cpu(&pool);
    ASSERT_TRUE(CodedLinear(args, stream).ok());
  };
  for (int64_t t = 0; t < most; ++t) run(t, 1, expected.data() + t * kOut, 1);
  for (int64_t count = 1; count <= most; ++count) {
    std::vector<float> y(static_cast<size_t>(count * kOut));
    run(most - count, count, y.data(), 1 + static_cast<int>(count % 3));
    ASSERT_EQ(
        std::memcmp(y.data(), expected.data() + (most - count) * kOut, y.size() * sizeof(float)), 0)
        << count << " tokens";
  }
}

TEST(CodedLinearTest, BatchInvariantMeansAnyNumberOfTokens) {
  std::mt19937 random(100);
  constexpr int64_t kOut = 83, kIn = 300, kTokens = 3 * kFewFloatTokens;
  const Weights w(kOut, kIn, 4, Offsets(kIn, 0, random), 15, random);
  std::normal_distribution<float> normal(0.0f, 1.0f);
  std::vector<float> x(static_cast<size_t>(kTokens * kIn));
  for (float& value : x) value = normal(random);
  std::vector<float> expected(kOut), y(static_cast<size_t>(kTokens * kOut));
  ThreadPool pool(2);
  Stream stream = Stream::Cpu(&pool);
  CodedLinearArgs args;
  args.weights = &w.coded;
  args.batch_invariant = true;
  args.x = ConstTensorView(x.data(), DType::kF32, {kTokens, kIn});
  args.y = TensorView(y.data(), DType::kF32, {kTokens, kOut});
  ASSERT_TRUE(CodedLinear(args, stream).ok());
  for (const int64_t t : {int64_t{0}, int64_t{50}, kTokens - 1}) {
    args.x = ConstTensorView(x.data() + t * kIn, DType::kF32, {1, kIn});
    args.y = TensorView(expected.data(), DType::kF32, {1, kOut});
    ASSERT_TRUE(CodedLinear(args, stream).ok());
    EXPECT_EQ(std::memcmp(y.data() + t * kOut, expected.data(), kOut * sizeof(float)), 0);
  }
}

TEST(CodedLinearTest, WrongArgumentsAreNamed) {
  std::mt19937 random(3);
  const Weights w(5, 40, 4, {0, 40}, 15, random);
  std::vector<float> x(80), y(10);
  CodedLinearArgs args;
  args.x = ConstTensorView(x.data(), DType::kF32, {2, 40});
  args.weights = &w.coded;
  args.y = TensorView(y.data(), DType::kF32, {2, 5});
  ThreadPool pool(1);
  Stream stream = Stream::Cpu(&pool);
  ASSERT_TRUE(CodedLinear(args, stream).ok());
  const auto message = [&](const CodedLinearArgs& bad) {
    const absl::Status status = CodedLinear(bad, stream);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_EQ(CodedLinearReference(bad).code(), absl::StatusCode::kInvalidArgument);
    return std::string(status.message());
  };
  CodedLinearArgs bad = args;
  bad.weights = nullptr;
  EXPECT_THAT(message(bad), HasSubstr("no weights"));
  bad = args;
  bad.x = bad.x.Columns(0, 39);
  EXPECT_THAT(message(bad), HasSubstr("found fp32[2, 39]"));
  bad = args;
  bad.x = ConstTensorView(x.data(), DType::kF16, {2, 40});
  EXPECT_THAT(message(bad), HasSubstr("x fp16[2, 40] and y fp32[2, 5]"));
  bad = args;
  bad.bias = ConstTensorView(x.data(), DType::kF32, {4});
  EXPECT_THAT(message(bad), HasSubstr("bias fp32[5]"));
  bad = args;
  bad.y = TensorView(y.data(), DType::kF32, {2, 5}, Device::Cuda(0));
  EXPECT_THAT(message(bad), HasSubstr("cuda:0"));
}

TEST(CodedLinearTest, NoTokensIsNoWork) {
  std::mt19937 random(3);
  const Weights w(5, 40, 4, {0, 40}, 15, random);
  ThreadPool pool(1);
  Stream stream = Stream::Cpu(&pool);
  CodedLinearArgs args;
  args.x = ConstTensorView(nullptr, DType::kF32, {0, 40});
  args.weights = &w.coded;
  args.y = TensorView(nullptr, DType::kF32, {0, 5});
  EXPECT_TRUE(CodedLinear(args, stream).ok());
}

}  // namespace
}  // namespace thinwire
