#include "kernels/norm/norm.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/convert/convert.h"
#include "kernels/core/tensor.h"
#include "kernels/testing/cpu_targets.h"
#include "kernels/testing/rounded.h"

namespace thinwire {
namespace {

using ::testing::HasSubstr;

constexpr double kEps = 0x1p-24;  // half an ulp of fp32, relative

struct Case {
  NormKind kind = NormKind::kLayerNorm;
  DType dtype = DType::kF32;
  int64_t num_tokens = 1;
  int64_t hidden = 1;
  int64_t padding = 0;  // elements between rows
  bool delta = false;
  bool weight = false;
  bool bias = false;
  bool in_place = false;
};

// Like the activations of large OPT models: most channels of order 1, a few 100 times larger, and a
// common offset in all.
std::vector<float> Activations(int64_t rows, int64_t columns, std::mt19937& random) {
  std::vector<float> values(static_cast<size_t>(rows * columns));
  for (size_t i = 0; i < values.size(); ++i) {
    const auto column = static_cast<int64_t>(i) % columns;
    const float scale = column % 97 == 5 ? 100.0f : 1.0f;
    values[i] = scale * std::normal_distribution<float>(0.0f, 1.0f)(random) + 8.0f * (scale - 0.5f);
  }
  return values;
}

// How far fp32 sums may carry the kernel from the definition, for one row x (after the addition),
// with y = (x - mean) / sqrt(variance + epsilon):
//  - each lane adds at most hidden / 16 + 3 terms in a chain (four accumulators of at least four
//    lanes), then 2 accumulators and at most 4 lanes deep, so that a sum of terms t is off by at
//    most depth * eps * sum |t|, depth = hidden / 16 + 12;
//  - so the mean is off by m = (depth + 1) * eps * mean |x|, which moves y by m / sd;
//  - the variance is off by (depth + 4) * eps relative, and by m^2 absolute, which move y by half
//    of that relative to y;
//  - the rest is a handful of roundings: of x - mean (eps * (|x - mean| + m)), root, quotient and
//    products.
struct RowBound {
  double mean = 0.0;
  double shift = 0.0;     // absolute error of y
  double relative = 0.0;  // relative error of y

