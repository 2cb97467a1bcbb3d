// CodedLinear and IntegerLinear on the CPU. Private to kernels/coded_linear.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "kernels/coded_linear/coded_linear.h"
#include "kernels/core/stream.h"

namespace thinwire {

// InvalidArgument with what the structs promise and what was found.
absl::Status CheckCodedLinearArgs(const CodedLinearArgs& args, Device device);
absl::Status CheckIntegerLinearArgs(const IntegerLinearArgs& args, Device device);

// Consecutive columns inside one group, with one step. Kernels work on whole blocks: they take rows
// of x that are rearranged so that a segment's blocks follow each other, with zeros in the columns
// of a block that belong to another segment or to none.
struct Segment {
  int64_t group;
  int64_t first_column;  // of x
  int64_t num_columns;
  int64_t first_block;  // of the panel
  int64_t num_blocks;
  int64_t skip;     // columns of the first block before the segment's
  int64_t blocked;  // where its blocks begin in a rearranged row
  float step;
};

// The segments between offsets (the ends of groups are among them), in ascending order.
std::vector<Segment> PlanSegments(const CodedWeights& weights, absl::Span<const int32_t> offsets,
                                  absl::Span<const float> steps);

// Columns of a rearranged row.
int64_t BlockedColumns(const CodedWeights& weights, absl::Span<const Segment> segments);

// Up to this many tokens weights are unpacked in registers, for each few tokens again; beyond, into
// memory (coded_linear_bench measures both).
inline constexpr int64_t kFewIntegerTokens = 8;
inline constexpr int64_t kFewFloatTokens = 32;

// Arguments are checked, on the CPU, and neither tokens nor features are none. The choice by number
// of tokens, and the two ways for any number.
absl::Status CodedLinearCpu(const CodedLinearArgs& args, Stream& stream);
absl::Status CodedLinearFewTokens(const CodedLinearArgs& args, Stream& stream);
absl::Status CodedLinearManyTokens(const CodedLinearArgs& args, Stream& stream);
absl::Status IntegerLinearCpu(const IntegerLinearArgs& args, Stream& stream);
absl::Status IntegerLinearFewTokens(const IntegerLinearArgs& args, Stream& stream);
absl::Status IntegerLinearManyTokens(const IntegerLinearArgs& args, Stream& stream);

}  // namespace thinwire
