#include "kernels/codes/codes.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/core/tensor.h"
#include "kernels/testing/cpu_targets.h"
#include "kernels/testing/rounded.h"

namespace thinwire {
namespace {

using ::testing::HasSubstr;

constexpr double kEps = 0x1p-24;  // half an ulp of fp32, relative
constexpr GainKind kGains[] = {GainKind::kNone, GainKind::kRms, GainKind::kMax};

struct Case {
  DType dtype = DType::kF32;
  int64_t num_tokens = 1;
  int64_t width = 1;
  int64_t gap = 0;  // elements between rows of x, and bytes between rows of codes
  GainKind gain = GainKind::kNone;
  bool snap = false;
};

// Channels of unlike ranges, codes of 3, 4 and 8 bits, values beyond the ends.
struct Problem {
  Problem(const Case& c, std::mt19937& random) : c(c), stride(c.width + c.gap) {
    std::normal_distribution<float> normal(0.0f, 1.0f);
    std::vector<float> values;
    for (int64_t t = 0; t < c.num_tokens; ++t) {
      for (int64_t i = 0; i < stride; ++i) {
        values.push_back(i >= c.width ? std::numeric_limits<float>::quiet_NaN()
                                      : normal(random) * (i % 13 == 3 ? 40.0f : 1.0f));
      }
    }
    x = RoundedTensor(values, c.dtype, c.num_tokens, stride);
    for (int64_t i = 0; i < c.width; ++i) {
      const int bits = i % 3 == 0 ? 8 : i % 3 == 1 ? 4 : 3;
      max_code.push_back(static_cast<uint8_t>((1 << bits) - 1));
      const float range = (i % 13 == 3 ? 40.0f : 1.0f) * (2.0f + 0.1f * normal(random));
      step.push_back(2.0f * range / static_cast<float>(1 << bits));
      inverse_step.push_back(1.0f / step.back());
      zero.push_back(static_cast<float>(1 << (bits - 1)) + normal(random));
    }
    for (int i = 0; i < 256; ++i) snap.push_back(static_cast<uint8_t>(i / 16 * 17));
    codes.assign(static_cast<size_t>(c.num_tokens * stride), 77);
    gains.assign(static_cast<size_t>(c.num_tokens), -1.0f);
    args.x = x.view().Columns(0, c.width);
    args.inverse_step = Vector(inverse_step);
    args.zero = Vector(zero);
    args.max_code = ConstTensorView(max_code.data(), DType::kU8, {c.width});
    if (c.snap) args.snap = ConstTensorView(snap.data(), DType::kU8, {256});
    args.gain = c.gain;
    args.codes = TensorView(codes.data(), DType::kU8, {c.num_tokens, stride}).Columns(0, c.width);
    if (c.gain != GainKind::kNone) {
      args.gains = TensorView(gains.data(), DType::kF32, {c.num_tokens});
    }
  }

  static ConstTensorView Vector(const std::vector<float>& values) {
    return ConstTensorView(values.data(), DType::kF32, {static_cast<int64_t>(values.size())});
  }