  RowBound(const Case& c, const float* x, double epsilon) {
    const auto n = static_cast<double>(c.hidden);
    double magnitude = 0.0;
    double variance = 0.0;
    for (int64_t i = 0; i < c.hidden; ++i) {
      if (c.kind == NormKind::kLayerNorm) mean += x[i] / n;
      magnitude += std::fabs(x[i]) / n;
    }
    for (int64_t i = 0; i < c.hidden; ++i) variance += (x[i] - mean) * (x[i] - mean) / n;
    const double depth = n / 16 + 12;
    const double m = c.kind == NormKind::kLayerNorm ? (depth + 1) * kEps * magnitude : 0.0;
    shift = m / std::sqrt(variance + epsilon);
    relative = ((depth + 4) * kEps + m * m / (variance + epsilon)) / 2 + 6 * kEps;
  }
};

void CompareWithReference(const Case& c, int num_threads) {
  SCOPED_TRACE(testing::Message() << (c.kind == NormKind::kLayerNorm ? "LayerNorm " : "RMSNorm ")
                                  << std::string(DTypeName(c.dtype)) << "[" << c.num_tokens << ", "
                                  << c.hidden << "] padding " << c.padding << " delta " << c.delta
                                  << " weight " << c.weight << " bias " << c.bias << " in place "
                                  << c.in_place);
  std::mt19937 random(static_cast<unsigned>(c.num_tokens * 7919 + c.hidden));
  const int64_t stride = c.hidden + c.padding;
  const std::vector<float> values = Activations(c.num_tokens, stride, random);
  Tensor x = RoundedTensor(values, c.dtype, c.num_tokens, stride);
  Tensor x_reference = RoundedTensor(values, c.dtype, c.num_tokens, stride);
  const std::vector<float> before = Floats(x);
  const Tensor delta =
      RoundedTensor(Activations(c.num_tokens, stride, random), c.dtype, c.num_tokens, stride);
  Tensor out = RoundedTensor(values, c.dtype, c.num_tokens, stride);
  Tensor out_reference = RoundedTensor(values, c.dtype, c.num_tokens, stride);
  const std::vector<float> weight = Activations(1, c.hidden, random);
  const std::vector<float> bias = Activations(1, c.hidden, random);

  NormArgs args;
  args.kind = c.kind;
  args.epsilon = 1e-5f;
  if (c.delta) args.delta = delta.view().Columns(0, c.hidden);
  if (c.weight) args.weight = ConstTensorView(weight.data(), DType::kF32, {c.hidden});
  if (c.bias) args.bias = ConstTensorView(bias.data(), DType::kF32, {c.hidden});
  args.x = x_reference.mutable_view().Columns(0, c.hidden);
  args.out = out_reference.mutable_view().Columns(0, c.hidden);
  ASSERT_TRUE(NormReference(args).ok());
  args.x = x.mutable_view().Columns(0, c.hidden);
  args.out = c.in_place ? args.x : out.mutable_view().Columns(0, c.hidden);
  ThreadPool pool(num_threads);
  Stream stream = Stream::Cpu(&pool);
  ASSERT_TRUE(Norm(args, stream).ok());

  const std::vector<float> sums = Floats(x_reference);
  const std::vector<float> want = Floats(out_reference);
  const std::vector<float> got = Floats(c.in_place ? x : out);
  if (!c.in_place) {
    // fp32 addition rounds the exact sum, so both agree bit for bit.
    ASSERT_EQ(Floats(x), sums);
  }
  for (int64_t t = 0; t < c.num_tokens; ++t) {
    const RowBound row(c, sums.data() + t * stride, args.epsilon);
    for (int64_t i = 0; i < stride; ++i) {
      const auto at = static_cast<size_t>(t * stride + i);
      if (i >= c.hidden) {
        ASSERT_EQ(got[at], before[at]) << "padding changed";
        continue;
      }
      const double w = c.weight ? std::fabs(weight[static_cast<size_t>(i)]) : 1.0;
      const double b = c.bias ? bias[static_cast<size_t>(i)] : 0.0;
      const double scaled = std::fabs(want[at] - b) + UnitRoundoff(c.dtype) * std::fabs(want[at]);
      const double bound = w * row.shift + row.relative * scaled +
                           2 * (UnitRoundoff(c.dtype) + kEps) * std::fabs(want[at]) + 0x1p-24;
      ASSERT_NEAR(got[at], want[at], bound) << "token " << t << ", channel " << i;
    }
  }
}

TEST(NormTest, AgreesWithTheDefinitionOnEveryTarget) {
  const int64_t shapes[][3] = {{1, 1, 0},  {2, 3, 1},   {3, 17, 0},  {2, 31, 2},
                               {5, 64, 0}, {2, 129, 7}, {1, 769, 0}, {3, 4096, 64}};
  ForEachCpuTarget([&](absl::string_view target) {
    SCOPED_TRACE(std::string(target));
    int options = 0;
    for (const auto& shape : shapes) {
      for (const DType dtype : kFloatDTypes) {
        for (const NormKind kind : {NormKind::kLayerNorm, NormKind::kRmsNorm}) {
          Case c{kind, dtype, shape[0], shape[1], shape[2]};
          for (int i = 0; i < 4; ++i) {
            ++options;
            c.delta = options & 1;
            c.weight = options & 2;
            c.bias = kind == NormKind::kLayerNorm && (options / 3 & 1);
            c.in_place = options / 5 & 1;
            CompareWithReference(c, 1);
          }
        }
      }
    }
  });
}

TEST(NormTest, ThreadsSplitTokens) {
  for (const DType dtype : kFloatDTypes) {
    Case c{NormKind::kLayerNorm, dtype, 101, 1031, 1};
    c.delta = c.weight = c.bias = true;
    CompareWithReference(c, 3);
  }
}

TEST(NormTest, AnOffsetDoesNotCancel) {
  // Mean 4096, deviation 1: mean(x^2) - mean^2 in fp32 has an error of about 1, all of the
  // variance.
  std::vector<float> x(512);
  std::vector<float> out(512);
  for (size_t i = 0; i < x.size(); ++i) x[i] = i % 2 == 0 ? 4095.0f : 4097.0f;
  NormArgs args;
  args.x = TensorView(x.data(), DType::kF32, {1, 512});
  args.out = TensorView(out.data(), DType::kF32, {1, 512});
  args.epsilon = 0.0f;
  ThreadPool pool(1);
  Stream stream = Stream::Cpu(&pool);
  ASSERT_TRUE(Norm(args, stream).ok());
  for (size_t i = 0; i < x.size(); ++i) EXPECT_EQ(out[i], i % 2 == 0 ? -1.0f : 1.0f);
}

TEST(NormTest, EpsilonKeepsAConstantRowFinite) {
  std::vector<float> x(33, 3.0f);
  NormArgs args;
  args.x = args.out = TensorView(x.data(), DType::kF32, {1, 33});
  ThreadPool pool(1);
  Stream stream = Stream::Cpu(&pool);
  ASSERT_TRUE(Norm(args, stream).ok());
  EXPECT_EQ(x, std::vector<float>(33, 0.0f));
}

TEST(NormTest, WithoutDeltaXIsOnlyRead) {
  const std::vector<float> x = {1, 2, 3, 4};
  std::vector<float> copy = x;
  std::vector<float> out(4);
  NormArgs args;
  args.kind = NormKind::kRmsNorm;
  args.x = TensorView(copy.data(), DType::kF32, {2, 2});
  args.out = TensorView(out.data(), DType::kF32, {2, 2});
  ThreadPool pool(1);
  Stream stream = Stream::Cpu(&pool);
  ASSERT_TRUE(Norm(args, stream).ok());
  EXPECT_EQ(copy, x);
}

std::vector<int32_t> Shuffled(int64_t n, std::mt19937& random) {
  std::vector<int32_t> order(static_cast<size_t>(n));
  std::iota(order.begin(), order.end(), 0);
  std::shuffle(order.begin(), order.end(), random);
  return order;
}

TEST(NormTest, AnOrderPermutesChannelsBitForBit) {
  ForEachCpuTarget([&](absl::string_view target) {
    SCOPED_TRACE(std::string(target));
    for (const DType dtype : kFloatDTypes) {
      for (const int64_t hidden : {1, 17, 64, 131, 769}) {
        constexpr int64_t kRows = 5;
        std::mt19937 random(static_cast<unsigned>(hidden));
        const std::vector<float> values = Activations(kRows, hidden + 3, random);
        const Tensor delta =
            RoundedTensor(Activations(kRows, hidden, random), dtype, kRows, hidden);
        const std::vector<float> weight = Activations(1, hidden, random);
        const std::vector<float> bias = Activations(1, hidden, random);
        const std::vector<int32_t> order = Shuffled(hidden, random);
        std::vector<float> ordered_weight, ordered_bias;
        for (const int32_t channel : order) {
          ordered_weight.push_back(weight[static_cast<size_t>(channel)]);
          ordered_bias.push_back(bias[static_cast<size_t>(channel)]);
        }
        const auto run = [&](bool ordered, bool reference) {
          Tensor x = RoundedTensor(values, dtype, kRows, hidden + 3);
          Tensor out = RoundedTensor(values, dtype, kRows, hidden + 3);
          const auto& w = ordered ? ordered_weight : weight;
          const auto& b = ordered ? ordered_bias : bias;
          NormArgs args;
          args.x = x.mutable_view().Columns(0, hidden);
          args.delta = delta.view();
          args.weight = ConstTensorView(w.data(), DType::kF32, {hidden});
          args.bias = ConstTensorView(b.data(), DType::kF32, {hidden});
          args.out = out.mutable_view().Columns(0, hidden);
          if (ordered) args.order = ConstTensorView(order.data(), DType::kI32, {hidden});
          ThreadPool pool(2);
          Stream stream = Stream::Cpu(&pool);
          EXPECT_TRUE((reference ? NormReference(args) : Norm(args, stream)).ok());
          return Floats(out);
        };
        for (const bool reference : {false, true}) {
          const std::vector<float> plain = run(false, reference);
          std::vector<float> want = plain;
          for (int64_t t = 0; t < kRows; ++t) {
            for (int64_t j = 0; j < hidden; ++j) {
              const int64_t row = t * (hidden + 3);
              want[static_cast<size_t>(row + j)] =
                  plain[static_cast<size_t>(row + order[static_cast<size_t>(j)])];
            }
          }
          ASSERT_EQ(run(true, reference), want) << hidden << (reference ? " reference" : "");
        }
      }
    }
  });
}

struct CodesCase {
  NormKind kind = NormKind::kLayerNorm;
  DType dtype = DType::kF32;
  int64_t num_tokens = 1;
  int64_t hidden = 1;
  bool delta = false;
  bool order = false;
};

void CompareCodesWithReference(const CodesCase& c, int num_threads) {
  SCOPED_TRACE(testing::Message() << (c.kind == NormKind::kLayerNorm ? "LayerNorm " : "RMSNorm ")
                                  << std::string(DTypeName(c.dtype)) << "[" << c.num_tokens << ", "
                                  << c.hidden << "] delta " << c.delta << " order " << c.order);
  std::mt19937 random(static_cast<unsigned>(c.num_tokens * 7919 + c.hidden));
  constexpr int64_t kGap = 3;
  const int64_t stride = c.hidden + kGap;
  const std::vector<float> values = Activations(c.num_tokens, stride, random);
  Tensor x = RoundedTensor(values, c.dtype, c.num_tokens, stride);
  Tensor x_reference = RoundedTensor(values, c.dtype, c.num_tokens, stride);
  const Tensor delta =
      RoundedTensor(Activations(c.num_tokens, c.hidden, random), c.dtype, c.num_tokens, c.hidden);
  const std::vector<int32_t> order = Shuffled(c.hidden, random);
  std::vector<float> weight, bias;
  std::vector<uint8_t> max_code;
  for (int64_t j = 0; j < c.hidden; ++j) {
    // Codes of 8 and 4 bits that span about +-2.
    const float most = j % 2 == 0 ? 255.0f : 15.0f;
    weight.push_back(most / 4.0f * std::uniform_real_distribution<float>(0.7f, 1.3f)(random));
    bias.push_back(most / 2.0f + std::normal_distribution<float>(0.0f, 1.0f)(random));
    max_code.push_back(static_cast<uint8_t>(most));
  }
  const auto run = [&](Tensor& to_norm, Stream* stream) {
    std::vector<uint8_t> codes(static_cast<size_t>(c.num_tokens * stride), 77);
    NormCodesArgs args;
    args.kind = c.kind;
    args.x = to_norm.mutable_view().Columns(0, c.hidden);
    if (c.delta) args.delta = delta.view();
    if (c.order) args.order = ConstTensorView(order.data(), DType::kI32, {c.hidden});
    args.weight = ConstTensorView(weight.data(), DType::kF32, {c.hidden});
    args.bias = ConstTensorView(bias.data(), DType::kF32, {c.hidden});
    args.max_code = ConstTensorView(max_code.data(), DType::kU8, {c.hidden});
    args.codes = TensorView(codes.data(), DType::kU8, {c.num_tokens, stride}).Columns(0, c.hidden);
    EXPECT_TRUE((stream == nullptr ? NormCodesReference(args) : NormCodes(args, *stream)).ok());
    return codes;
  };
  ThreadPool pool(num_threads);
  Stream stream = Stream::Cpu(&pool);
  const std::vector<uint8_t> got = run(x, &stream);
  const std::vector<uint8_t> want = run(x_reference, nullptr);
  ASSERT_EQ(Floats(x), Floats(x_reference));
  const std::vector<float> sums = Floats(x);
  Case bounds;
  bounds.kind = c.kind;
  bounds.hidden = c.hidden;
  int64_t num_different = 0;
  for (int64_t t = 0; t < c.num_tokens; ++t) {
    const float* row = sums.data() + t * stride;
    const RowBound bound(bounds, row, 1e-5);
    double variance = 0.0;
    for (int64_t i = 0; i < c.hidden; ++i) {
      variance += std::pow(row[i] - bound.mean, 2) / static_cast<double>(c.hidden);
    }
    for (int64_t j = 0; j < stride; ++j) {
      const auto at = static_cast<size_t>(t * stride + j);
      if (j >= c.hidden) {
        ASSERT_EQ(got[at], 77) << "gap overwritten";
        continue;
      }
      num_different += got[at] != want[at];
      const auto i = static_cast<size_t>(j);
      const double y = (row[c.order ? order[i] : j] - bound.mean) / std::sqrt(variance + 1e-5);
      const double value = y * weight[i] + bias[i];
      const double error =
          weight[i] * (bound.shift + bound.relative * std::fabs(y)) + 2 * kEps * std::fabs(value);
      const auto code = [&](double v) {
        return std::clamp(std::nearbyint(v), 0.0, static_cast<double>(max_code[i]));
      };
      ASSERT_GE(got[at], code(value - error)) << "token " << t << ", code " << j;
      ASSERT_LE(got[at], code(value + error)) << "token " << t << ", code " << j;
    }
  }
  EXPECT_LE(num_different, 1 + c.num_tokens * c.hidden / 500);
}

TEST(NormCodesTest, AgreesWithTheDefinitionOnEveryTarget) {
  ForEachCpuTarget([&](absl::string_view target) {
    SCOPED_TRACE(std::string(target));
    int turn = 0;
    for (const int64_t hidden : {1, 16, 31, 64, 129, 769, 2050}) {
      for (const DType dtype : kFloatDTypes) {
        for (const NormKind kind : {NormKind::kLayerNorm, NormKind::kRmsNorm}) {
          ++turn;
          CompareCodesWithReference(
              {kind, dtype, 1 + turn % 5, hidden, turn % 2 == 0, turn % 3 != 0}, 1);
        }
      }
    }
  });
}

TEST(NormCodesTest, ThreadsSplitTokens) {
  CompareCodesWithReference({NormKind::kLayerNorm, DType::kF16, 300, 513, true, true}, 3);
  CompareCodesWithReference({NormKind::kRmsNorm, DType::kF32, 33, 2048, true, false}, 3);
}

TEST(NormCodesTest, NanIsNoCrashAndEndsAreClamped) {
  std::vector<float> x = {std::numeric_limits<float>::quiet_NaN(), 1.0f, 1e30f, -1e30f};
  const std::vector<float> weight(2, 1e30f), bias(2, 3.0f);
  const std::vector<uint8_t> max_code(2, 15);
  std::vector<uint8_t> codes(4);
  NormCodesArgs args;
  args.kind = NormKind::kRmsNorm;
  args.epsilon = 1.0f;
  args.x = TensorView(x.data(), DType::kF32, {2, 2});
  args.weight = ConstTensorView(weight.data(), DType::kF32, {2});
  args.bias = ConstTensorView(bias.data(), DType::kF32, {2});
  args.max_code = ConstTensorView(max_code.data(), DType::kU8, {2});
  args.codes = TensorView(codes.data(), DType::kU8, {2, 2});
  ForEachCpuTarget([&](absl::string_view) {
    x = {std::numeric_limits<float>::quiet_NaN(), 1.0f, 1.0f, -1.0f};
    ThreadPool pool(1);
    Stream stream = Stream::Cpu(&pool);
    ASSERT_TRUE(NormCodes(args, stream).ok());
    EXPECT_EQ(codes[2], 15);
    EXPECT_EQ(codes[3], 0);
  });
}

TEST(NormCodesTest, WrongArgumentsAreNamed) {
  std::vector<float> data(12);
  std::vector<int32_t> order = {3, 2, 1, 0};
  std::vector<uint8_t> bytes(12);
  NormCodesArgs args;
  args.x = TensorView(data.data(), DType::kF32, {3, 4});
  args.order = ConstTensorView(order.data(), DType::kI32, {4});
  args.weight = args.bias = ConstTensorView(data.data(), DType::kF32, {4});
  args.max_code = ConstTensorView(bytes.data(), DType::kU8, {4});
  args.codes = TensorView(bytes.data(), DType::kU8, {3, 4});
  ThreadPool pool(1);
  Stream stream = Stream::Cpu(&pool);
  ASSERT_TRUE(NormCodes(args, stream).ok());
  const auto message = [&](const NormCodesArgs& bad) {
    const absl::Status status = NormCodes(bad, stream);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_EQ(NormCodesReference(bad).code(), absl::StatusCode::kInvalidArgument);
    return std::string(status.message());
  };
  NormCodesArgs bad = args;
  bad.delta = ConstTensorView(data.data(), DType::kF32, {2, 4});
  EXPECT_THAT(message(bad), HasSubstr("delta like x"));
  bad = args;
  bad.weight = ConstTensorView();
  EXPECT_THAT(message(bad), HasSubstr("weight fp32[4]"));
  bad = args;
  bad.max_code = ConstTensorView(data.data(), DType::kF32, {4});
  EXPECT_THAT(message(bad), HasSubstr("max_code uint8[4] on cpu, found fp32[4]"));
  bad = args;
  bad.codes = TensorView(bytes.data(), DType::kU8, {4, 3});
  EXPECT_THAT(message(bad), HasSubstr("codes uint8[3, 4] on cpu, found uint8[4, 3]"));
  bad = args;
  bad.epsilon = -1.0f;
  EXPECT_THAT(message(bad), HasSubstr("epsilon"));
  order[2] = 4;
  EXPECT_THAT(message(args), HasSubstr("channels 0 to 3, found 4"));
  order[2] = -1;
  EXPECT_THAT(message(args), HasSubstr("channels 0 to 3, found -1"));
  NormArgs norm;
  norm.x = norm.out = args.x;
  order[2] = 1;
  norm.order = args.order;
  EXPECT_THAT(std::string(Norm(norm, stream).message()), HasSubstr("out must not be x"));
}

TEST(AddInPlaceTest, RoundsTheExactSumOnEveryTarget) {
  ForEachCpuTarget([&](absl::string_view target) {
    SCOPED_TRACE(std::string(target));
    for (const DType dtype : kFloatDTypes) {
      for (const int64_t columns : {1, 19, 64, 131}) {
        std::mt19937 random(static_cast<unsigned>(columns));
        constexpr int64_t kRows = 3;
        Tensor x =
            RoundedTensor(Activations(kRows, columns + 2, random), dtype, kRows, columns + 2);
        const Tensor delta =
            RoundedTensor(Activations(kRows, columns, random), dtype, kRows, columns);
        std::vector<float> want = Floats(x);
        const std::vector<float> terms = Floats(delta);
        for (int64_t t = 0; t < kRows; ++t) {
          for (int64_t i = 0; i < columns; ++i) {
            want[static_cast<size_t>(t * (columns + 2) + i)] +=
                terms[static_cast<size_t>(t * columns + i)];
          }
        }
        ThreadPool pool(2);
        Stream stream = Stream::Cpu(&pool);
        ASSERT_TRUE(AddInPlace(x.mutable_view().Columns(0, columns), delta.view(), stream).ok());
        EXPECT_EQ(Floats(x), Floats(RoundedTensor(want, dtype, kRows, columns + 2)));
      }
    }
  });
}

TEST(NormTest, RefusesWrongArgumentsByName) {
  std::vector<float> data(12);
  NormArgs args;
  args.x = args.out = TensorView(data.data(), DType::kF32, {3, 4});
  ThreadPool pool(1);
  Stream stream = Stream::Cpu(&pool);
  ASSERT_TRUE(Norm(args, stream).ok());
  const auto message = [&](const NormArgs& bad) {
    const absl::Status status = Norm(bad, stream);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_EQ(NormReference(bad).code(), absl::StatusCode::kInvalidArgument);
    return std::string(status.message());
  };
  NormArgs bad = args;
  bad.x = TensorView(data.data(), DType::kF32, {12});
  EXPECT_THAT(message(bad), HasSubstr("[num_tokens, hidden], found fp32[12]"));
  bad = args;
  bad.out = TensorView(data.data(), DType::kF16, {3, 4});
  EXPECT_THAT(message(bad), HasSubstr("out like x, fp32[3, 4] on cpu, found fp16[3, 4]"));
  bad = args;
  bad.delta = ConstTensorView(data.data(), DType::kF32, {2, 4});
  EXPECT_THAT(message(bad), HasSubstr("delta like x"));
  bad = args;
  bad.weight = ConstTensorView(data.data(), DType::kF32, {3});
  EXPECT_THAT(message(bad), HasSubstr("weight fp32[4] on cpu, found fp32[3]"));
  bad = args;
  bad.kind = NormKind::kRmsNorm;
  bad.bias = ConstTensorView(data.data(), DType::kF32, {4});
  EXPECT_THAT(message(bad), HasSubstr("RMSNorm has no bias"));
  bad = args;
  bad.epsilon = std::numeric_limits<float>::quiet_NaN();
  EXPECT_THAT(message(bad), HasSubstr("epsilon"));
  EXPECT_EQ(AddInPlace(args.x, args.x.Rows(0, 2), stream).code(),
            absl::StatusCode::kInvalidArgument);
}

TEST(NormTest, NoTokensIsNoWork) {
  NormArgs args;
  args.x = args.out = TensorView(nullptr, DType::kBF16, {0, 8});
  ThreadPool pool(1);
  Stream stream = Stream::Cpu(&pool);
  EXPECT_TRUE(Norm(args, stream).ok());
  EXPECT_TRUE(AddInPlace(args.x, args.x, stream).ok());
}

}  // namespace
}  // namespace thinwire
