// Codebooks whose elements are 8-bit integers times a scale of each component:
//
//   c[i, j] = scale[j] * q[i, j],  q in [-127, 127],  scale[j] = m * 2^e with m an integer below 16
//
// so that each product has at most 11 significant bits and is exact in fp16: such a book is stored
// as any book of fp16 numbers, which any reader takes, and this one recognises it by its numbers.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "absl/types/span.h"
#include "kernels/core/tensor_view.h"

namespace thinwire {

inline constexpr int kMostByteCode = 127;
inline constexpr int kMostByteScale = 15;  // of m

struct ByteBook {
  int64_t entries = 0;
  int length = 0;
  std::vector<int8_t> codes;  // [entries, length]: q
  std::vector<float> scales;  // [length]

  // [entries, length], exact.
  std::vector<float> Values() const;
};

// The factors of a book [entries, at least length] of fp16, bf16 or fp32 in host memory, or nothing
// if its first `length` elements are no products of the above. Of several scales the largest; of a
// component that is 0 everywhere, 1. The sign of a zero is lost.
std::optional<ByteBook> AsByteBook(const ConstTensorView& book, int length);

// The nearest such book to values [entries, length], all finite: of each component the scale that
// gives the least sum of squared errors, each times its entry's weight ([entries], not negative, or
// empty for ones), and to the nearest code. Every element is exact in `dtype`: fp16 keeps all m,
// bf16, which has 8 significant bits, powers of two only. What is beyond fp16's range is cut off at
// its largest such number.
ByteBook RoundToByteBook(absl::Span<const float> values, int length,
                         absl::Span<const float> weights, DType dtype);

}  // namespace thinwire