  Case c;
  int64_t stride;
  Tensor x;
  std::vector<float> step, inverse_step, zero, gains;
  std::vector<uint8_t> max_code, snap, codes;
  QuantizeArgs args;
};

// Whether `code` is that of `value` before clamping, give or take `error`.
bool IsCode(int code, double value, double error, int max_code) {
  const auto bound = [&](double v) { return std::clamp(std::nearbyint(v), 0.0, double(max_code)); };
  return code >= bound(value - error) && code <= bound(value + error);
}

void ExpectMatchesReference(const Case& c, int num_threads) {
  SCOPED_TRACE(testing::Message() << std::string(DTypeName(c.dtype)) << "[" << c.num_tokens << ", "
                                  << c.width << "] gap " << c.gap << " gain "
                                  << static_cast<int>(c.gain) << " snap " << c.snap);
  std::mt19937 random(static_cast<uint32_t>(c.num_tokens * 7919 + c.width));
  Problem problem(c, random);
  ThreadPool pool(num_threads);
  Stream stream = Stream::Cpu(&pool);
  const absl::Status status = Quantize(problem.args, stream);
  ASSERT_TRUE(status.ok()) << status;
  const std::vector<uint8_t> codes = problem.codes;
  const std::vector<float> gains = problem.gains;
  ASSERT_TRUE(QuantizeReference(problem.args).ok());
  const std::vector<float> x = Floats(problem.x);
  int64_t num_different = 0;
  for (int64_t t = 0; t < c.num_tokens; ++t) {
    const double gain = c.gain == GainKind::kNone ? 1.0 : gains[t];
    if (c.gain != GainKind::kNone) {
      // The sum's roundings may carry the gain over the middle between two fp16 numbers.
      ASSERT_NEAR(gains[t], problem.gains[t], 1.01 * 0x1p-10 * problem.gains[t]);
      ASSERT_EQ(gains[t], ToFloat(ToHalf(gains[t])));
    }
    for (int64_t i = 0; i < problem.stride; ++i) {
      const int64_t at = t * problem.stride + i;
      if (i >= c.width) {
        ASSERT_EQ(codes[at], 77) << "gap overwritten at " << t << ", " << i;
        continue;
      }
      num_different += codes[at] != problem.codes[at];
      if (c.snap) continue;
      // x / step, 1 / gain, their product and the sum are each rounded once.
      const double u = static_cast<double>(x[at]) * problem.inverse_step[i] / gain;
      const double value = u + problem.zero[i];
      const double error = kEps * (3.01 * std::fabs(u) + 1.01 * std::fabs(value));
      ASSERT_TRUE(IsCode(codes[at], value, error, problem.max_code[i]))
          << int{codes[at]} << " for " << value << " at " << t << ", " << i;
    }
  }
  // Equal but for values that close to a half, and rows whose gain was.
  EXPECT_LE(num_different, c.gain == GainKind::kNone ? 1 + c.num_tokens * c.width / 10000
                                                     : c.width + c.num_tokens * c.width / 50);
}

TEST(QuantizeTest, AwkwardShapesMatchTheReferenceOnEveryTarget) {
  ForEachCpuTarget([](absl::string_view target) {
    SCOPED_TRACE(std::string(target));
    int turn = 0;
    for (const int64_t width : {1, 3, 16, 31, 64, 257, 2050}) {
      for (const DType dtype : kFloatDTypes) {
        for (const GainKind gain : kGains) {
          ++turn;
          ExpectMatchesReference({dtype, 1 + turn % 5, width, turn % 3, gain, turn % 4 == 0}, 1);
        }
      }
    }
  });
}

TEST(QuantizeTest, ThreadsSplitTokens) {
  for (const GainKind gain : kGains) {
    ExpectMatchesReference({DType::kF16, 300, 768, 0, gain, false}, 3);
  }
}

// One row of fp32, steps of 1, zeros of 0, codes up to 255.
std::vector<uint8_t> QuantizeRow(const std::vector<float>& x, GainKind gain, float* gain_found) {
  const auto width = static_cast<int64_t>(x.size());
  const std::vector<float> ones(x.size(), 1.0f), zeros(x.size());
  const std::vector<uint8_t> most(x.size(), 255);
  std::vector<uint8_t> codes(x.size());
  QuantizeArgs args;
  args.x = ConstTensorView(x.data(), DType::kF32, {1, width});
  args.inverse_step = Problem::Vector(ones);
  args.zero = Problem::Vector(zeros);
  args.max_code = ConstTensorView(most.data(), DType::kU8, {width});
  args.codes = TensorView(codes.data(), DType::kU8, {1, width});
  args.gain = gain;
  args.gains = TensorView(gain_found, DType::kF32, {1});
  ThreadPool pool(1);
  Stream stream = Stream::Cpu(&pool);
  EXPECT_TRUE(Quantize(args, stream).ok());
  return codes;
}

TEST(QuantizeTest, HalvesGoToEvenAndEndsAreClamped) {
  const float inf = std::numeric_limits<float>::infinity();
  ForEachCpuTarget([&](absl::string_view target) {
    float gain = 0.0f;
    EXPECT_EQ(QuantizeRow({0.5f, 1.5f, 2.5f, 253.5f, 254.5f, 255.5f, 1e30f, inf, -0.5f, -1e30f,
                           -inf, 254.50002f},
                          GainKind::kNone, &gain),
              (std::vector<uint8_t>{0, 2, 2, 254, 254, 255, 255, 255, 0, 0, 0, 255}))
        << target;
    EXPECT_EQ(gain, 1.0f);
  });
}

TEST(QuantizeTest, AwkwardGainsStayFinite) {
  ForEachCpuTarget([](absl::string_view target) {
    SCOPED_TRACE(std::string(target));
    for (const GainKind kind : {GainKind::kRms, GainKind::kMax}) {
      float gain = 0.0f;
      QuantizeRow({0.0f, 0.0f, -0.0f}, kind, &gain);
      EXPECT_EQ(gain, 1.0f);
      QuantizeRow({1e-30f, 1e-12f}, kind, &gain);
      EXPECT_EQ(gain, 1.0f);
      QuantizeRow({1e30f, -1e35f}, kind, &gain);
      EXPECT_EQ(gain, 65504.0f);
      QuantizeRow({381.0f, 381.0f}, kind, &gain);
      EXPECT_EQ(gain, kind == GainKind::kMax ? 381.0f / kMaxGainCodes : 381.0f);
      // No crash; what comes out is open.
      QuantizeRow({1.0f, std::numeric_limits<float>::quiet_NaN()}, kind, &gain);
    }
  });
}

TEST(QuantizeTest, GainsOfPartsMakeTheCodesOfTheWholeRow) {
  std::mt19937 random(11);
  ForEachCpuTarget([&](absl::string_view target) {
    SCOPED_TRACE(std::string(target));
    Problem problem({DType::kF32, 5, 90, 0, GainKind::kMax, false}, random);
    ThreadPool pool(2);
    Stream stream = Stream::Cpu(&pool);
    ASSERT_TRUE(Quantize(problem.args, stream).ok());
    const std::vector<uint8_t> whole = problem.codes;
    const float* const inverse_step = problem.args.inverse_step.data<float>();
    std::vector<float> gains(5, 0.0f);
    for (const auto& [begin, count] : {std::pair<int64_t, int64_t>{0, 37}, {37, 53}}) {
      std::vector<float> part(5);
      ASSERT_TRUE(MaxGains(problem.args.x.Columns(begin, count),
                           ConstTensorView(inverse_step + begin, DType::kF32, {count}),
                           TensorView(part.data(), DType::kF32, {5}), stream)
                      .ok());
      for (int t = 0; t < 5; ++t) gains[t] = std::max(gains[t], part[t]);
    }
    problem.args.gain = GainKind::kGiven;
    problem.args.gains = TensorView(gains.data(), DType::kF32, {5});
    ASSERT_TRUE(Quantize(problem.args, stream).ok());
    EXPECT_EQ(problem.codes, whole);
    // A part of zeros says nothing; a row of zeros has gain 1.
    const std::vector<float> zeros(90);
    ASSERT_TRUE(MaxGains(ConstTensorView(zeros.data(), DType::kF32, {1, 90}),
                         problem.args.inverse_step, TensorView(gains.data(), DType::kF32, {1}),
                         stream)
                    .ok());
    EXPECT_EQ(gains[0], 0.0f);
  });
}

TEST(QuantizeTest, SnapReplacesCodesLast) {
  std::mt19937 random(4);
  Problem problem({DType::kF32, 3, 70, 0, GainKind::kMax, false}, random);
  ThreadPool pool(1);
  Stream stream = Stream::Cpu(&pool);
  ASSERT_TRUE(Quantize(problem.args, stream).ok());
  std::vector<uint8_t> expected = problem.codes;
  for (uint8_t& code : expected) code = problem.snap[code];
  problem.args.snap = ConstTensorView(problem.snap.data(), DType::kU8, {256});
  ASSERT_TRUE(Quantize(problem.args, stream).ok());
  EXPECT_EQ(problem.codes, expected);
}

TEST(RoundToCodesTest, GivesWhatAReaderOfTheCodesSees) {
  ForEachCpuTarget([](absl::string_view target) {
    SCOPED_TRACE(std::string(target));
    for (const DType dtype : kFloatDTypes) {
      for (const int64_t width : {1, 16, 31, 257}) {
        std::mt19937 random(static_cast<uint32_t>(width));
        Problem problem({dtype, 5, width, 3}, random);
        ThreadPool pool(2);
        Stream stream = Stream::Cpu(&pool);
        ASSERT_TRUE(Quantize(problem.args, stream).ok());
        std::vector<float> expected = Floats(problem.x);
        for (int64_t t = 0; t < 5; ++t) {
          for (int64_t i = 0; i < width; ++i) {
            const int64_t at = t * problem.stride + i;
            expected[at] =
                problem.step[i] * (static_cast<float>(problem.codes[at]) - problem.zero[i]);
          }
        }
        expected = Floats(RoundedTensor(expected, dtype, 5, problem.stride));
        RoundToCodesArgs args;
        args.x = problem.x.mutable_view().Columns(0, width);
        args.step = Problem::Vector(problem.step);
        args.inverse_step = problem.args.inverse_step;
        args.zero = problem.args.zero;
        args.max_code = problem.args.max_code;
        ASSERT_TRUE(RoundToCodes(args, stream).ok());
        const std::vector<float> found = Floats(problem.x);
        ASSERT_TRUE(RoundToCodesReference(args).ok());
        const std::vector<float> reference = Floats(problem.x);
        for (size_t at = 0; at < found.size(); ++at) {
          const auto i = static_cast<int64_t>(at) % problem.stride;
          if (i >= width) {
            ASSERT_TRUE(std::isnan(found[at])) << "gap overwritten";
            continue;
          }
          ASSERT_EQ(found[at], expected[at]);
          // What is rounded already lies in the middle between two halves: it is its own image, up
          // to the roundings of code - zero, of the product and of the dtype.
          ASSERT_NEAR(reference[at], found[at],
                      2 * (UnitRoundoff(dtype) + 2 * kEps) * std::fabs(found[at]) + 1e-7);
        }
      }
    }
  });
}

TEST(QuantizeTest, WrongArgumentsAreNamed) {
  std::mt19937 random(2);
  Problem problem({DType::kF32, 2, 8, 0, GainKind::kRms, true}, random);
  ThreadPool pool(1);
  Stream stream = Stream::Cpu(&pool);
  ASSERT_TRUE(Quantize(problem.args, stream).ok());
  const auto message = [&](const QuantizeArgs& bad) {
    const absl::Status status = Quantize(bad, stream);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_EQ(QuantizeReference(bad).code(), absl::StatusCode::kInvalidArgument);
    return std::string(status.message());
  };
  QuantizeArgs bad = problem.args;
  bad.x = ConstTensorView(problem.codes.data(), DType::kU8, {2, 8});
  EXPECT_THAT(message(bad), HasSubstr("found uint8[2, 8]"));
  bad = problem.args;
  bad.inverse_step = ConstTensorView(problem.step.data(), DType::kF32, {7});
  EXPECT_THAT(message(bad), HasSubstr("inverse_step fp32[8] on cpu, found fp32[7]"));
  bad = problem.args;
  bad.zero = ConstTensorView();
  EXPECT_THAT(message(bad), HasSubstr("zero fp32[8]"));
  bad = problem.args;
  bad.max_code = bad.zero;
  EXPECT_THAT(message(bad), HasSubstr("max_code uint8[8]"));
  bad = problem.args;
  bad.snap = bad.max_code;
  EXPECT_THAT(message(bad), HasSubstr("snap uint8[256]"));
  bad = problem.args;
  bad.gains = TensorView();
  EXPECT_THAT(message(bad), HasSubstr("gains fp32[2]"));
  bad = problem.args;
  bad.codes = TensorView(problem.codes.data(), DType::kU8, {2, 7});
  EXPECT_THAT(message(bad), HasSubstr("codes uint8[2, 8] on cpu, found uint8[2, 7]"));
  RoundToCodesArgs round;
  round.x = problem.x.mutable_view();
  round.inverse_step = problem.args.inverse_step;
  round.zero = problem.args.zero;
  round.max_code = problem.args.max_code;
  EXPECT_THAT(std::string(RoundToCodes(round, stream).message()), HasSubstr("step fp32[8]"));
}

TEST(QuantizeTest, NoTokensIsNoWork) {
  std::mt19937 random(2);
  Problem problem({DType::kF32, 2, 8, 0, GainKind::kRms, true}, random);
  QuantizeArgs args = problem.args;
  args.x = ConstTensorView(nullptr, DType::kF32, {0, 8});
  args.codes = TensorView(nullptr, DType::kU8, {0, 8});
  args.gains = TensorView(nullptr, DType::kF32, {0});
  ThreadPool pool(1);
  Stream stream = Stream::Cpu(&pool);
  EXPECT_TRUE(Quantize(args, stream).ok());
}

}  // namespace
}  // namespace thinwire
