#include "kernels/rope/rope.h"

#include <cmath>
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

constexpr double kSmallest = 0x1p-25;  // half of fp16's subnormal step; below it for the others

struct Case {
  int64_t num_tokens;
  int64_t num_heads;
  int64_t head_dim;
  int64_t padding;  // elements between rows
};

std::vector<float> InverseFrequencies(int64_t head_dim, double base) {
  std::vector<float> inv_freq(static_cast<size_t>(head_dim / 2));
  for (size_t i = 0; i < inv_freq.size(); ++i) {
    inv_freq[i] = static_cast<float>(
        std::pow(base, -2.0 * static_cast<double>(i) / static_cast<double>(head_dim)));
  }
  return inv_freq;
}

// Runs kernel and reference on the same input and checks every element, and that padding survives.
void CompareWithReference(const Case& c, DType dtype, int num_threads, int32_t max_position) {
  SCOPED_TRACE(testing::Message() << c.num_tokens << " tokens, " << c.num_heads << " heads of "
                                  << c.head_dim << ", " << std::string(DTypeName(dtype)));
  std::mt19937 random(static_cast<unsigned>(c.num_tokens * 131 + c.head_dim));
  const int64_t width = c.num_heads * c.head_dim;
  const int64_t stride = width + c.padding;
  const int64_t count = c.num_tokens * stride;
  std::vector<float> values(static_cast<size_t>(count));
  for (float& v : values) v = std::normal_distribution<float>(0.0f, 3.0f)(random);
  Tensor x = Tensor::Allocate(dtype, {c.num_tokens, stride}, Device::Cpu()).value();
  Tensor expected = Tensor::Allocate(dtype, {c.num_tokens, stride}, Device::Cpu()).value();
  ConvertFromFloat(values.data(), x.mutable_view().mutable_raw(), dtype, count);
  ConvertFromFloat(values.data(), expected.mutable_view().mutable_raw(), dtype, count);
  ConvertToFloat(x.view().raw(), dtype, values.data(), count);  // as rounded
  std::vector<int32_t> positions(static_cast<size_t>(c.num_tokens));
  for (int32_t& p : positions) p = std::uniform_int_distribution<int32_t>(0, max_position)(random);
  const std::vector<float> inv_freq = InverseFrequencies(c.head_dim, 10000.0);

  RopeArgs args;
  args.positions = ConstTensorView(positions.data(), DType::kI32, {c.num_tokens});
  args.inv_freq = ConstTensorView(inv_freq.data(), DType::kF32, {c.head_dim / 2});
  args.num_heads = c.num_heads;
  args.head_dim = c.head_dim;
  args.x = expected.mutable_view().Columns(0, width);
  ASSERT_TRUE(RopeReference(args).ok());
  args.x = x.mutable_view().Columns(0, width);
  ThreadPool pool(num_threads);
  Stream stream = Stream::Cpu(&pool);
  ASSERT_TRUE(Rope(args, stream).ok());

  std::vector<float> got(values.size());
  std::vector<float> want(values.size());
  ConvertToFloat(x.view().raw(), dtype, got.data(), count);
  ConvertToFloat(expected.view().raw(), dtype, want.data(), count);
  const int64_t half = c.head_dim / 2;
  for (int64_t t = 0; t < c.num_tokens; ++t) {
    for (int64_t j = 0; j < stride; ++j) {
      const auto at = static_cast<size_t>(t * stride + j);
      if (j >= width) {
        ASSERT_EQ(got[at], values[at]) << "padding changed";
        continue;
      }
      const int64_t i = j % c.head_dim;
      const auto partner = static_cast<size_t>(t * stride + (i < half ? j + half : j - half));
      // |a| + |b| bounds both products; each takes one rounding of cosine or sine (1 ulp) and one
      // of the product, then one of the sum: below 4 units. Then reference and kernel round to
      // dtype.
      const double bound = 4 * 0x1p-24 * (std::fabs(values[at]) + std::fabs(values[partner])) +
                           2 * UnitRoundoff(dtype) * std::fabs(want[at]) + 2 * kSmallest;
      ASSERT_NEAR(got[at], want[at], bound) << "token " << t << ", column " << j;
    }
  }
}

TEST(RopeTest, AgreesWithTheDefinitionOnEveryTarget) {
  const Case cases[] = {{1, 1, 2, 0},  {3, 2, 6, 0},     {2, 3, 34, 5}, {7, 5, 64, 0},
                        {5, 1, 80, 3}, {13, 7, 128, 64}, {1, 2, 254, 1}};
  ForEachCpuTarget([&](absl::string_view target) {
    SCOPED_TRACE(std::string(target));
    for (const Case& c : cases) {
      for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
        CompareWithReference(c, dtype, 1, 4096);
      }
    }
  });
}

