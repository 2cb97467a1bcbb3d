#include <algorithm>
#include <cstddef>
#include <cstring>

#include "kernels/convert/convert.h"
#include "kernels/embedding/embedding_internal.h"

namespace thinwire {
namespace {

// Below this many elements, waking another thread costs more than it saves.
constexpr int64_t kElementsPerThread = 32768;

// Elements converted at a time: two such blocks stay in the first-level cache.
constexpr int64_t kBlock = 1024;

// to (+)= from, `width` elements, by way of fp32.
void ConvertRow(const std::byte* from, DType from_dtype, std::byte* to, DType to_dtype,
                bool accumulate, int64_t width) {
  alignas(64) float values[kBlock];
  alignas(64) float sums[kBlock];
  for (int64_t i = 0; i < width; i += kBlock) {
    const int64_t count = std::min(kBlock, width - i);
    ConvertToFloat(from + DTypeBytes(from_dtype, i), from_dtype, values, count);
    std::byte* block = to + DTypeBytes(to_dtype, i);
    if (accumulate) {
      ConvertToFloat(block, to_dtype, sums, count);
      for (int64_t j = 0; j < count; ++j) values[j] += sums[j];
    }
    ConvertFromFloat(values, block, to_dtype, count);
  }
}

}  // namespace

void EmbeddingCpu(const EmbeddingArgs& args, Stream& stream) {
  const int64_t width = args.out.dim(1);
  const DType from_dtype = args.table.dtype();
  const DType to_dtype = args.out.dtype();
  const auto row_bytes = static_cast<size_t>(DTypeBytes(to_dtype, width));
  const int32_t* ids = args.ids.data<int32_t>();
  const int64_t num_late = args.late_ids.empty() ? 0 : args.late_ids.dim(0);
  const auto* table = static_cast<const std::byte*>(args.table.raw());
  auto* out = static_cast<std::byte*>(args.out.mutable_raw());
  const int64_t grain = std::max<int64_t>(1, kElementsPerThread / width);
  stream.pool().ParallelFor(args.out.dim(0), grain, [&](int64_t begin, int64_t end) {
    for (int64_t token = begin; token < end; ++token) {
      std::byte* to = out + DTypeBytes(to_dtype, token * args.out.row_stride());
      int64_t id = ids[token];
      if (id < 0 && -1 - id < num_late) id = args.late_ids.data<int32_t>()[-1 - id];
      const int64_t row = id - args.first_id;
      if (row < 0 || row >= args.table.dim(0)) {
        if (!args.accumulate) std::memset(to, 0, row_bytes);
        continue;
      }
      const std::byte* from = table + DTypeBytes(from_dtype, row * args.table.row_stride());
      if (!args.accumulate && from_dtype == to_dtype) {
        std::memcpy(to, from, row_bytes);
      } else {
        ConvertRow(from, from_dtype, to, to_dtype, args.accumulate, width);
      }
    }
  });
}

}  // namespace thinwire
