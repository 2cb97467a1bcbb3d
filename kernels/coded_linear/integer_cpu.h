// What the two ways of IntegerLinear share. Private to kernels/coded_linear.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/coded_linear/coded_linear_cpu.h"
#include "kernels/core/stream.h"

namespace thinwire {

// Whether the sum of a segment's codes fits into two signed 16-bit numbers.
inline bool IsShort(const Segment& segment) { return segment.num_columns <= 2 * 32767 / 255; }

// A call's arguments as the kernels want them.
struct IntegerCall {
  const IntegerLinearArgs* args = nullptr;
  std::vector<Segment> segments;
  const uint8_t* x = nullptr;  // rearranged codes, [num_tokens, x_stride]
  int64_t x_stride = 0;
  // If wanted, sums of the codes of each segment, [num_tokens, num_segments]: in a short segment as
  // a pair of 16-bit numbers that add up to the sum, both negated.
  const int32_t* code_sums = nullptr;
  std::byte* scratch = nullptr;  // for the kernel: 64-byte aligned
};

// Rearranges the codes, unless they lie as the kernels want them already, and adds them up if
// `wants_sums`. Uses the stream's scratch; `scratch_bytes` of it are the kernel's.
absl::StatusOr<IntegerCall> PrepareIntegerCall(const IntegerLinearArgs& args,
                                               std::vector<Segment> segments, bool wants_sums,
                                               int64_t scratch_bytes, Stream& stream);

}  // namespace thinwire