TEST(RopeTest, IsAccurateAtLargePositions) {
  CompareWithReference({64, 2, 128, 0}, DType::kF32, 1, 131072);
}

TEST(RopeTest, ThreadsSplitTokens) {
  CompareWithReference({257, 32, 64, 0}, DType::kF32, 3, 131072);
  CompareWithReference({257, 32, 64, 0}, DType::kBF16, 3, 131072);
}

TEST(RopeTest, RotatesThePairByItsAngle) {
  std::vector<float> x = {1, 0, 0, 2};  // pairs (1, 0) and (0, 2)
  const std::vector<int32_t> positions = {3};
  const std::vector<float> inv_freq = {1.0f, 0.5f};
  RopeArgs args;
  args.x = TensorView(x.data(), DType::kF32, {1, 4});
  args.positions = ConstTensorView(positions.data(), DType::kI32, {1});
  args.inv_freq = ConstTensorView(inv_freq.data(), DType::kF32, {2});
  args.num_heads = 1;
  args.head_dim = 4;
  ThreadPool pool(1);
  Stream stream = Stream::Cpu(&pool);
  ASSERT_TRUE(Rope(args, stream).ok());
  EXPECT_NEAR(x[0], std::cos(3.0), 0x1p-23);
  EXPECT_NEAR(x[2], std::sin(3.0), 0x1p-23);
  EXPECT_NEAR(x[1], -2 * std::sin(1.5), 0x1p-22);
  EXPECT_NEAR(x[3], 2 * std::cos(1.5), 0x1p-22);
}

TEST(RopeTest, PositionZeroChangesNothing) {
  std::vector<float> x(64);
  for (size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(i) - 31.5f;
  const std::vector<float> before = x;
  const std::vector<int32_t> positions = {0};
  const std::vector<float> inv_freq = InverseFrequencies(32, 500000.0);
  RopeArgs args;
  args.x = TensorView(x.data(), DType::kF32, {1, 64});
  args.positions = ConstTensorView(positions.data(), DType::kI32, {1});
  args.inv_freq = ConstTensorView(inv_freq.data(), DType::kF32, {16});
  args.num_heads = 2;
  args.head_dim = 32;
  ThreadPool pool(1);
  Stream stream = Stream::Cpu(&pool);
  ASSERT_TRUE(Rope(args, stream).ok());
  EXPECT_EQ(x, before);
}

TEST(RopeTest, RefusesWrongShapesByName) {
  std::vector<float> x(12);
  const std::vector<int32_t> positions = {0, 1, 2};
  const std::vector<float> inv_freq = {1.0f, 0.5f};
  RopeArgs args;
  args.x = TensorView(x.data(), DType::kF32, {3, 4});
  args.positions = ConstTensorView(positions.data(), DType::kI32, {3});
  args.inv_freq = ConstTensorView(inv_freq.data(), DType::kF32, {2});
  args.num_heads = 1;
  args.head_dim = 4;
  ThreadPool pool(1);
  Stream stream = Stream::Cpu(&pool);
  ASSERT_TRUE(Rope(args, stream).ok());
  const auto message = [&](const RopeArgs& bad) {
    const absl::Status status = Rope(bad, stream);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    return std::string(status.message());
  };
  RopeArgs bad = args;
  bad.head_dim = 3;
  EXPECT_THAT(message(bad), HasSubstr("even head_dim"));
  bad = args;
  bad.num_heads = 2;
  EXPECT_THAT(message(bad), HasSubstr("[num_tokens, 2 * 4], found fp32[3, 4]"));
  bad = args;
  bad.positions = ConstTensorView(positions.data(), DType::kI32, {2});
  EXPECT_THAT(message(bad), HasSubstr("positions int32[3], found int32[2]"));
  bad = args;
  bad.inv_freq = ConstTensorView(inv_freq.data(), DType::kF32, {1});
  EXPECT_THAT(message(bad), HasSubstr("inv_freq fp32[2], found fp32[1]"));
  bad = args;
  bad.x = TensorView(x.data(), DType::kF32, {3, 4}, Device::Cuda(0));
  EXPECT_THAT(message(bad), HasSubstr("cuda:0"));
}

TEST(RopeTest, NoTokensIsNoWork) {
  const std::vector<float> inv_freq = {1.0f};
  RopeArgs args;
  args.x = TensorView(nullptr, DType::kF32, {0, 2});
  args.positions = ConstTensorView(nullptr, DType::kI32, {0});
  args.inv_freq = ConstTensorView(inv_freq.data(), DType::kF32, {1});
  args.num_heads = 1;
  args.head_dim = 2;
  ThreadPool pool(1);
  Stream stream = Stream::Cpu(&pool);
  EXPECT_TRUE(Rope(args, stream).ok());
}

}  // namespace
}  // namespace thinwire
