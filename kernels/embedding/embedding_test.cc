#include "kernels/embedding/embedding.h"

#include <cstdint>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/convert/convert.h"
#include "kernels/core/tensor.h"
#include "kernels/testing/rounded.h"

namespace thinwire {
namespace {

using ::testing::HasSubstr;

std::vector<float> Normal(int64_t count, std::mt19937& random) {
  std::vector<float> values(static_cast<size_t>(count));
  for (float& v : values) v = std::normal_distribution<float>(0.0f, 1.0f)(random);
  return values;
}

// A shard of `num_rows` ids from first_id on; half the ids asked for are outside it. Conversions
// are exact or correctly rounded, so results are compared bit for bit.
void CheckLookUp(DType table_dtype, DType out_dtype, int64_t num_tokens, int64_t width,
                 int64_t padding, bool accumulate, int num_threads) {
  SCOPED_TRACE(testing::Message() << std::string(DTypeName(table_dtype)) << " -> "
                                  << std::string(DTypeName(out_dtype)) << "[" << num_tokens << ", "
                                  << width << "] accumulate " << accumulate);
  constexpr int64_t kRows = 23;
  constexpr int64_t kFirst = 10;
  std::mt19937 random(static_cast<unsigned>(width));
  const int64_t stride = width + padding;
  const Tensor table = RoundedTensor(Normal(kRows * stride, random), table_dtype, kRows, stride);
  const std::vector<float> rows = Floats(table);
  Tensor out = RoundedTensor(Normal(num_tokens * stride, random), out_dtype, num_tokens, stride);
  std::vector<float> want = Floats(out);
  std::vector<int32_t> ids(static_cast<size_t>(num_tokens));
  for (int32_t& id : ids) id = std::uniform_int_distribution<int32_t>(-1, 2 * kRows)(random);
  ids[0] = kFirst + kRows - 1;
  ids[ids.size() / 2] = kFirst + kRows;
  for (int64_t t = 0; t < num_tokens; ++t) {
    const int64_t row = ids[static_cast<size_t>(t)] - kFirst;
    for (int64_t i = 0; i < width; ++i) {
      float& value = want[static_cast<size_t>(t * stride + i)];
      if (!accumulate) value = 0.0f;
      if (row >= 0 && row < kRows) value += rows[static_cast<size_t>(row * stride + i)];
    }
  }
  EmbeddingArgs args;
  args.ids = ConstTensorView(ids.data(), DType::kI32, {num_tokens});
  args.table = table.view().Columns(0, width);
  args.first_id = kFirst;
  args.accumulate = accumulate;
  args.out = out.mutable_view().Columns(0, width);
  ThreadPool pool(num_threads);
  Stream stream = Stream::Cpu(&pool);
  ASSERT_TRUE(Embedding(args, stream).ok());
  EXPECT_EQ(Floats(out), Floats(RoundedTensor(want, out_dtype, num_tokens, stride)));
}

TEST(EmbeddingTest, CopiesConvertsOrAddsRows) {
  for (const DType table_dtype : kFloatDTypes) {
    for (const DType out_dtype : kFloatDTypes) {
      for (const bool accumulate : {false, true}) {
        for (const int64_t width : {1, 17, 64, 1031}) {
          for (const int64_t padding : {0, 5}) {
            CheckLookUp(table_dtype, out_dtype, 37, width, padding, accumulate, 1);
          }
        }
      }
    }
  }
}

TEST(EmbeddingTest, ThreadsSplitTokens) {
  CheckLookUp(DType::kF16, DType::kF32, 101, 1031, 1, false, 3);
  CheckLookUp(DType::kBF16, DType::kBF16, 101, 1031, 1, true, 3);
}

TEST(EmbeddingTest, IdsBelowZeroStandForLateOnes) {
  std::mt19937 random(9);
  const Tensor table = RoundedTensor(Normal(60, random), DType::kF32, 12, 5);
  const std::vector<int32_t> ids = {-3, 105, -1, 101, -2, -4};
  const std::vector<int32_t> late = {111, 7, 100};  // the second is in another shard
  const std::vector<int32_t> known = {100, 105, 111, 101, 7, -4};
  const auto look_up = [&](const std::vector<int32_t>& which, ConstTensorView late_ids) {
    Tensor out = Tensor::Allocate(DType::kF32, {6, 5}, Device::Cpu()).value();
    ThreadPool pool(1);
    Stream stream = Stream::Cpu(&pool);
    const absl::Status status = Embedding({.ids = ConstTensorView(which.data(), DType::kI32, {6}),
                                           .table = table.view(),
                                           .first_id = 100,
                                           .out = out.mutable_view(),
                                           .late_ids = late_ids},
                                          stream);
    EXPECT_TRUE(status.ok()) << status;
    return Floats(out);
  };
  EXPECT_EQ(look_up(ids, ConstTensorView(late.data(), DType::kI32, {3})), look_up(known, {}));
}

TEST(EmbeddingTest, ShardsAddUpToTheWholeTable) {
  std::mt19937 random(7);
  const Tensor table = RoundedTensor(Normal(60, random), DType::kF16, 12, 5);
  const std::vector<int32_t> ids = {11, 0, 5, 6, 5};
  Tensor whole = Tensor::Allocate(DType::kF32, {5, 5}, Device::Cpu()).value();
  Tensor sum = Tensor::Allocate(DType::kF32, {5, 5}, Device::Cpu()).value();
  ThreadPool pool(1);
  Stream stream = Stream::Cpu(&pool);
  EmbeddingArgs args;
  args.ids = ConstTensorView(ids.data(), DType::kI32, {5});
  args.table = table.view();
  args.out = whole.mutable_view();
  ASSERT_TRUE(Embedding(args, stream).ok());
  args.out = sum.mutable_view();
  for (const int64_t first : {0, 4, 8}) {
    args.table = table.view().Rows(first, 4);
    args.first_id = first;
    args.accumulate = first > 0;
    ASSERT_TRUE(Embedding(args, stream).ok());
  }
  EXPECT_EQ(Floats(sum), Floats(whole));
}

TEST(EmbeddingTest, ExtremeIdsAreOutside) {
  std::vector<float> table = {1.0f};
  std::vector<float> out = {5.0f, 5.0f};
  const std::vector<int32_t> ids = {std::numeric_limits<int32_t>::min(),
                                    std::numeric_limits<int32_t>::max()};
  EmbeddingArgs args;
  args.ids = ConstTensorView(ids.data(), DType::kI32, {2});
  args.table = ConstTensorView(table.data(), DType::kF32, {1, 1});
  args.first_id = 1000;
  args.out = TensorView(out.data(), DType::kF32, {2, 1});
  ThreadPool pool(1);
  Stream stream = Stream::Cpu(&pool);
  ASSERT_TRUE(Embedding(args, stream).ok());
  EXPECT_EQ(out, std::vector<float>(2, 0.0f));
}

TEST(EmbeddingTest, RefusesWrongArgumentsByName) {
  std::vector<float> data(12);
  const std::vector<int32_t> ids = {0, 1, 2};
  EmbeddingArgs args;
  args.ids = ConstTensorView(ids.data(), DType::kI32, {3});
  args.table = ConstTensorView(data.data(), DType::kF32, {3, 4});
  args.out = TensorView(data.data(), DType::kF32, {3, 4});
  ThreadPool pool(1);
  Stream stream = Stream::Cpu(&pool);
  const auto message = [&](const EmbeddingArgs& bad) {
    const absl::Status status = Embedding(bad, stream);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    return std::string(status.message());
  };
  EmbeddingArgs bad = args;
  bad.table = ConstTensorView(data.data(), DType::kF32, {4, 3});
  EXPECT_THAT(message(bad), HasSubstr("found table fp32[4, 3] and out fp32[3, 4]"));
  bad = args;
  bad.ids = ConstTensorView(ids.data(), DType::kI32, {2});
  EXPECT_THAT(message(bad), HasSubstr("ids int32[3], found int32[2]"));
  bad = args;
  bad.out = TensorView(data.data(), DType::kF32, {3, 4}, Device::Cuda(0));
  EXPECT_THAT(message(bad), HasSubstr("out on cuda:0"));
  args.ids = ConstTensorView(nullptr, DType::kI32, {0});
  args.out = TensorView(nullptr, DType::kF32, {0, 4});
  EXPECT_TRUE(Embedding(args, stream).ok());
}

}  // namespace
}  // namespace thinwire
