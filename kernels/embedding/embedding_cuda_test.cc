#include <random>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "kernels/embedding/embedding.h"
#include "kernels/testing/gpu_test.h"
#include "kernels/testing/on_device.h"
#include "kernels/testing/rounded.h"

namespace thinwire {
namespace {

class EmbeddingCudaTest : public GpuTest {};

TEST_F(EmbeddingCudaTest, GivesTheBitsOfTheCpu) {
  std::mt19937 random(std::random_device{}());
  const auto values = [&](int64_t n) {
    std::vector<float> v;
    for (int64_t i = 0; i < n; ++i) v.push_back(std::normal_distribution<float>()(random));
    return v;
  };
  for (const int64_t width : {1, 37, 64, 5120}) {
    for (const int64_t gap : {0, 8}) {
      for (const DType table_dtype : kFloatDTypes) {
        for (const DType dtype : kFloatDTypes) {
          for (const bool accumulate : {false, true}) {
            SCOPED_TRACE(absl::StrCat(DTypeName(table_dtype), " to ", DTypeName(dtype), " width ",
                                      width, " gap ", gap, " accumulate ", accumulate));
            constexpr int64_t kRows = 11;
            const Tensor table = RoundedTensor(values(kRows * width), table_dtype, kRows, width);
            // Below, in and above this shard's rows 100 to 110.
            const std::vector<int32_t> ids = {100, 110, 99, 111, 105, 0, 105, -1, -3, -2, -4};
            const std::vector<int32_t> late = {107, 90, 110};
            const auto tokens = static_cast<int64_t>(ids.size());
            Tensor out = RoundedTensor(values(tokens * (width + gap)), dtype, tokens, width + gap);
            const Tensor device_table = OnDevice(table.view(), stream());
            const Tensor device_ids = VectorOnDevice(ids, stream());
            const Tensor device_late = VectorOnDevice(late, stream());
            Tensor device_out = OnDevice(out.view(), stream());
            ASSERT_TRUE(Embedding({ConstTensorView(ids.data(), DType::kI32, {tokens}), table.view(),
                                   100, accumulate, out.mutable_view().Columns(0, width),
                                   ConstTensorView(late.data(), DType::kI32, {3})},
                                  host())
                            .ok());
            const absl::Status status =
                Embedding({device_ids.view(), device_table.view(), 100, accumulate,
                           device_out.mutable_view().Columns(0, width), device_late.view()},
                          stream());
            ASSERT_TRUE(status.ok()) << status;
            ASSERT_EQ(Floats(OnHost(device_out.view(), stream())), Floats(out));
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace thinwire
