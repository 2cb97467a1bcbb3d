#include <algorithm>
#include <cstring>
#include <utility>

#include "kernels/coded_linear/integer_cpu.h"
#include "kernels/core/status_macros.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/coded_linear/integer_prepare_cpu.cc"
#include "hwy/foreach_target.h"
// After foreach_target.h.
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace thinwire {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

int32_t SumCodes(const uint8_t* HWY_RESTRICT codes, int64_t n) {
  int64_t i = 0;
  int64_t sum = 0;
#if HWY_TARGET != HWY_SCALAR
  // Short vectors, for segments are short, too.
  const hn::CappedTag<uint8_t, 16> d;
  const hn::Repartition<uint64_t, decltype(d)> d64;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  auto sums = hn::Zero(d64);
  for (; i + lanes <= n; i += lanes) sums = hn::Add(sums, hn::SumsOf8(hn::LoadU(d, codes + i)));
  sum = static_cast<int64_t>(hn::GetLane(hn::SumOfLanes(d64, sums)));
#endif
  for (; i < n; ++i) sum += codes[i];
  return static_cast<int32_t>(sum);
}

// The sums of rows [begin, end).
void SumSegments(const IntegerCall& call, int32_t* HWY_RESTRICT sums, int64_t begin, int64_t end) {
  const ConstTensorView& codes = call.args->codes;
  const auto num_segments = static_cast<int64_t>(call.segments.size());
  for (int64_t t = begin; t < end; ++t) {
    const uint8_t* const row = codes.data<uint8_t>() + t * codes.row_stride();
    for (int64_t s = 0; s < num_segments; ++s) {
      const Segment& segment = call.segments[static_cast<size_t>(s)];
      const int32_t sum = SumCodes(row + segment.first_column, segment.num_columns);
      const int32_t half = std::min(sum, 32767);
      sums[t * num_segments + s] =
          IsShort(segment) ? static_cast<int32_t>((static_cast<uint32_t>(-half) & 0xffff) |
                                                  static_cast<uint32_t>(half - sum) << 16)
                           : sum;
    }
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace thinwire
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace thinwire {
namespace {

HWY_EXPORT(SumSegments);

constexpr int64_t kCodesPerThread = 1 << 16;

int64_t RoundUp64(int64_t bytes) { return (bytes + 63) / 64 * 64; }

void Rearrange(const IntegerCall& call, uint8_t* to, int64_t begin, int64_t end) {
  const ConstTensorView& codes = call.args->codes;
  for (int64_t t = begin; t < end; ++t) {
    const uint8_t* const from = codes.data<uint8_t>() + t * codes.row_stride();
    uint8_t* const row = to + t * call.x_stride;
    std::memset(row, 0, static_cast<size_t>(call.x_stride));
    for (const Segment& segment : call.segments) {
      std::memcpy(row + segment.blocked + segment.skip, from + segment.first_column,
                  static_cast<size_t>(segment.num_columns));
    }
  }
}

}  // namespace

absl::StatusOr<IntegerCall> PrepareIntegerCall(const IntegerLinearArgs& args,
                                               std::vector<Segment> segments, bool wants_sums,
                                               int64_t scratch_bytes, Stream& stream) {
  const int64_t num_tokens = args.codes.dim(0);
  const int64_t in_features = args.codes.dim(1);
  IntegerCall call;
  call.args = &args;
  call.segments = std::move(segments);
  call.x_stride = BlockedColumns(*args.weights, call.segments);
  // Only whole blocks add up to as many columns.
  const bool rearranged = call.x_stride != in_features;
  const int64_t x_bytes = rearranged ? RoundUp64(num_tokens * call.x_stride) : 0;
  const auto num_segments = static_cast<int64_t>(call.segments.size());
  const int64_t sum_bytes =
      wants_sums ? RoundUp64(num_tokens * num_segments * static_cast<int64_t>(sizeof(int32_t))) : 0;
  TW_ASSIGN_OR_RETURN(call.scratch, stream.Scratch(scratch_bytes + x_bytes + sum_bytes));
  auto* const sums = reinterpret_cast<int32_t*>(call.scratch + scratch_bytes);
  auto* const x = reinterpret_cast<uint8_t*>(call.scratch + scratch_bytes + sum_bytes);
  call.code_sums = wants_sums ? sums : nullptr;
  call.x = rearranged ? x : args.codes.data<uint8_t>();
  if (!rearranged) call.x_stride = args.codes.row_stride();
  if (!wants_sums && !rearranged) return call;
  const int64_t grain = std::max<int64_t>(1, kCodesPerThread / in_features);
  stream.pool().ParallelFor(num_tokens, grain, [&](int64_t begin, int64_t end) {
    if (wants_sums) HWY_DYNAMIC_DISPATCH(SumSegments)(call, sums, begin, end);
    if (rearranged) Rearrange(call, x, begin, end);
  });
  return call;
}

}  // namespace thinwire
#endif  // HWY_ONCE
