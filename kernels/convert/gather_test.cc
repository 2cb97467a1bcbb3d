#include "kernels/convert/gather.h"

#include <numeric>
#include <random>
#include <vector>

#include "gtest/gtest.h"

namespace thinwire {
namespace {

TEST(GatherColumnsTest, ColumnsComeInTheOrderAskedFor) {
  ThreadPool pool(2);
  Stream stream = Stream::Cpu(&pool);
  std::mt19937 random(3);
  for (const int64_t width : {1, 7, 500}) {
    std::vector<int32_t> order(width);
    std::iota(order.begin(), order.end(), 0);
    std::shuffle(order.begin(), order.end(), random);
    const int64_t num_tokens = 150, stride = width + 3;
    std::vector<float> x(num_tokens * stride), out(num_tokens * width, -1.0f);
    std::iota(x.begin(), x.end(), 0.0f);
    const TensorView rows =
        TensorView(x.data(), DType::kF32, {num_tokens, stride}).Columns(0, width);
    ASSERT_TRUE(GatherColumns(rows, ConstTensorView(order.data(), DType::kI32, {width}),
                              TensorView(out.data(), DType::kF32, {num_tokens, width}), stream)
                    .ok());
    for (int64_t t = 0; t < num_tokens; ++t) {
      for (int64_t j = 0; j < width; ++j) {
        ASSERT_EQ(out[t * width + j], x[t * stride + order[j]]);
      }
    }
  }
}

TEST(GatherColumnsTest, ShapesThatDoNotFitAreRefused) {
  ThreadPool pool(1);
  Stream stream = Stream::Cpu(&pool);
  std::vector<float> x(8), out(8);
  const std::vector<int32_t> order = {0, 1, 2};
  EXPECT_EQ(GatherColumns(ConstTensorView(x.data(), DType::kF32, {2, 4}),
                          ConstTensorView(order.data(), DType::kI32, {3}),
                          TensorView(out.data(), DType::kF32, {2, 4}), stream)
                .code(),
            absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace thinwire
