#include <bit>
#include <cmath>
#include <cstring>
#include <numeric>
#include <random>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "kernels/convert/convert.h"
#include "kernels/convert/gather.h"
#include "kernels/testing/gpu_test.h"
#include "kernels/testing/on_device.h"
#include "kernels/testing/rounded.h"

namespace thinwire {
namespace {

class ConvertCudaTest : public GpuTest {};

// Numbers of all magnitudes, infinities and zeros, but no NaN, whose payloads may differ.
std::vector<float> AnyFloats(int64_t n, std::mt19937& random) {
  std::vector<float> values;
  while (static_cast<int64_t>(values.size()) < n) {
    const auto value = std::bit_cast<float>(static_cast<uint32_t>(random()));
    const float small = std::normal_distribution<float>()(random);
    if (!std::isnan(value)) values.push_back(values.size() % 2 == 0 ? value : small);
  }
  return values;
}

TEST_F(ConvertCudaTest, GivesTheBitsOfTheCpu) {
  std::mt19937 random(std::random_device{}());
  for (const DType from_dtype : kFloatDTypes) {
    for (const DType to_dtype : kFloatDTypes) {
      for (const int64_t width : {1, 7, 64, 4099}) {
        for (const int64_t gap : {0, 1, 8}) {
          SCOPED_TRACE(absl::StrCat(DTypeName(from_dtype), " to ", DTypeName(to_dtype), " width ",
                                    width, " gap ", gap));
          constexpr int64_t kRows = 5;
          const Tensor from = RoundedTensor(AnyFloats(kRows * (width + gap), random), from_dtype,
                                            kRows, width + gap);
          Tensor to =
              RoundedTensor(AnyFloats(kRows * (width + gap), random), to_dtype, kRows, width + gap);
          const Tensor device_from = OnDevice(from.view(), stream());
          Tensor device_to = OnDevice(to.view(), stream());
          ASSERT_TRUE(
              Convert(from.view().Columns(0, width), to.mutable_view().Columns(0, width), host())
                  .ok());
          const absl::Status status = Convert(device_from.view().Columns(0, width),
                                              device_to.mutable_view().Columns(0, width), stream());
          ASSERT_TRUE(status.ok()) << status;
          ASSERT_EQ(Floats(OnHost(device_to.view(), stream())), Floats(to));
        }
      }
    }
  }
}

TEST_F(ConvertCudaTest, EveryHalfConvertsExactly) {
  std::vector<float> finite;
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const float value = ToFloat(Half{static_cast<uint16_t>(bits)});
    if (!std::isnan(value)) finite.push_back(value);
  }
  const auto n = static_cast<int64_t>(finite.size());
  const Tensor halves = RoundedTensor(finite, DType::kF16, 1, n);
  Tensor floats = Tensor::Allocate(DType::kF32, {1, n}, stream().device()).value();
  ASSERT_TRUE(
      Convert(OnDevice(halves.view(), stream()).view(), floats.mutable_view(), stream()).ok());
  EXPECT_EQ(Values<float>(floats.view(), stream()), finite);
}

TEST_F(ConvertCudaTest, GatheredColumnsAreThoseOfTheCpu) {
  std::mt19937 random(std::random_device{}());
  for (const DType dtype : kFloatDTypes) {
    for (const int64_t width : {1, 33, 4096}) {
      constexpr int64_t kRows = 9;
      const Tensor x =
          RoundedTensor(AnyFloats(kRows * (width + 3), random), dtype, kRows, width + 3);
      Tensor out = RoundedTensor(AnyFloats(kRows * width, random), dtype, kRows, width);
      std::vector<int32_t> order(static_cast<size_t>(width));
      std::iota(order.begin(), order.end(), 0);
      std::shuffle(order.begin(), order.end(), random);
      Tensor device_out = OnDevice(out.view(), stream());
      const Tensor device_x = OnDevice(x.view(), stream());
      ASSERT_TRUE(GatherColumns(x.view().Columns(0, width),
                                ConstTensorView(order.data(), DType::kI32, {width}),
                                out.mutable_view(), host())
                      .ok());
      const Tensor device_order = VectorOnDevice(order, stream());
      ASSERT_TRUE(GatherColumns(device_x.view().Columns(0, width), device_order.view(),
                                device_out.mutable_view(), stream())
                      .ok());
      EXPECT_EQ(Floats(OnHost(device_out.view(), stream())), Floats(out)) << width;
    }
  }
}

}  // namespace
}  // namespace thinwire
