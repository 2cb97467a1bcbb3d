// What this host's processors can do at most: the limits that kernels and engines are measured
// against.
#pragma once

#include <cstdint>

#include "kernels/core/thread_pool.h"

namespace thinwire {

// Bytes per second at which the pool's threads together read `num_bytes` of memory again and again,
// the fastest of several passes. A working set larger than all caches gives the memory's rate, a
// smaller one the cache's that it fits into.
double MeasureReadRate(int64_t num_bytes, ThreadPool& pool);

// Floating-point operations per second of the BLAS library's sgemm, every thread of the pool
// multiplying [512, 512] by [512, 2048] by itself, the fastest of several rounds.
double MeasureSgemmRate(ThreadPool& pool);

}  // namespace thinwire
