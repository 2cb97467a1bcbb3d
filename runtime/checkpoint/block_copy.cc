#include "runtime/checkpoint/block_copy.h"

#include <algorithm>
#include <cstring>

#include "kernels/convert/convert.h"
#include "kernels/core/check.h"

namespace thinwire {
namespace {

// File bytes between two DropPages: how much of the file is resident at once.
constexpr int64_t kStepBytes = int64_t{4} << 20;

// The system maps pages around a touched one, up to a huge page.
constexpr int64_t kPagesAround = int64_t{2} << 20;

constexpr int64_t kElementsInFlight = 1024;

// `from` may have any alignment.
void ConvertRow(const std::byte* from, DType from_dtype, std::byte* to, DType to_dtype, int64_t n) {
  alignas(64) std::byte stored[kElementsInFlight * sizeof(float)];
  alignas(64) float values[kElementsInFlight];
  for (int64_t i = 0; i < n; i += kElementsInFlight) {
    const int64_t count = std::min(kElementsInFlight, n - i);
    std::memcpy(stored, from + DTypeBytes(from_dtype, i), DTypeBytes(from_dtype, count));
    ConvertToFloat(stored, from_dtype, values, count);
    ConvertFromFloat(values, to + DTypeBytes(to_dtype, i), to_dtype, count);
  }
}

void CopyRow(const std::byte* from, DType from_dtype, std::byte* to, DType to_dtype, int64_t n) {
  if (from_dtype == to_dtype) {
    std::memcpy(to, from, DTypeBytes(from_dtype, n));
  } else {
    ConvertRow(from, from_dtype, to, to_dtype, n);
  }
}

void DropPagesAround(const MappedFile& file, int64_t begin, int64_t end) {
  const auto size = static_cast<int64_t>(file.bytes().size());
  begin = std::max<int64_t>(0, begin - kPagesAround);
  end = std::min(size, end + kPagesAround);
  file.DropPages(begin, end - begin);
}

}  // namespace

void CopyBlock(const MappedFile& file, const TensorInfo& tensor, Range rows, Range columns,
               TensorView out) {
  TW_CHECK(out.device() == Device::Cpu());
  if (rows.size() == 0 || columns.size() == 0) return;
  int64_t num_rows = rows.size();
  int64_t num_columns = columns.size();
  const int64_t from_stride =
      tensor.shape.size() == 2 ? tensor.shape[1] : 1;  // elements between rows
  const int64_t to_stride = out.row_stride();
  const int64_t first = rows.begin * from_stride + columns.begin;
  if (num_columns == from_stride && out.contiguous()) {
    num_columns *= num_rows;
    num_rows = 1;
  }
  const int64_t element_bytes = DTypeBytes(tensor.dtype, 1);
  const int64_t elements_per_step = kStepBytes / element_bytes;
  const int64_t rows_per_step = std::max<int64_t>(1, elements_per_step / from_stride);
  auto* to = static_cast<std::byte*>(out.mutable_raw());
  for (int64_t row = 0; row < num_rows; row += rows_per_step) {
    const int64_t row_end = std::min(num_rows, row + rows_per_step);
    // More than one step of columns only if a row alone is longer than a step.
    for (int64_t column = 0; column < num_columns; column += elements_per_step) {
      const int64_t count = std::min(elements_per_step, num_columns - column);
      const auto offset_of = [&](int64_t r, int64_t c) {
        return tensor.offset + (first + r * from_stride + c) * element_bytes;
      };
      for (int64_t r = row; r < row_end; ++r) {
        CopyRow(file.bytes().data() + offset_of(r, column), tensor.dtype,
                to + DTypeBytes(out.dtype(), r * to_stride + column), out.dtype(), count);
      }
      DropPagesAround(file, offset_of(row, column), offset_of(row_end - 1, column + count));
    }
  }
}

}  // namespace thinwire
