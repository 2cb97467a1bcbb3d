#include "kernels/convert/convert.h"

#include <bit>
#include <cstdint>
#include <limits>
#include <random>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/core/float16.h"
#include "kernels/testing/cpu_targets.h"

namespace thinwire {
namespace {

uint32_t Bits(float value) { return std::bit_cast<uint32_t>(value); }

// Floats that meet every branch of the conversions: random bit patterns, the neighbourhood of every
// tie and threshold of fp16 and bf16, denormals, zeros, infinities and NaN with several payloads.
std::vector<float> AwkwardFloats() {
  std::vector<float> values;
  const auto add = [&values](uint32_t bits) {
    values.push_back(std::bit_cast<float>(bits));
    values.push_back(std::bit_cast<float>(bits | 0x80000000u));
  };
  std::mt19937 random(20240611);
  for (int i = 0; i < 200000; ++i) add(random() & 0x7fffffffu);
  for (int i = 0; i < 100000; ++i) add(0x32000000u + random() % 0x16000000u);  // range of fp16
  for (int i = 0; i < 20000; ++i) add(random() % 0x00800000u);                 // denormals
  for (uint32_t half = 0; half < 0x7c00u; ++half) {  // each midpoint of fp16 and its neighbours
    const float low = ToFloat(Half{static_cast<uint16_t>(half)});
    const float high = half == 0x7bff ? 65536.0f : ToFloat(Half{static_cast<uint16_t>(half + 1)});
    const uint32_t middle = Bits(0.5f * (low + high));
    for (uint32_t offset = 0; offset < 3; ++offset) add(middle - 1 + offset);
  }
  for (uint32_t upper = 0; upper <= 0x7fffu; ++upper) {  // the same for bf16
    for (const uint32_t lower : {0x0000u, 0x7fffu, 0x8000u, 0x8001u, 0xffffu}) {
      add(upper << 16 | lower);
    }
  }
  for (const uint32_t nan : {0x7f800001u, 0x7f801fffu, 0x7fc00000u, 0x7fffffffu, 0x7fa00000u}) {
    add(nan);
  }
  return values;
}

TEST(ConvertTest, EveryHalfBecomesTheFloatOfTheDefinition) {
  std::vector<Half> halves(65536);
  for (uint32_t i = 0; i < 65536; ++i) halves[i].bits = static_cast<uint16_t>(i);
  ForEachCpuTarget([&](absl::string_view target) {
    std::vector<float> floats(halves.size());
    ConvertToFloat(halves.data(), DType::kF16, floats.data(), 65536);
    for (uint32_t i = 0; i < 65536; ++i) {
      ASSERT_EQ(Bits(floats[i]), Bits(ToFloat(halves[i]))) << target << ", half " << i;
    }
  });
}

TEST(ConvertTest, EveryBFloat16BecomesTheFloatOfTheDefinition) {
  std::vector<BFloat16> values(65536);
  for (uint32_t i = 0; i < 65536; ++i) values[i].bits = static_cast<uint16_t>(i);
  ForEachCpuTarget([&](absl::string_view target) {
    std::vector<float> floats(values.size());
    ConvertToFloat(values.data(), DType::kBF16, floats.data(), 65536);
    for (uint32_t i = 0; i < 65536; ++i) {
      ASSERT_EQ(Bits(floats[i]), Bits(ToFloat(values[i]))) << target << ", bfloat16 " << i;
    }
  });
}

TEST(ConvertTest, FloatsRoundAsTheDefinitionSays) {
  const std::vector<float> floats = AwkwardFloats();
  const auto n = static_cast<int64_t>(floats.size());
  ForEachCpuTarget([&](absl::string_view target) {
    std::vector<Half> halves(floats.size());
    std::vector<BFloat16> bfloats(floats.size());
    ConvertFromFloat(floats.data(), halves.data(), DType::kF16, n);
    ConvertFromFloat(floats.data(), bfloats.data(), DType::kBF16, n);
    for (size_t i = 0; i < floats.size(); ++i) {
      ASSERT_EQ(halves[i].bits, ToHalf(floats[i]).bits) << target << std::hex << Bits(floats[i]);
      ASSERT_EQ(bfloats[i].bits, ToBFloat16(floats[i]).bits)
          << target << std::hex << Bits(floats[i]);
    }
  });
}

TEST(ConvertTest, AnyLengthStaysWithinItsEnds) {
  for (int64_t n = 0; n <= 67; ++n) {
    // Exact allocations, so that a sanitizer sees an access beyond them.
    std::vector<float> floats(static_cast<size_t>(n));
    for (size_t i = 0; i < floats.size(); ++i) floats[i] = 0.1f * static_cast<float>(i) - 2.0f;
    std::vector<Half> halves(floats.size());
    std::vector<float> back(floats.size());
    ConvertFromFloat(floats.data(), halves.data(), DType::kF16, n);
    ConvertToFloat(halves.data(), DType::kF16, back.data(), n);
    std::vector<BFloat16> bfloats(floats.size());
    ConvertFromFloat(floats.data(), bfloats.data(), DType::kBF16, n);
    for (size_t i = 0; i < floats.size(); ++i) {
      ASSERT_EQ(halves[i].bits, ToHalf(floats[i]).bits);
      ASSERT_EQ(back[i], ToFloat(halves[i]));
      ASSERT_EQ(bfloats[i].bits, ToBFloat16(floats[i]).bits);
    }
  }
}

TEST(ConvertTest, StridedRowsLeaveTheColumnsBetweenThemAlone) {
  ThreadPool pool(2);
  Stream stream = Stream::Cpu(&pool);
  constexpr int64_t kRows = 37, kWide = 4100, kColumns = 4001, kFirst = 50;
  std::mt19937 random(7);
  std::vector<Half> from(kRows * kWide);
  for (Half& half : from) half.bits = static_cast<uint16_t>(random() % 0x7c00u);
  std::vector<BFloat16> to(kRows * kWide, BFloat16{0x1234});
  const TensorView source(from.data(), DType::kF16, {kRows, kWide});
  const TensorView target(to.data(), DType::kBF16, {kRows, kWide});
  ASSERT_TRUE(
      Convert(source.Columns(kFirst, kColumns), target.Columns(kFirst, kColumns), stream).ok());
  for (int64_t r = 0; r < kRows; ++r) {
    for (int64_t c = 0; c < kWide; ++c) {
      const int64_t i = r * kWide + c;
      const bool inside = c >= kFirst && c < kFirst + kColumns;
      const uint16_t expected = inside ? ToBFloat16(ToFloat(from[i])).bits : 0x1234;
      ASSERT_EQ(to[i].bits, expected) << r << ", " << c;
    }
  }
}

TEST(ConvertTest, EqualTypesAreCopied) {
  ThreadPool pool(1);
  Stream stream = Stream::Cpu(&pool);
  const std::vector<uint16_t> from = {0x7c01, 0x0001, 0xfe00};  // a signalling NaN among them
  std::vector<uint16_t> to(3);
  ASSERT_TRUE(Convert(ConstTensorView(from.data(), DType::kF16, {3}),
                      TensorView(to.data(), DType::kF16, {3}), stream)
                  .ok());
  EXPECT_EQ(to, from);
}

TEST(ConvertTest, ArgumentsThatDoNotFitAreNamed) {
  ThreadPool pool(1);
  Stream stream = Stream::Cpu(&pool);
  std::vector<float> data(8);
  const absl::Status shapes = Convert(ConstTensorView(data.data(), DType::kF32, {2, 4}),
                                      TensorView(data.data(), DType::kF32, {2, 3}), stream);
  EXPECT_EQ(shapes.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_NE(shapes.message().find("fp32[2, 4]"), absl::string_view::npos);
  EXPECT_NE(shapes.message().find("fp32[2, 3]"), absl::string_view::npos);
  const absl::Status types = Convert(ConstTensorView(data.data(), DType::kI32, {2}),
                                     TensorView(data.data(), DType::kF32, {2}), stream);
  EXPECT_EQ(types.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_NE(types.message().find("int32[2]"), absl::string_view::npos);
  const absl::Status devices =
      Convert(ConstTensorView(data.data(), DType::kF32, {2}, Device::Cuda(0)),
              TensorView(data.data(), DType::kF32, {2}), stream);
  EXPECT_EQ(devices.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_TRUE(Convert(ConstTensorView(data.data(), DType::kF16, {0, 4}),
                      TensorView(data.data(), DType::kF32, {0, 4}), stream)
                  .ok());
}

}  // namespace
}  // namespace thinwire
