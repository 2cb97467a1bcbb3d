// A cache full of numbers that nobody computed, for benchmarks.
#pragma once

#include "absl/status/status.h"
#include "kernels/core/stream.h"
#include "runtime/cache/paged_kv_cache.h"

namespace thinwire {

// Overwrites all pages and exact rows: values evenly spread in [-1, 1), codes of random bits; the
// same numbers repeat every MiB or so. Waits for the stream, which is of the cache's device.
absl::Status FillWithNoise(PagedKvCache& cache, Stream& stream);

}  // namespace thinwire
