#include "kernels/norm/norm.h"

#include <cmath>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/convert/convert.h"
#include "kernels/core/tensor.h"
#include "kernels/norm/norm_rows.h"
#include "kernels/testing/cpu_targets.h"
#include "kernels/testing/rounded.h"

namespace thinwire {
namespace {

using ::testing::HasSubstr;

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
    const RowBound row(c.kind, sums.data() + t * stride, c.hidden, args.epsilon);
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

TEST(ScaleInPlaceTest, RoundsTheScaledValueOnceOnEveryTarget) {
  ForEachCpuTarget([&](absl::string_view target) {
    SCOPED_TRACE(std::string(target));
    for (const DType dtype : kFloatDTypes) {
      for (const int64_t columns : {1, 19, 64, 131}) {
        std::mt19937 random(static_cast<unsigned>(columns));
        constexpr int64_t kRows = 3;
        Tensor x =
            RoundedTensor(Activations(kRows, columns + 2, random), dtype, kRows, columns + 2);
        const std::vector<float> weight = Activations(1, columns, random);
        const std::vector<float> bias = Activations(1, columns, random);
        std::vector<float> want = Floats(x);
        for (int64_t t = 0; t < kRows; ++t) {
          for (int64_t i = 0; i < columns; ++i) {
            float& value = want[static_cast<size_t>(t * (columns + 2) + i)];
            const float product = value * weight[static_cast<size_t>(i)];
            value = product + bias[static_cast<size_t>(i)];
          }
        }
        ThreadPool pool(2);
        Stream stream = Stream::Cpu(&pool);
        const TensorView part = x.mutable_view().Columns(0, columns);
        ASSERT_TRUE(ScaleInPlace(part, ConstTensorView(weight.data(), DType::kF32, {columns}),
                                 ConstTensorView(bias.data(), DType::kF32, {columns}), stream)
                        .ok());
        const std::vector<float> found = Floats(x);
        const std::vector<float> rounded = Floats(RoundedTensor(want, dtype, kRows, columns + 2));
        // A compiler may fuse the product and the sum: one rounding of fp32 less.
        for (size_t i = 0; i < found.size(); ++i) {
          if (found[i] == rounded[i]) continue;  // infinities, too
          EXPECT_NEAR(found[i], rounded[i], UnitRoundoff(dtype) * 8.0 * (1.0 + std::abs(want[i])));
        }
        ASSERT_TRUE(ScaleInPlace(part, {}, {}, stream).ok());
        EXPECT_EQ(Floats(x), found);
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
