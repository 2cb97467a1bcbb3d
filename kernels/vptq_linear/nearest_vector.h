// Which of many short vectors is nearest: what clustering and vector quantisation spend their time
// on.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/types/span.h"

namespace thinwire {

// Vectors to search among, laid out for it.
class VectorBook {
 public:
  // vectors: [count, length], finite.
  VectorBook(absl::Span<const float> vectors, int length);

  int length() const { return length_; }
  int64_t count() const { return count_; }

  // indices[i] = argmin_c |x_i - c|^2 for x_i = from[i * length, ...), i < n; of equals, the first.
  // The comparison is of x.c - |c|^2 / 2 in fp32: of two that are as near up to its rounding,
  // either may be found. The same on every call and beside any other vectors. One thread.
  void Nearest(const float* from, int64_t n, int32_t* indices) const;

 private:
  int length_;
  int64_t count_;
  int64_t padded_;               // count_, rounded up to whole registers
  std::vector<float> columns_;   // [length, padded_]
  std::vector<float> negative_;  // [padded_]: -|c|^2 / 2; of padding, less than any score
};

}  // namespace thinwire
