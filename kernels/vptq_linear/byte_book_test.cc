#include "kernels/vptq_linear/byte_book.h"

#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/core/float16.h"
#include "kernels/testing/rounded.h"

namespace thinwire {
namespace {

// [entries, length + gap] in `dtype`, with NaN in the gap.
Tensor AsTensor(const std::vector<float>& values, int length, int gap, DType dtype) {
  const auto entries = static_cast<int64_t>(values.size()) / length;
  std::vector<float> padded;
  for (size_t i = 0; i < values.size(); ++i) {
    padded.push_back(values[i]);
    if (i % static_cast<size_t>(length) != static_cast<size_t>(length) - 1) continue;
    for (int k = 0; k < gap; ++k) padded.push_back(std::numeric_limits<float>::quiet_NaN());
  }
  return RoundedTensor(padded, dtype, entries, length + gap);
}

std::vector<float> Normal(size_t count, float deviation, std::mt19937& random) {
  std::normal_distribution<float> normal(0.0f, deviation);
  std::vector<float> values(count);
  for (float& value : values) value = normal(random);
  return values;
}

TEST(ByteBookTest, ProductsAreFoundAgainExactly) {
  std::mt19937 random(1);
  for (int round = 0; round < 300; ++round) {
    const int length = 1 + static_cast<int>(random() % 8);
    const auto entries = static_cast<int64_t>(1 + random() % 300);
    ByteBook book;
    book.entries = entries;
    book.length = length;
    // Subnormal numbers of fp16 as well.
    for (int j = 0; j < length; ++j) {
      book.scales.push_back(
          std::ldexp(static_cast<float>(1 + random() % 15), -24 + static_cast<int>(random() % 29)));
    }
    for (int64_t i = 0; i < entries * length; ++i) {
      book.codes.push_back(static_cast<int8_t>(static_cast<int>(random() % 255) - 127));
    }
    const std::vector<float> values = book.Values();
    const Tensor tensor = AsTensor(values, length, round % 3, DType::kF16);
    const std::optional<ByteBook> found = AsByteBook(tensor.view(), length);
    ASSERT_TRUE(found.has_value()) << "round " << round;
    EXPECT_EQ(found->entries, entries);
    EXPECT_EQ(found->Values(), values);
    for (int j = 0; j < length; ++j) EXPECT_GE(found->scales[j], book.scales[j]);
  }
}

TEST(ByteBookTest, OtherNumbersAreNone) {
  std::mt19937 random(2);
  const std::vector<float> values = Normal(4096 * 8, 1.0f, random);
  for (const DType dtype : {DType::kF16, DType::kBF16, DType::kF32}) {
    EXPECT_FALSE(AsByteBook(AsTensor(values, 8, 0, dtype).view(), 8).has_value());
  }
  const float infinity = std::numeric_limits<float>::infinity();
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const float largest = std::numeric_limits<float>::max();
  const float least = std::numeric_limits<float>::denorm_min();
  // What is no number; 128 steps; 17 as a factor of all and 17 * 127 steps; far apart.
  for (const std::vector<float>& book : std::vector<std::vector<float>>{
           {infinity}, {nan}, {1, 128}, {17 * 127, 17}, {largest, least}, {15, 16, 127}}) {
    const bool is = book.size() == 3;
    EXPECT_EQ(AsByteBook(AsTensor(book, 1, 0, DType::kF32).view(), 1).has_value(), is);
  }
}

TEST(ByteBookTest, ZerosAreABook) {
  const Tensor tensor = AsTensor({0.0f, -0.0f, 0.0f, 3.0f}, 2, 1, DType::kF16);
  const std::optional<ByteBook> found = AsByteBook(tensor.view(), 2);
  ASSERT_TRUE(found.has_value());
  EXPECT_EQ(found->scales, (std::vector<float>{1.0f, 3.0f}));
  EXPECT_EQ(found->codes, (std::vector<int8_t>{0, 0, 0, 1}));
}

TEST(ByteBookTest, ARoundedBookIsExactInItsDTypeAndNear) {
  std::mt19937 random(3);
  for (const DType dtype : {DType::kF16, DType::kBF16, DType::kF32}) {
    for (const float deviation : {1e-6f, 1e-3f, 1.0f, 1e3f}) {
      const std::vector<float> values = Normal(256 * 5, deviation, random);
      const ByteBook book = RoundToByteBook(values, 5, {}, dtype);
      const std::vector<float> rounded = book.Values();
      const Tensor tensor = AsTensor(rounded, 5, 3, dtype);
      const std::optional<ByteBook> found = AsByteBook(tensor.view(), 5);
      ASSERT_TRUE(found.has_value()) << deviation;
      EXPECT_EQ(found->Values(), rounded);
      for (int j = 0; j < 5; ++j) {
        double largest = 0.0, loss = 0.0;
        for (int64_t i = 0; i < 256; ++i) {
          const double value = values[i * 5 + j];
          largest = std::max(largest, std::fabs(value));
          loss += (value - rounded[i * 5 + j]) * (value - rounded[i * 5 + j]);
        }
        // No worse than the first scale that suffices: at most an eighth, or twice, of 1 / 127 of
        // the largest, or a subnormal's step.
        const double step =
            std::max(largest / 127.0 * (dtype == DType::kBF16 ? 2.0 : 1.125), 0x1p-24);
        EXPECT_LE(std::sqrt(loss / 256.0), step / 2.0) << deviation;
      }
    }
  }
}

TEST(ByteBookTest, WeightsChooseWhichEntriesMatter) {
  // One entry far out that hardly matters: cutting it off leaves the others finer.
  std::mt19937 random(4);
  std::vector<float> values = Normal(64, 1.0f, random), weights(64, 1.0f);
  values[7] = 6.0f;
  weights[7] = 1e-9f;
  const ByteBook equal = RoundToByteBook(values, 1, {}, DType::kF16);
  const ByteBook weighted = RoundToByteBook(values, 1, weights, DType::kF16);
  EXPECT_LT(weighted.scales[0], equal.scales[0]);
}

TEST(ByteBookTest, WhatIsBeyondHalfIsCutOff) {
  const ByteBook book = RoundToByteBook({65504.0f, -65504.0f, 1e9f}, 1, {}, DType::kF16);
  for (const float value : book.Values()) {
    EXPECT_LE(std::fabs(value), 65504.0f);
    EXPECT_GE(std::fabs(value), 65024.0f);
  }
}

}  // namespace
}  // namespace thinwire
