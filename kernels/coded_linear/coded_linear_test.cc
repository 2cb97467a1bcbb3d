#include "kernels/coded_linear/coded_linear.h"

#include <algorithm>
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
#include "kernels/convert/convert.h"
#include "kernels/testing/cpu_targets.h"
#include "kernels/testing/rounded.h"

namespace thinwire {
namespace {

using ::testing::HasSubstr;

constexpr double kEps = 0x1p-24;  // half an ulp of fp32, relative

// Offsets of parts of `size` columns, the last perhaps shorter; size 0: of random sizes to 70.
std::vector<int32_t> Offsets(int64_t columns, int64_t size, std::mt19937& random) {
  std::vector<int32_t> offsets = {0};
  while (offsets.back() < columns) {
    const int64_t next = size != 0 ? size : 1 + static_cast<int64_t>(random() % 70);
    offsets.push_back(static_cast<int32_t>(std::min<int64_t>(columns, offsets.back() + next)));
  }
  return offsets;
}

// `offsets` and more between them.
std::vector<int32_t> Subdivided(const std::vector<int32_t>& offsets, int64_t size,
                                std::mt19937& random) {
  std::vector<int32_t> all = {0};
  for (size_t g = 1; g < offsets.size(); ++g) {
    for (const int32_t offset : Offsets(offsets[g] - offsets[g - 1], size, random)) {
      if (offset > 0) all.push_back(offsets[g - 1] + offset);
    }
  }
  return all;
}

struct Weights {
  Weights(int64_t out, int64_t in, int bits, std::vector<int32_t> group_offsets, int max_zero,
          std::mt19937& random)
      : out(out),
        in(in),
        num_groups(static_cast<int64_t>(group_offsets.size()) - 1),
        offsets(group_offsets) {
    std::uniform_real_distribution<float> scale(-1.0f, 1.0f);
    for (int64_t i = 0; i < out * in; ++i) {
      codes.push_back(static_cast<uint8_t>(random() % (1u << bits)));
    }
    for (int64_t i = 0; i < out * num_groups; ++i) {
      scales.push_back(ToFloat(ToHalf(scale(random))));
      zeros.push_back(static_cast<uint8_t>(random() % static_cast<unsigned>(max_zero + 1)));
    }
    coded = Make(0, out, bits);
  }

  // Those of rows [first, first + n), set in two parts, rows of a wider matrix.
  CodedWeights Make(int64_t first, int64_t n, int bits) const {
    CodedWeights made = CodedWeights::Allocate(n, in, bits, offsets, Device::Cpu()).value();
    const ConstTensorView all_codes(codes.data(), DType::kU8, {out, in});
    const ConstTensorView all_scales(scales.data(), DType::kF32, {out, num_groups});
    const ConstTensorView all_zeros(zeros.data(), DType::kU8, {out, num_groups});
    for (const auto& [begin, count] : {std::pair(n / 2, n - n / 2), std::pair(int64_t{0}, n / 2)}) {
      const absl::Status status =
          made.SetRows(begin, all_codes.Rows(first + begin, count),
                       all_scales.Rows(first + begin, count), all_zeros.Rows(first + begin, count));
      EXPECT_TRUE(status.ok()) << status;
    }
    return made;
  }

  int64_t Group(int64_t column) const {
    return std::upper_bound(offsets.begin(), offsets.end(), column) - offsets.begin() - 1;
  }

  int64_t out, in, num_groups;
  std::vector<int32_t> offsets;
  std::vector<uint8_t> codes, zeros;
  std::vector<float> scales;
  CodedWeights coded;
};

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
  const std::vector<int32_t> segments = {0, 40};
  const std::vector<float> steps = {1.0f};
  IntegerLinearArgs integer;
  integer.codes = ConstTensorView(nullptr, DType::kU8, {0, 40});
  integer.segment_offsets = segments;
  integer.segment_step = steps;
  integer.weights = &w.coded;
  integer.y = args.y;
  EXPECT_TRUE(IntegerLinear(integer, stream).ok());
}

}  // namespace
}  // namespace thinwire
