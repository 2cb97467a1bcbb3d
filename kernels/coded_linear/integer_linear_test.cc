#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/coded_linear/coded_linear.h"
#include "kernels/coded_linear/coded_linear_cpu.h"
#include "kernels/coded_linear/random_weights.h"
#include "kernels/testing/cpu_targets.h"
#include "kernels/testing/rounded.h"

namespace thinwire {
namespace {

using ::testing::HasSubstr;

constexpr double kEps = 0x1p-24;  // half an ulp of fp32, relative

struct IntegerCase {
  int64_t num_tokens, out, in;
  int bits;
  int64_t group_size, segment_size;  // 0: ragged
  int max_zero;
  DType y_dtype = DType::kF32;
  bool gains = true, offset = true, bias = true;
  int64_t codes_gap = 0, y_gap = 0;
};

using IntegerWay = absl::Status (*)(const IntegerLinearArgs&, Stream&);

// What a call needs, and what it gives.
struct IntegerProblem {
  IntegerProblem(const IntegerCase& c, std::mt19937& random)
      : c(c),
        weights(c.out, c.in, c.bits, Offsets(c.in, c.group_size, random), c.max_zero, random),
        segments(Subdivided(weights.offsets, c.segment_size, random)) {
    std::uniform_real_distribution<float> uniform(-1.0f, 1.0f);
    for (int64_t i = 0; i < c.num_tokens * (c.in + c.codes_gap); ++i) {
      codes.push_back(static_cast<uint8_t>(random()));
    }
    // Small enough for results within fp16.
    for (size_t s = 1; s < segments.size(); ++s) steps.push_back(uniform(random) * 0x1p-12f);
    for (int64_t t = 0; t < c.num_tokens; ++t) gains.push_back(uniform(random));
    for (int64_t o = 0; o < c.out; ++o) {
      offsets.push_back(uniform(random) * 10.0f);
      biases.push_back(uniform(random));
    }
    args.codes = ConstTensorView(codes.data(), DType::kU8, {c.num_tokens, c.in + c.codes_gap})
                     .Columns(0, c.in);
    args.segment_offsets = segments;
    args.segment_step = steps;
    args.weights = &weights.coded;
    if (c.gains) args.gains = ConstTensorView(gains.data(), DType::kF32, {c.num_tokens});
    if (c.offset) args.offset = ConstTensorView(offsets.data(), DType::kF32, {c.out});
    if (c.bias) args.bias = ConstTensorView(biases.data(), DType::kF32, {c.out});
  }

  // y, gaps of NaN included.
  std::vector<float> Run(IntegerWay way, int num_threads) {
    const int64_t stride = c.out + c.y_gap;
    Tensor y = RoundedTensor(std::vector<float>(static_cast<size_t>(c.num_tokens * stride),
                                                std::numeric_limits<float>::quiet_NaN()),
                             c.y_dtype, c.num_tokens, stride);
    args.y = y.mutable_view().Columns(0, c.out);
    ThreadPool pool(num_threads);
    Stream stream = Stream::Cpu(&pool);
    const absl::Status status = way(args, stream);
    EXPECT_TRUE(status.ok()) << status;
    return Floats(y);
  }

