// Which kernels a GPU ran, and for how long.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"

namespace thinwire {

// One run of a kernel or copy.
struct KernelRun {
  std::string name;  // as the compiler mangled it; "[copy]", "[set]"
  uint64_t begin_ns = 0;
  uint64_t end_ns = 0;
  std::array<int32_t, 3> grid = {};  // blocks of threads; zeros for copies
};

struct KernelTimes {
  struct Kernel {
    std::string name;  // without namespace, template arguments and parameters
    std::array<int32_t, 3> grid = {};
    int64_t calls = 0;
    double seconds = 0.0;  // summed over calls
    // From the latest end of the runs that ended before to its own, summed over calls: what it adds
    // to the span, however early it began. All kernels' add up to span_seconds.
    double added_seconds = 0.0;
  };
  std::vector<Kernel> kernels;  // one for each name and grid, by descending added_seconds
  double busy_seconds = 0.0;    // in which at least one ran
  double span_seconds = 0.0;    // from the first one's begin to the last one's end
};

// Sums of runs in any order.
KernelTimes SumKernelRuns(absl::Span<const KernelRun> runs);

// Records from Start to Stop all kernels and copies of this process, on all its GPUs and streams,
// those in CUDA graphs one by one. Kernels run some percent slower meanwhile. The driver's
// interface is one for the process, so only one trace can be at a time.
class KernelTrace {
 public:
  // Unimplemented in builds without CUPTI. FailedPrecondition: another trace is on. Unavailable:
  // the driver refuses (its message says why: another profiler, or missing rights).
  static absl::StatusOr<std::unique_ptr<KernelTrace>> Start();

  virtual ~KernelTrace() = default;

  // What was recorded; what has not ended yet is missing, so synchronise streams before. Once.
  virtual absl::StatusOr<KernelTimes> Stop() = 0;
};

}  // namespace thinwire
