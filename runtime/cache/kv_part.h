// A sequence's K and V of some layers and KV heads, taken out of one cache and put into another as
// they lie: caches of ranks that hold different layers and heads, of one model and one dtype.
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "kernels/core/stream.h"
#include "kernels/core/tensor_view.h"
#include "parallel/plan/shard_plan.h"
#include "runtime/cache/paged_kv_cache.h"

namespace thinwire {

// Layers and KV heads as the cache counts them, from 0.
struct KvPart {
  Range layers;
  Range kv_heads;
};

// Where a cache keeps the first num_tokens tokens of a sequence.
struct KvPlace {
  absl::Span<const int32_t> pages;  // at least ceil(num_tokens / page_size)
  int64_t num_tokens = 0;
  int32_t exact_row = 0;  // of its first token, where the cache keeps that exactly
};

// Bytes of such a part of a sequence. By layer and head: the rows of K by token, those of V, and
// the first token's exact K and V where the cache has them. Of a row of codes only what the head's
// codes take, so that all caches of a model mean the same bytes, whatever heads they hold.
int64_t KvPartBytes(const KvCacheShape& shape, const KvPart& part, int64_t num_tokens);

// What these K and V would be in fp16.
int64_t KvPartFp16Bytes(const KvCacheShape& shape, const KvPart& part, int64_t num_tokens);

// bytes: [KvPartBytes] uint8 on the host; the cache is on the stream's device. Done on return, with
// the errors of PackRows (kernels/attention/row_strips.h).
absl::Status ReadKvPart(PagedKvCache& cache, const KvPart& part, const KvPlace& place,
                        TensorView bytes, Stream& stream);
absl::Status WriteKvPart(PagedKvCache& cache, const KvPart& part, const KvPlace& place,
                         ConstTensorView bytes, Stream& stream);

}  // namespace thinwire
