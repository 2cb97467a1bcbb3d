#include "tests/golden/npy.h"

#include <cstring>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/string_view.h"
#include "kernels/core/mapped_file.h"
#include "kernels/core/status_macros.h"

namespace thinwire {

absl::StatusOr<NpyMatrix> ReadNpyMatrix(const std::string& path) {
  TW_ASSIGN_OR_RETURN(const MappedFile file, MappedFile::Open(path));
  const absl::string_view bytes(reinterpret_cast<const char*>(file.bytes().data()),
                                file.bytes().size());
  const auto malformed = [&](absl::string_view what) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": ", what));
  };
  // Version 1: magic, version, u16 length, a Python dictionary.
  constexpr absl::string_view kMagic("\x93NUMPY\x01\x00", 8);
  if (!absl::StartsWith(bytes, kMagic) || bytes.size() < 10) return malformed("not .npy 1.0");
  const size_t header_size =
      static_cast<unsigned char>(bytes[8]) + size_t{256} * static_cast<unsigned char>(bytes[9]);
  if (bytes.size() < 10 + header_size) return malformed("header is cut");
  const absl::string_view header = bytes.substr(10, header_size);
  const absl::string_view data = bytes.substr(10 + header_size);
  if (!absl::StrContains(header, "'descr': '<f4'") ||
      !absl::StrContains(header, "'fortran_order': False")) {
    return malformed("expected float32 in C order");
  }
  const size_t open = header.find('(');
  const size_t close = header.find(')');
  if (open == absl::string_view::npos || close == absl::string_view::npos || close < open) {
    return malformed("no shape");
  }
  const std::vector<std::string> dims =
      absl::StrSplit(header.substr(open + 1, close - open - 1), ',');
  NpyMatrix matrix;
  if (dims.size() != 2 || !absl::SimpleAtoi(dims[0], &matrix.rows) ||
      !absl::SimpleAtoi(dims[1], &matrix.columns) || matrix.rows < 1 || matrix.columns < 1) {
    return malformed("expected two dimensions");
  }
  const auto num_values = static_cast<size_t>(matrix.rows * matrix.columns);
  if (data.size() != num_values * sizeof(float)) return malformed("data does not fit the shape");
  matrix.values.resize(num_values);
  std::memcpy(matrix.values.data(), data.data(), data.size());
  return matrix;
}

}  // namespace thinwire
