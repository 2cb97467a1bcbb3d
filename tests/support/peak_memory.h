// How much memory a piece of work needs, for tests.
#pragma once

#include <cstdint>

#include "absl/functional/function_ref.h"

namespace thinwire {

// Why resident memory means nothing in this build; null where it does.
const char* WhyMemoryIsNotMeasurable();

struct PeakMemory {
  int64_t result = 0;        // what the work returned; -1 also when it could not be run
  int64_t growth_bytes = 0;  // most resident bytes while it ran, less those before; -1: unknown
};

// Runs `work` in a child process, which shares nothing but what is resident at the start, and
// measures it. `work` returns a number >= 0 of its choice.
PeakMemory MeasurePeakMemory(absl::FunctionRef<int64_t()> work);

}  // namespace thinwire
