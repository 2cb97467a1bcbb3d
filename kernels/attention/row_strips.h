// Rows of KV pages, and the same rows one behind the other.
#pragma once

#include <cstddef>
#include <cstdint>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "kernels/core/stream.h"
#include "kernels/core/tensor_view.h"

namespace thinwire {

// Rows [first, first + count) of a table of pages.
struct RowStrip {
  std::byte* pages = nullptr;  // row 0 of page 0
  int64_t page_bytes = 0;      // from a page to the next
  int64_t row_bytes = 0;       // from a row to the next
  int64_t used_bytes = 0;      // of a row, at least 1: what is packed; the rest of it is zero
  int64_t first = 0;
  int64_t count = 0;
};

// Row i lies in page page_ids[i / page_size].
struct RowStrips {
  absl::Span<const RowStrip> strips;   // in the order in which they are packed
  absl::Span<const int32_t> page_ids;  // on the host
  int64_t page_size = 0;               // rows
};

int64_t PackedBytes(const RowStrips& rows);

// Copies the used bytes of all rows to `packed`, or from there to the rows, whose rest becomes
// zero. packed: [PackedBytes(rows)] uint8 in host memory, which may overlap no row. Pages are on
// the stream's device. Done on return: on a GPU they wait for the stream, and pieces of 4 MiB go
// through page-locked memory, which the GPU reads and writes by itself and which the stream keeps.
// ResourceExhausted where that cannot be had, InvalidArgument for another size of `packed`.
absl::Status PackRows(const RowStrips& rows, TensorView packed, Stream& stream);
absl::Status UnpackRows(const RowStrips& rows, ConstTensorView packed, Stream& stream);

}  // namespace thinwire