  IntegerCase c;
  Weights weights;
  std::vector<int32_t> segments;
  std::vector<float> steps, gains, offsets, biases;
  std::vector<uint8_t> codes;
  IntegerLinearArgs args;
};

void ExpectMatchesReference(const IntegerCase& c, IntegerWay way, int num_threads) {
  SCOPED_TRACE(testing::Message() << c.num_tokens << " x " << c.out << " x " << c.in << ", "
                                  << c.bits << " bits, groups " << c.group_size << ", segments "
                                  << c.segment_size << ", zeros to " << c.max_zero);
  std::mt19937 random(static_cast<uint32_t>(c.num_tokens * 7919 + c.out * 31 + c.in));
  IntegerProblem problem(c, random);
  const std::vector<float> found = problem.Run(way, num_threads);
  Tensor reference = RoundedTensor(std::vector<float>(static_cast<size_t>(c.num_tokens * c.out)),
                                   DType::kF32, c.num_tokens, c.out);
  problem.args.y = reference.mutable_view();
  ASSERT_TRUE(IntegerLinearReference(problem.args).ok());
  const std::vector<float> expected = Floats(reference);
  const auto num_segments = static_cast<double>(problem.steps.size());
  for (int64_t t = 0; t < c.num_tokens; ++t) {
    const uint8_t* codes = problem.codes.data() + t * (c.in + c.codes_gap);
    for (int64_t o = 0; o < c.out + c.y_gap; ++o) {
      const float value = found[t * (c.out + c.y_gap) + o];
      if (o >= c.out) {
        ASSERT_TRUE(std::isnan(value)) << "gap of y overwritten at " << t << ", " << o;
        continue;
      }
      double magnitude = c.offset ? std::fabs(problem.offsets[o]) : 0.0;
      for (size_t s = 0; s < problem.steps.size(); ++s) {
        const int64_t g =
            o * problem.weights.num_groups + problem.weights.Group(problem.segments[s]);
        int64_t isum = 0;
        for (int64_t i = problem.segments[s]; i < problem.segments[s + 1]; ++i) {
          isum += codes[i] * (problem.weights.codes[o * c.in + i] - problem.weights.zeros[g]);
        }
        magnitude +=
            std::fabs(static_cast<double>(problem.steps[s]) *
                      static_cast<double>(problem.weights.scales[g]) * static_cast<double>(isum));
      }
      const double gain = c.gains ? std::fabs(problem.gains[t]) : 1.0;
      const double bias = c.bias ? std::fabs(problem.biases[o]) : 0.0;
      // An integer and a factor are rounded, the product is added: a chain as long as there are
      // segments. Then offset, gain and bias, each rounded at most once; the reference is rounded
      // to fp32, y to its dtype.
      const double want = expected[t * c.out + o];
      const double error = 1.001 * kEps * ((num_segments + 6) * gain * magnitude + 2 * bias) +
                           kEps * std::fabs(want);
      const double bound = error + UnitRoundoff(c.y_dtype) * (std::fabs(want) + error) + 0x1p-25;
      ASSERT_NEAR(static_cast<double>(value), want, bound) << "token " << t << ", feature " << o;
    }
  }
}

constexpr IntegerWay kIntegerWays[] = {IntegerLinear, IntegerLinearFewTokens,
                                       IntegerLinearManyTokens};

TEST(IntegerLinearTest, AwkwardShapesMatchTheReference) {
  int turn = 0;
  for (const int64_t num_tokens : {1, 2, 3, 4, 5, 33}) {
    for (const int64_t out : {1, 16, 53, 130}) {
      for (const int64_t in : {1, 16, 31, 97, 259}) {
        for (const int bits : {3, 4, 8}) {
          ++turn;  // mixes the other properties
          const int64_t sizes[] = {16, 128, 0, 24};
          ExpectMatchesReference({num_tokens, out, in, bits, sizes[turn % 4], sizes[turn / 4 % 4],
                                  turn % 5 == 0 ? 255 : (1 << bits) - 1, kFloatDTypes[turn % 3],
                                  turn % 2 == 0, turn % 3 != 0, turn % 7 != 0, turn % 3, turn % 4},
                                 kIntegerWays[turn % 3], 1 + turn % 3);
        }
      }
    }
  }
}

TEST(IntegerLinearTest, EveryInstructionSetMatchesTheReference) {
  ForEachCpuTarget([](absl::string_view target) {
    SCOPED_TRACE(std::string(target));
    for (const int64_t num_tokens : {1, 2, 3, 4, 9}) {
      for (const int bits : {3, 4, 8}) {
        for (const int max_zero : {(1 << bits) - 1, 255}) {
          for (const IntegerWay way : {IntegerLinearFewTokens, IntegerLinearManyTokens}) {
            for (const DType dtype : kFloatDTypes) {
              ExpectMatchesReference({num_tokens, 37, 211, bits, 0, 0, max_zero, dtype}, way, 1);
              ExpectMatchesReference({num_tokens, 64, 192, bits, 64, 32, max_zero, dtype}, way, 1);
            }
          }
        }
      }
    }
  });
}

TEST(IntegerLinearTest, LargeShapesMatchTheReference) {
  for (const IntegerWay way : {IntegerLinearFewTokens, IntegerLinearManyTokens}) {
    ExpectMatchesReference({300, 50, 2050, 4, 128, 0, 15}, way, 2);
    ExpectMatchesReference({5, 100, 2048, 3, 2048, 2048, 7}, way, 2);
    ExpectMatchesReference({5, 20, 2050, 8, 0, 2048, 255, DType::kF16}, way, 2);
    ExpectMatchesReference({1300, 17, 600, 4, 600, 600, 15, DType::kBF16}, way, 3);
  }
}

// Scales, steps and gains of 1, or powers of two, and sums within 2^24: no rounding at all.
TEST(IntegerLinearTest, SumsOfIntegersAreExact) {
  ForEachCpuTarget([](absl::string_view target) {
    SCOPED_TRACE(std::string(target));
    std::mt19937 random(5);
    for (const int bits : {3, 4, 8}) {
      for (const int max_zero : {(1 << bits) - 1, 255}) {
        const int64_t in = max_zero == 255 ? 250 : 1000;
        Weights w(33, in, bits, Offsets(in, 0, random), max_zero, random);
        for (float& scale : w.scales) scale = 1.0f;
        // The largest products of all, too.
        std::fill(w.codes.begin(), w.codes.begin() + in, uint8_t{0});
        std::fill(w.zeros.begin(), w.zeros.begin() + w.num_groups, static_cast<uint8_t>(max_zero));
        std::fill(w.codes.begin() + in, w.codes.begin() + 2 * in,
                  static_cast<uint8_t>((1 << bits) - 1));
        std::fill(w.zeros.begin() + w.num_groups, w.zeros.begin() + 2 * w.num_groups, uint8_t{0});
        w.coded = w.Make(0, 33, bits);
        const std::vector<int32_t> segments = Subdivided(w.offsets, 13, random);
        const std::vector<float> steps(segments.size() - 1, 1.0f);
        constexpr int64_t kTokens = 7;
        std::vector<uint8_t> codes(static_cast<size_t>(kTokens * in), 255);
        for (size_t i = static_cast<size_t>(in); i < codes.size(); ++i) {
          codes[i] = static_cast<uint8_t>(random());
        }
        for (const IntegerWay way : {IntegerLinearFewTokens, IntegerLinearManyTokens}) {
          std::vector<float> y(kTokens * 33);
          IntegerLinearArgs args;
          args.codes = ConstTensorView(codes.data(), DType::kU8, {kTokens, in});
          args.segment_offsets = segments;
          args.segment_step = steps;
          args.weights = &w.coded;
          args.y = TensorView(y.data(), DType::kF32, {kTokens, 33});
          ThreadPool pool(1);
          Stream stream = Stream::Cpu(&pool);
          ASSERT_TRUE(way(args, stream).ok());
          for (int64_t t = 0; t < kTokens; ++t) {
            for (int64_t o = 0; o < 33; ++o) {
              int64_t sum = 0;
              for (int64_t i = 0; i < in; ++i) {
                sum += codes[t * in + i] *
                       (w.codes[o * in + i] - w.zeros[o * w.num_groups + w.Group(i)]);
              }
              ASSERT_EQ(static_cast<int64_t>(y[t * 33 + o]), sum)
                  << bits << " bits, token " << t << ", feature " << o;
            }
          }
        }
      }
    }
  });
}

TEST(IntegerLinearTest, ATokenDoesNotDependOnOthersNorOnThreadsNorOnTheRowsBeside) {
  std::mt19937 random(77);
  for (const int bits : {3, 4, 8}) {
    IntegerProblem problem({70, 83, 700, bits, 128, 0, 15}, random);
    const std::vector<float> all = problem.Run(IntegerLinear, 2);
    EXPECT_EQ(problem.Run(IntegerLinearFewTokens, 1), all);
    EXPECT_EQ(problem.Run(IntegerLinearManyTokens, 3), all);
    const IntegerLinearArgs whole = problem.args;
    ThreadPool pool(2);
    Stream stream = Stream::Cpu(&pool);
    for (const int64_t count : {1, 2, 3, 4, 5, 17}) {
      for (const auto& [first, rows] : {std::pair<int64_t, int64_t>(0, 83), {7, 30}, {80, 3}}) {
        const CodedWeights part = problem.weights.Make(first, rows, bits);
        std::vector<float> y(static_cast<size_t>(count * rows));
        IntegerLinearArgs args = whole;
        args.codes = whole.codes.Rows(50, count);
        args.gains = whole.gains.Rows(50, count);
        args.weights = &part;
        args.offset = whole.offset.Rows(first, rows);
        args.bias = whole.bias.Rows(first, rows);
        args.y = TensorView(y.data(), DType::kF32, {count, rows});
        ASSERT_TRUE(IntegerLinear(args, stream).ok());
        for (int64_t t = 0; t < count; ++t) {
          for (int64_t o = 0; o < rows; ++o) {
            ASSERT_EQ(y[t * rows + o], all[(50 + t) * 83 + first + o]) << t << ", " << o;
          }
        }
      }
    }
  }
}

TEST(IntegerLinearTest, WrongArgumentsAreNamed) {
  std::mt19937 random(3);
  IntegerProblem problem({2, 5, 40, 4, 20, 10, 15}, random);
  std::vector<float> y(10);
  problem.args.y = TensorView(y.data(), DType::kF32, {2, 5});
  ThreadPool pool(1);
  Stream stream = Stream::Cpu(&pool);
  ASSERT_TRUE(IntegerLinear(problem.args, stream).ok());
  const auto message = [&](const IntegerLinearArgs& bad) {
    const absl::Status status = IntegerLinear(bad, stream);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_EQ(IntegerLinearReference(bad).code(), absl::StatusCode::kInvalidArgument);
    return std::string(status.message());
  };
  IntegerLinearArgs bad = problem.args;
  bad.weights = nullptr;
  EXPECT_THAT(message(bad), HasSubstr("no weights"));
  bad = problem.args;
  bad.codes = bad.codes.Columns(0, 39);
  EXPECT_THAT(message(bad), HasSubstr("found uint8[2, 39]"));
  bad = problem.args;
  bad.codes = ConstTensorView(problem.codes.data(), DType::kI8, {2, 40});
  EXPECT_THAT(message(bad), HasSubstr("found int8[2, 40]"));
  bad = problem.args;
  bad.y = TensorView(y.data(), DType::kF32, {2, 4});
  EXPECT_THAT(message(bad), HasSubstr("y fp32[2, 4]"));
  bad = problem.args;
  bad.gains = ConstTensorView(y.data(), DType::kF32, {3});
  EXPECT_THAT(message(bad), HasSubstr("gains fp32[2] on cpu, found fp32[3]"));
  bad = problem.args;
  bad.offset = ConstTensorView(y.data(), DType::kF32, {3});
  EXPECT_THAT(message(bad), HasSubstr("offset fp32[5]"));
  bad = problem.args;
  bad.segment_step = bad.segment_step.subspan(1);
  EXPECT_THAT(message(bad), HasSubstr("found 5 offsets and 3 steps"));
  bad = problem.args;
  const std::vector<int32_t> across = {0, 10, 30, 35, 40};
  bad.segment_offsets = across;
  EXPECT_THAT(message(bad), HasSubstr("found columns [10, 30) where a group is [0, 20)"));
  const std::vector<int32_t> descending = {0, 10, 10, 20, 40};
  bad.segment_offsets = descending;
  EXPECT_THAT(message(bad), HasSubstr("found columns [10, 10)"));
  const CodedWeights wide = CodedWeights::Allocate(1, 40000, 8, {0, 40000}, Device::Cpu()).value();
  const std::vector<int32_t> one = {0, 40000};
  std::vector<uint8_t> codes(40000);
  bad = IntegerLinearArgs();
  bad.codes = ConstTensorView(codes.data(), DType::kU8, {1, 40000});
  bad.segment_offsets = one;
  bad.segment_step = absl::MakeConstSpan(problem.steps).subspan(0, 1);
  bad.weights = &wide;
  bad.y = TensorView(y.data(), DType::kF32, {1, 1});
  EXPECT_THAT(message(bad), HasSubstr("segments of 1 to 33025 columns"));
}

TEST(IntegerLinearTest, NoTokensIsNoWork) {
  std::mt19937 random(3);
  const Weights w(5, 40, 4, {0, 40}, 15, random);
  const std::vector<int32_t> segments = {0, 40};
  const std::vector<float> steps = {1.0f};
  ThreadPool pool(1);
  Stream stream = Stream::Cpu(&pool);
  IntegerLinearArgs args;
  args.codes = ConstTensorView(nullptr, DType::kU8, {0, 40});
  args.segment_offsets = segments;
  args.segment_step = steps;
  args.weights = &w.coded;
  args.y = TensorView(nullptr, DType::kF32, {0, 5});
  EXPECT_TRUE(IntegerLinear(args, stream).ok());
}

}  // namespace
}  // namespace thinwire
