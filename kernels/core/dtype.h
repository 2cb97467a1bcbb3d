// Element types of tensors in memory, in checkpoints and on the wire.
#pragma once

#include <cstdint>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace thinwire {

// kU4 and kU3 are packed codes: value j of a row occupies bits [j * bits, (j + 1) * bits) of the
// row, little-endian, rows padded to whole bytes.
enum class DType : uint8_t { kF32, kF16, kBF16, kI8, kU8, kI16, kU16, kI32, kI64, kU4, kU3 };

// Bits of one element: 32, 16, 8, 4 or 3 and so on.
int DTypeBits(DType dtype);

// Bytes of `num_elements` consecutive elements of one row, rounded up to whole bytes.
int64_t DTypeBytes(DType dtype, int64_t num_elements);

// "fp32", "fp16", "bf16", "int8", "uint8", ...: the spelling of flags and reports.
absl::string_view DTypeName(DType dtype);

// Parses the spelling of DTypeName. InvalidArgument names what was expected.
absl::StatusOr<DType> ParseDType(absl::string_view name);

// True for kF32, kF16 and kBF16.
bool IsFloat(DType dtype);

}  // namespace thinwire
