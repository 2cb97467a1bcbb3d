// For benchmarks: the fastest of many runs, and the speed of kernels bound by memory beside that of
// a plain copy.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "absl/functional/function_ref.h"
#include "benchmark/benchmark.h"
#include "kernels/core/fastest.h"
#include "kernels/core/thread_pool.h"

namespace thinwire {

// Runs the benchmark's iterations. Returns the seconds of the fastest.
inline double FastestIteration(benchmark::State& state, absl::FunctionRef<void()> kernel) {
  double seconds = 1e30;
  for (auto _ : state) seconds = std::min(seconds, FastestSeconds(1, kernel));
  return seconds;
}

// Times `kernel`, which reads and writes `bytes` in all, and sets the counters "GB/s" and
// "of_copy": the share of the rate at which the same threads copy bytes / 2 to another place.
inline void RunBesideCopy(benchmark::State& state, int64_t bytes, ThreadPool& pool,
                          absl::FunctionRef<void()> kernel) {
  const double seconds = FastestIteration(state, kernel);
  const int64_t half = bytes / 2;
  const std::vector<char> from(static_cast<size_t>(half), 1);
  std::vector<char> to(static_cast<size_t>(half));
  const double copy_seconds = FastestSeconds(50, [&] {
    pool.ParallelFor(half, 1 << 16, [&](int64_t begin, int64_t end) {
      std::memcpy(to.data() + begin, from.data() + begin, static_cast<size_t>(end - begin));
    });
  });
  state.counters["GB/s"] = static_cast<double>(bytes) / seconds * 1e-9;
  state.counters["of_copy"] = copy_seconds / seconds;
}

}  // namespace thinwire
