#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/core/tensor.h"
#include "kernels/norm/norm.h"
#include "kernels/norm/norm_rows.h"
#include "kernels/testing/cpu_targets.h"
#include "kernels/testing/rounded.h"

namespace thinwire {
namespace {

using ::testing::HasSubstr;

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
  int64_t num_different = 0;
  for (int64_t t = 0; t < c.num_tokens; ++t) {
    const float* row = sums.data() + t * stride;
    const RowBound bound(c.kind, row, c.hidden, 1e-5);
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

}  // namespace
}  // namespace thinwire
