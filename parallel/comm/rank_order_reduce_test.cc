#include "parallel/comm/rank_order_reduce.h"

#include <bit>
#include <cmath>
#include <limits>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/core/float16.h"

namespace thinwire {
namespace {

template <typename T>
std::vector<T> Reduce(DType dtype, ReduceOp op, const std::vector<std::vector<T>>& parts) {
  ThreadPool pool(2);
  std::vector<const void*> pointers;
  for (const std::vector<T>& part : parts) pointers.push_back(part.data());
  std::vector<T> out(parts[0].size());
  ReduceInRankOrder(dtype, op, pointers, static_cast<int64_t>(out.size()), out.data(), pool);
  return out;
}

// Reducing one part is a conversion to fp32 and back.
TEST(RankOrderReduceTest, EveryHalfAndBFloat16ComesBackUnchanged) {
  std::vector<Half> halves;
  std::vector<BFloat16> bfloats;
  for (uint32_t bits = 0; bits <= 0xffff; ++bits) {
    halves.push_back(Half{static_cast<uint16_t>(bits)});
    bfloats.push_back(BFloat16{static_cast<uint16_t>(bits)});
  }
  const std::vector<Half> half_results = Reduce<Half>(DType::kF16, ReduceOp::kSum, {halves});
  const std::vector<BFloat16> bfloat_results =
      Reduce<BFloat16>(DType::kBF16, ReduceOp::kSum, {bfloats});
  for (uint32_t bits = 0; bits <= 0xffff; ++bits) {
    EXPECT_EQ(half_results[bits].bits, ToHalf(ToFloat(halves[bits])).bits);
    EXPECT_EQ(bfloat_results[bits].bits, ToBFloat16(ToFloat(bfloats[bits])).bits);
  }
}

// All pairs of a spread of halves: every kind of rounding, overflow, subnormals, infinities, NaN.
TEST(RankOrderReduceTest, SumsRoundAsTheScalarConversionsDo) {
  std::vector<Half> a;
  std::vector<Half> b;
  std::vector<BFloat16> c;
  std::vector<BFloat16> d;
  for (uint32_t x = 0; x <= 0xffff; x += 97) {
    for (uint32_t y = 0; y <= 0xffff; y += 89) {
      a.push_back(Half{static_cast<uint16_t>(x)});
      b.push_back(Half{static_cast<uint16_t>(y)});
      c.push_back(BFloat16{static_cast<uint16_t>(x)});
      d.push_back(BFloat16{static_cast<uint16_t>(y)});
    }
  }
  const std::vector<Half> halves = Reduce<Half>(DType::kF16, ReduceOp::kSum, {a, b});
  const std::vector<BFloat16> bfloats = Reduce<BFloat16>(DType::kBF16, ReduceOp::kSum, {c, d});
  for (size_t i = 0; i < a.size(); ++i) {
    const Half half = ToHalf(ToFloat(a[i]) + ToFloat(b[i]));
    const BFloat16 bfloat = ToBFloat16(ToFloat(c[i]) + ToFloat(d[i]));
    if (std::isnan(ToFloat(half))) {
      ASSERT_TRUE(std::isnan(ToFloat(halves[i])));
    } else {
      ASSERT_EQ(halves[i].bits, half.bits) << ToFloat(a[i]) << " + " << ToFloat(b[i]);
    }
    if (std::isnan(ToFloat(bfloat))) {
      ASSERT_TRUE(std::isnan(ToFloat(bfloats[i])));
    } else {
      ASSERT_EQ(bfloats[i].bits, bfloat.bits) << ToFloat(c[i]) << " + " << ToFloat(d[i]);
    }
  }
}

TEST(RankOrderReduceTest, AddsFromTheLeftInFp32) {
  // In fp16 the first sum would round 2048 + 1 to 2048 and lose both ones.
  const Half big = ToHalf(2048.0f);
  const Half one = ToHalf(1.0f);
  EXPECT_EQ(ToFloat(Reduce<Half>(DType::kF16, ReduceOp::kSum, {{big}, {one}, {one}})[0]), 2050.0f);
  // In fp32 the order shows: (2^24 + 1) + 1 rounds twice, (1 + 1) + 2^24 not at all.
  const float large = 0x1p24f;
  EXPECT_EQ(Reduce<float>(DType::kF32, ReduceOp::kSum, {{large}, {1}, {1}})[0], large);
  EXPECT_EQ(Reduce<float>(DType::kF32, ReduceOp::kSum, {{1}, {1}, {large}})[0], large + 2);
}

TEST(RankOrderReduceTest, KeepsNegativeZeroAndWrapsIntegers) {
  EXPECT_TRUE(std::signbit(Reduce<float>(DType::kF32, ReduceOp::kSum, {{-0.0f}, {-0.0f}})[0]));
  constexpr int32_t kMost = std::numeric_limits<int32_t>::max();
  EXPECT_EQ(Reduce<int32_t>(DType::kI32, ReduceOp::kSum, {{kMost}, {1}})[0],
            std::numeric_limits<int32_t>::min());
}

TEST(RankOrderReduceTest, AMaximumWithNanIsNan) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  EXPECT_TRUE(std::isnan(Reduce<float>(DType::kF32, ReduceOp::kMax, {{nan}, {1.0f}})[0]));
  EXPECT_TRUE(std::isnan(Reduce<float>(DType::kF32, ReduceOp::kMax, {{1.0f}, {nan}, {2.0f}})[0]));
}

TEST(RankOrderReduceTest, OutputMayBeAnyPart) {
  ThreadPool pool(1);
  for (int which = 0; which < 3; ++which) {
    std::vector<std::vector<float>> parts(3);
    for (int i = 0; i < 5000; ++i) {
      for (int r = 0; r < 3; ++r) parts[r].push_back(static_cast<float>((r + 1) * i));
    }
    const void* const pointers[] = {parts[0].data(), parts[1].data(), parts[2].data()};
    ReduceInRankOrder(DType::kF32, ReduceOp::kSum, pointers, 5000, parts[which].data(), pool);
    for (int i = 0; i < 5000; ++i) ASSERT_EQ(parts[which][i], 6.0f * i);
  }
}

}  // namespace
}  // namespace thinwire
