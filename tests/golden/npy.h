// NumPy's .npy files, as far as golden outputs need them.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"

namespace thinwire {

// A row-major fp32 matrix.
struct NpyMatrix {
  int64_t rows = 0;
  int64_t columns = 0;
  std::vector<float> values;  // [rows * columns]

  absl::Span<const float> Row(int64_t row) const {
    return absl::MakeConstSpan(values).subspan(row * columns, columns);
  }
};

// Reads a two-dimensional little-endian float32 array in C order. Errors name the path:
// those of opening it; InvalidArgument for anything else that it may hold.
absl::StatusOr<NpyMatrix> ReadNpyMatrix(const std::string& path);

}  // namespace thinwire
