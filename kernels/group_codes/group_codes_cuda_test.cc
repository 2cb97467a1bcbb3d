#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "kernels/group_codes/group_codes.h"
#include "kernels/testing/gpu_test.h"
#include "kernels/testing/on_device.h"
#include "kernels/testing/rounded.h"

namespace thinwire {
namespace {

struct Shape {
  int64_t num_rows, width, gap;
};

// All sizes of groups, 1 to 128.
constexpr Shape kShapes[] = {{33, 1, 0},  {5, 6, 1},   {33, 20, 3}, {9, 8, 0},
                             {5, 48, 0},  {3, 96, 2},  {2, 64, 1},  {33, 100, 0},
                             {2, 256, 5}, {1, 704, 0}, {7, 640, 0}, {257, 4096, 8}};

class GroupCodesCudaTest : public GpuTest {
 protected:
  std::mt19937 random_{std::random_device{}()};

  // Rows of all kinds: normal, with outliers, zero, huge (sums overflow), tiny, not finite.
  std::vector<float> Values(int64_t rows, int64_t columns) {
    std::vector<float> values;
    for (int64_t t = 0; t < rows; ++t) {
      for (int64_t c = 0; c < columns; ++c) {
        float value = std::normal_distribution<float>()(random_);
        if (c % 67 == 5) value *= 60.0f;
        if (t % 16 == 11) value *= 1e37f;
        if (t % 16 == 12) value *= 1e-38f;
        if (t % 16 == 13) value = 0.0f;
        if (t % 16 == 14 && c % 131 == 7) value = std::numeric_limits<float>::infinity();
        if (t % 16 == 15) value = std::round(value);  // ties
        values.push_back(value);
      }
    }
    return values;
  }

  std::vector<uint8_t> Encode(const GroupCodesFormat& format, const Tensor& x, Stream& on) {
    const int64_t rows = x.view().dim(0);
    const Tensor there = OnDevice(x.view(), on);
    const std::vector<uint8_t> poison(static_cast<size_t>(rows * format.row_bytes()), 0xa5);
    Tensor codes =
        OnDevice(ConstTensorView(poison.data(), DType::kU8, {rows, format.row_bytes()}), on);
    const absl::Status status =
        EncodeGroups({format, there.view().Columns(0, format.width), codes.mutable_view()}, on);
    EXPECT_TRUE(status.ok()) << status;
    return ::thinwire::Values<uint8_t>(codes.view(), on);
  }
};

TEST_F(GroupCodesCudaTest, EncodedBytesAreThoseOfTheCpu) {
  for (const int bits : {8, 6, 5, 4}) {
    for (const Shape& shape : kShapes) {
      for (const DType dtype : kFloatDTypes) {
        SCOPED_TRACE(absl::StrCat("bits ", bits, " ", DTypeName(dtype), " ", shape.num_rows, " x ",
                                  shape.width));
        const GroupCodesFormat format{bits, shape.width};
        const int64_t stride = shape.width + shape.gap;
        const Tensor x =
            RoundedTensor(Values(shape.num_rows, stride), dtype, shape.num_rows, stride);
        ASSERT_EQ(Encode(format, x, stream()), Encode(format, x, host()));
      }
    }
  }
}

TEST_F(GroupCodesCudaTest, DecodedSumsAreThoseOfTheCpu) {
  int turn = 0;
  for (const int bits : {8, 6, 5, 4}) {
    for (const Shape& shape : kShapes) {
      for (const DType dtype : kFloatDTypes) {
        const int num_parts = 1 + ++turn % 4;
        const bool accumulate = turn % 2 == 0;
        SCOPED_TRACE(absl::StrCat("bits ", bits, " ", DTypeName(dtype), " ", shape.num_rows, " x ",
                                  shape.width, " parts ", num_parts));
        const GroupCodesFormat format{bits, shape.width};
        const int64_t stride = shape.width + shape.gap;
        std::vector<Tensor> parts;
        for (int i = 0; i < num_parts; ++i) {
          const Tensor x = RoundedTensor(Values(shape.num_rows, shape.width), DType::kF32,
                                         shape.num_rows, shape.width);
          const std::vector<uint8_t> codes = Encode(format, x, host());
          parts.push_back(OnHost(
              ConstTensorView(codes.data(), DType::kU8, {shape.num_rows, format.row_bytes()}),
              host()));
        }
        const Tensor before =
            RoundedTensor(Values(shape.num_rows, stride), dtype, shape.num_rows, stride);
        const auto decode = [&](Stream& on) {
          std::vector<Tensor> there;
          std::vector<ConstTensorView> views;
          for (const Tensor& part : parts) {
            there.push_back(OnDevice(part.view(), on));
            views.push_back(there.back().view());
          }
          Tensor y = OnDevice(before.view(), on);
          const absl::Status status = DecodeGroups(
              {format, views, y.mutable_view().Columns(0, shape.width), accumulate}, on);
          EXPECT_TRUE(status.ok()) << status;
          return Floats(OnHost(y.view(), on));
        };
        const std::vector<float> got = decode(stream());
        const std::vector<float> want = decode(host());
        for (size_t i = 0; i < got.size(); ++i) {
          if (std::isnan(got[i]) && std::isnan(want[i])) continue;  // of any payload
          ASSERT_EQ(std::memcmp(&got[i], &want[i], sizeof(float)), 0)
              << "element " << i << " is " << got[i] << ", not " << want[i];
        }
      }
    }
  }
}

}  // namespace
}  // namespace thinwire
