// For tests: runs a body once for each instruction set that the kernels were compiled for.
#pragma once

#include <cstdint>

#include "absl/functional/function_ref.h"
#include "absl/strings/string_view.h"
#include "hwy/highway.h"

namespace thinwire {

// Calls body(name) with kernels dispatched to each compiled instruction set that this machine has,
// then restores the choice. Not thread-safe: no kernel may run meanwhile on another thread.
inline void ForEachCpuTarget(absl::FunctionRef<void(absl::string_view name)> body) {
  const int64_t targets = HWY_TARGETS & hwy::SupportedTargets();
  for (int64_t left = targets; left != 0; left &= left - 1) {
    const int64_t target = left & -left;
    hwy::SetSupportedTargetsForTest(target);
    hwy::GetChosenTarget().DeInit();
    body(hwy::TargetName(target));
  }
  hwy::SetSupportedTargetsForTest(0);
  hwy::GetChosenTarget().DeInit();
}

}  // namespace thinwire
