#include "kernels/coded_linear/coded_linear_cpu.h"

#include <cstddef>

#include "kernels/coded_linear/coded_layout.h"

namespace thinwire {

std::vector<Segment> PlanSegments(const CodedWeights& weights, absl::Span<const int32_t> offsets,
                                  absl::Span<const float> steps) {
  const int64_t width = BlockColumns(weights.bits());
  std::vector<Segment> segments;
  segments.reserve(steps.size());
  int64_t group = 0;
  int64_t blocked = 0;
  for (size_t s = 0; s < steps.size(); ++s) {
    while (weights.group_offsets()[group + 1] <= offsets[s]) ++group;
    const int64_t begin = offsets[s] - weights.group_offsets()[group];
    const int64_t end = offsets[s + 1] - weights.group_offsets()[group];
    const int64_t num_blocks = (end + width - 1) / width - begin / width;
    segments.push_back({group, offsets[s], end - begin,
                        weights.block_offsets()[group] + begin / width, num_blocks, begin % width,
                        blocked, steps[s]});
    blocked += num_blocks * width;
  }
  return segments;
}

int64_t BlockedColumns(const CodedWeights& weights, absl::Span<const Segment> segments) {
  return segments.back().blocked + segments.back().num_blocks * BlockColumns(weights.bits());
}

absl::Status CodedLinearCpu(const CodedLinearArgs& args, Stream& stream) {
  return args.batch_invariant || args.x.dim(0) <= kFewFloatTokens
             ? CodedLinearFewTokens(args, stream)
             : CodedLinearManyTokens(args, stream);
}

absl::Status IntegerLinearCpu(const IntegerLinearArgs& args, Stream& stream) {
  return args.codes.dim(0) <= kFewIntegerTokens ? IntegerLinearFewTokens(args, stream)
                                                : IntegerLinearManyTokens(args, stream);
}

}  // namespace thinwire
