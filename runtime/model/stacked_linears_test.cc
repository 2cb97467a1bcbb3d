#include "runtime/model/stacked_linears.h"

#include <random>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/coded_linear/coded_linear.h"
#include "kernels/core/stream.h"
#include "kernels/core/thread_pool.h"

namespace thinwire {
namespace {

constexpr int64_t kIn = 72;

class StackedLinearsTest : public testing::Test {
 protected:
  std::minstd_rand random_{7};

  Tensor Vector(int64_t size) {
    Tensor tensor = Tensor::Allocate(DType::kF32, {size}, Device::Cpu()).value();
    for (int64_t i = 0; i < size; ++i) {
      tensor.mutable_view().mutable_data<float>()[i] =
          static_cast<float>(random_() % 2048) / 1024.0f - 1.0f;
    }
    return tensor;
  }

  LinearWeights Random(int64_t out, int bits, std::vector<int32_t> groups = {0, 16, 48, kIn}) {
    LinearWeights linear;
    const auto num_groups = static_cast<int64_t>(groups.size()) - 1;
    linear.codes = CodedWeights::Allocate(out, kIn, bits, std::move(groups), Device::Cpu()).value();
    std::vector<uint8_t> codes(out * kIn), zeros(out * num_groups);
    for (uint8_t& code : codes) code = static_cast<uint8_t>(random_() % (1u << bits));
    for (uint8_t& zero : zeros) zero = static_cast<uint8_t>(random_() % (1u << bits));
    const Tensor scales = Vector(out * num_groups);
    EXPECT_TRUE(linear.codes
                    ->SetRows(0, ConstTensorView(codes.data(), DType::kU8, {out, kIn}),
                              ConstTensorView(scales.view().raw(), DType::kF32, {out, num_groups}),
                              ConstTensorView(zeros.data(), DType::kU8, {out, num_groups}))
                    .ok());
    linear.bias = Vector(out);
    return linear;
  }

  // Rows of W x + bias.
  std::vector<float> Apply(const std::vector<LinearWeights>& linears, const Tensor& x) {
    ThreadPool pool(1);
    Stream stream = Stream::Cpu(&pool);
    std::vector<float> all;
    for (const LinearWeights& linear : linears) {
      std::vector<float> y(linear.out_features());
      EXPECT_TRUE(CodedLinear({.x = ConstTensorView(x.view().raw(), DType::kF32, {1, kIn}),
                               .weights = &*linear.codes,
                               .bias = linear.bias.view(),
                               .y = TensorView(y.data(), DType::kF32, {1, linear.out_features()})},
                              stream)
                      .ok());
      all.insert(all.end(), y.begin(), y.end());
    }
    return all;
  }
};

TEST_F(StackedLinearsTest, OneGivesTheBitsOfAll) {
  for (const int bits : {3, 4, 8}) {
    std::vector<LinearWeights> linears;
    for (const int64_t out : {32, 16, 21}) linears.push_back(Random(out, bits));
    const Tensor x = Vector(kIn);
    const std::vector<float> expected = Apply(linears, x);
    ASSERT_TRUE(StackLinears(linears).ok());
    ASSERT_EQ(linears.size(), 1u);
    EXPECT_EQ(linears[0].out_features(), 69);
    EXPECT_EQ(Apply(linears, x), expected);
  }
}

TEST_F(StackedLinearsTest, WhatDiffersInMoreThanRowsStaysAsItIs) {
  const auto count = [&](LinearWeights a, LinearWeights b) {
    std::vector<LinearWeights> linears;
    linears.push_back(std::move(a));
    linears.push_back(std::move(b));
    EXPECT_TRUE(StackLinears(linears).ok());
    return linears.size();
  };
  EXPECT_EQ(count(Random(16, 4), Random(5, 4)), 1u);
  EXPECT_EQ(count(Random(16, 4), Random(16, 8)), 2u);
  EXPECT_EQ(count(Random(16, 4), Random(16, 4, {0, 32, kIn})), 2u);
  EXPECT_EQ(count(Random(15, 4), Random(16, 4)), 2u);
  LinearWeights other = Random(16, 4);
  other.bias = Tensor();
  EXPECT_EQ(count(Random(16, 4), std::move(other)), 2u);
  other = Random(16, 4);
  other.input_order = Vector(kIn);
  EXPECT_EQ(count(Random(16, 4), std::move(other)), 2u);
  other = Random(16, 4);
  other.segment_step = {1.0f};
  EXPECT_EQ(count(Random(16, 4), std::move(other)), 2u);
}

}  // namespace
}  // namespace thinwire
