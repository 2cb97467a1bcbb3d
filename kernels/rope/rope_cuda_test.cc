#include <cmath>
#include <random>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "kernels/rope/rope.h"
#include "kernels/testing/gpu_test.h"
#include "kernels/testing/on_device.h"
#include "kernels/testing/rounded.h"

namespace thinwire {
namespace {

class RopeCudaTest : public GpuTest {};

TEST_F(RopeCudaTest, AgreesWithTheDefinition) {
  struct Shape {
    int64_t num_tokens, num_heads, head_dim, gap;
  };
  const Shape shapes[] = {{1, 1, 2, 0},  {3, 5, 6, 1},    {2, 32, 128, 0},
                          {1, 8, 80, 8}, {300, 4, 64, 0}, {5, 40, 128, 3}};
  std::mt19937 random(std::random_device{}());
  for (const Shape& shape : shapes) {
    for (const DType dtype : kFloatDTypes) {
      SCOPED_TRACE(absl::StrCat(DTypeName(dtype), " ", shape.num_tokens, " x ", shape.num_heads,
                                " x ", shape.head_dim, " gap ", shape.gap));
      const int64_t width = shape.num_heads * shape.head_dim;
      const int64_t stride = width + shape.gap;
      std::vector<float> values;
      for (int64_t i = 0; i < shape.num_tokens * stride; ++i) {
        values.push_back(std::normal_distribution<float>()(random));
      }
      std::vector<int32_t> positions;
      for (int64_t t = 0; t < shape.num_tokens; ++t) {
        // Beyond 2^17, where sines take another way.
        positions.push_back(
            std::uniform_int_distribution<int32_t>(0, t == 0 ? 200000 : 4096)(random));
      }
      std::vector<float> inv_freq;
      for (int64_t i = 0; i < shape.head_dim / 2; ++i) {
        inv_freq.push_back(
            std::pow(10000.0f, -2.0f * static_cast<float>(i) / static_cast<float>(shape.head_dim)));
      }
      Tensor x = RoundedTensor(values, dtype, shape.num_tokens, stride);
      const std::vector<float> before = Floats(x);
      Tensor device_x = OnDevice(x.view(), stream());
      const Tensor device_positions = VectorOnDevice(positions, stream());
      const Tensor device_inv_freq = VectorOnDevice(inv_freq, stream());
      const auto args = [&](bool device) {
        RopeArgs a;
        a.x = (device ? device_x : x).mutable_view().Columns(0, width);
        a.positions = device ? device_positions.view()
                             : ConstTensorView(positions.data(), DType::kI32, {shape.num_tokens});
        a.inv_freq = device ? device_inv_freq.view()
                            : ConstTensorView(inv_freq.data(), DType::kF32, {shape.head_dim / 2});
        a.num_heads = shape.num_heads;
        a.head_dim = shape.head_dim;
        return a;
      };
      ASSERT_TRUE(RopeReference(args(false)).ok());
      const absl::Status status = Rope(args(true), stream());
      ASSERT_TRUE(status.ok()) << status;
      const std::vector<float> want = Floats(x);
      const std::vector<float> got = Floats(OnHost(device_x.view(), stream()));
      for (size_t i = 0; i < got.size(); ++i) {
        const auto column = static_cast<int64_t>(i) % stride;
        if (column >= width) {
          ASSERT_EQ(got[i], before[i]) << "gap overwritten";
          continue;
        }
        // sincosf is within 2 ulp (4 eps); a product and a fused sum round once more each. Both
        // results are rounded to the dtype.
        const int64_t half = shape.head_dim / 2;
        const size_t partner = column % shape.head_dim < half ? i + half : i - half;
        const double magnitude = std::fabs(before[i]) + std::fabs(before[partner]);
        ASSERT_NEAR(
            got[i], want[i],
            6 * 0x1p-24 * magnitude + 2.01 * UnitRoundoff(dtype) * std::fabs(want[i]) + 0x1p-24)
            << "column " << column;
      }
    }
  }
}

}  // namespace
}  // namespace thinwire
