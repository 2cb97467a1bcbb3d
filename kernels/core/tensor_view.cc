#include "kernels/core/tensor_view.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace thinwire {

ConstTensorView::ConstTensorView(const void* data, DType dtype,
                                 std::initializer_list<int64_t> shape, Device device)
    : data_(data), rank_(static_cast<int>(shape.size())), dtype_(dtype), device_(device) {
  TW_CHECK_LE(rank_, kMaxRank);
  int i = 0;
  for (const int64_t dim : shape) {
    TW_CHECK_GE(dim, 0);
    shape_[i++] = dim;
  }
  row_stride_ = 1;
  for (int d = 1; d < rank_; ++d) row_stride_ *= shape_[d];
}

int64_t ConstTensorView::num_elements() const {
  if (rank_ == 0) return 0;
  int64_t count = 1;
  for (int d = 0; d < rank_; ++d) count *= shape_[d];
  return count;
}

bool ConstTensorView::contiguous() const {
  int64_t row = 1;
  for (int d = 1; d < rank_; ++d) row *= shape_[d];
  return rank_ == 0 || shape_[0] <= 1 || row_stride_ == row;
}

int64_t ConstTensorView::size_bytes() const {
  TW_CHECK(contiguous());
  return DTypeBytes(dtype_, num_elements());
}

ConstTensorView ConstTensorView::Rows(int64_t begin, int64_t count) const {
  TW_CHECK_GE(rank_, 1);
  TW_CHECK(begin >= 0 && count >= 0 && begin + count <= shape_[0]);
  ConstTensorView rows = *this;
  rows.data_ = static_cast<const std::byte*>(data_) + DTypeBytes(dtype_, begin * row_stride_);
  rows.shape_[0] = count;
  return rows;
}

ConstTensorView ConstTensorView::Columns(int64_t begin, int64_t count) const {
  TW_CHECK_EQ(rank_, 2);
  TW_CHECK(begin >= 0 && count >= 0 && begin + count <= shape_[1]);
  ConstTensorView columns = *this;
  columns.data_ = static_cast<const std::byte*>(data_) + DTypeBytes(dtype_, begin);
  columns.shape_[1] = count;
  return columns;
}

std::string ConstTensorView::DebugString() const {
  return absl::StrCat(DTypeName(dtype_), "[",
                      absl::StrJoin(shape_.begin(), shape_.begin() + rank_, ", "), "]");
}

}  // namespace thinwire
