#include <algorithm>
#include <numeric>
#include <random>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "kernels/attention/row_strips.h"
#include "kernels/testing/gpu_test.h"
#include "kernels/testing/on_device.h"

namespace thinwire {
namespace {

// Pages of some layers on the CPU and, with the same bytes, on the GPU.
class RowStripsCudaTest : public GpuTest {
 protected:
  struct Shape {
    int64_t num_pages, num_heads, page_size, row_bytes, used_bytes, num_rows;
  };

  std::vector<uint8_t> Random(int64_t n) {
    std::vector<uint8_t> bytes(static_cast<size_t>(n));
    std::generate(bytes.begin(), bytes.end(), [&] { return static_cast<uint8_t>(random_()); });
    return bytes;
  }

  // All heads but the first of two layers, and a row of the first.
  static std::vector<RowStrip> Strips(const Shape& shape, std::byte* memory) {
    const int64_t head = shape.page_size * shape.row_bytes, page = shape.num_heads * head;
    std::vector<RowStrip> strips;
    for (int layer = 0; layer < 2; ++layer) {
      for (int64_t h = 1; h < shape.num_heads; ++h) {
        strips.push_back({.pages = memory + layer * shape.num_pages * page + h * head,
                          .page_bytes = page,
                          .row_bytes = shape.row_bytes,
                          .used_bytes = shape.used_bytes,
                          .first = h == 1 ? std::min<int64_t>(1, shape.num_rows) : 0,
                          .count = shape.num_rows - (h == 1 ? 1 : 0)});
      }
    }
    strips.push_back({.pages = memory, .row_bytes = 6, .used_bytes = 6, .count = 1});
    return strips;
  }

  void Check(const Shape& shape) {
    SCOPED_TRACE(absl::StrCat("rows of ", shape.used_bytes, " of ", shape.row_bytes, " bytes, ",
                              shape.num_rows, " of them, pages of ", shape.page_size));
    const int64_t size = 2 * shape.num_pages * shape.num_heads * shape.page_size * shape.row_bytes;
    std::vector<uint8_t> here = Random(size);
    Tensor there = VectorOnDevice(here, stream());
    std::vector<int32_t> page_ids(static_cast<size_t>(shape.num_pages));
    std::iota(page_ids.begin(), page_ids.end(), 0);
    std::shuffle(page_ids.begin(), page_ids.end(), random_);
    const auto strips = Strips(shape, reinterpret_cast<std::byte*>(here.data()));
    const auto strips_there =
        Strips(shape, static_cast<std::byte*>(there.mutable_view().mutable_raw()));
    const RowStrips rows = {strips, page_ids, shape.page_size};
    const RowStrips rows_there = {strips_there, page_ids, shape.page_size};
    const int64_t bytes = PackedBytes(rows);
    std::vector<uint8_t> expected(bytes), found(bytes);
    ASSERT_TRUE(PackRows(rows, TensorView(expected.data(), DType::kU8, {bytes}), host()).ok());
    absl::Status status =
        PackRows(rows_there, TensorView(found.data(), DType::kU8, {bytes}), stream());
    ASSERT_TRUE(status.ok()) << status;
    ASSERT_TRUE(expected == found);

    const std::vector<uint8_t> other = Random(bytes);
    const ConstTensorView packed(other.data(), DType::kU8, {bytes});
    ASSERT_TRUE(UnpackRows(rows, packed, host()).ok());
    status = UnpackRows(rows_there, packed, stream());
    ASSERT_TRUE(status.ok()) << status;
    ASSERT_TRUE(Values<uint8_t>(there.view(), stream()) == here);
  }

  std::mt19937 random_{std::random_device{}()};
};

TEST_F(RowStripsCudaTest, GivesTheBytesOfTheCpu) {
  for (const auto& [row, used] :
       {std::pair(64, 64), {64, 48}, {20, 12}, {12, 12}, {7, 5}, {6, 2}}) {
    for (const int64_t num_rows : {1, 2, 17, 47}) Check({4, 3, 16, row, used, num_rows});
    Check({11, 2, 1, row, used, 11});
    Check({1, 5, 300, row, used, 299});
  }
}

TEST_F(RowStripsCudaTest, WhatTakesSeveralPiecesIsWhole) {
  Check({600, 3, 16, 256, 256, 16 * 600 - 3});  // strips of 2.4 MB
  Check({1200, 2, 16, 512, 508, 16 * 1200});    // one of 9.7 MB
}

}  // namespace
}  // namespace thinwire
