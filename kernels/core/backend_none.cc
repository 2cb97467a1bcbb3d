#include "absl/status/status.h"
#include "kernels/core/backend.h"
#include "kernels/core/check.h"

namespace thinwire::backend {
namespace {

absl::Status NoCuda() {
  return absl::UnimplementedError(
      "this build has no CUDA; configure with -DTHINWIRE_CUDA=ON (preset cuda-release)");
}

}  // namespace

bool IsCuda() { return false; }
int NumDevices() { return 0; }
absl::StatusOr<std::byte*> Allocate(int64_t, Device) { return NoCuda(); }
void Free(std::byte*, Device) { TW_CHECK(false); }
absl::StatusOr<void*> CreateStream(Device) { return NoCuda(); }
void DestroyStream(void*, Device) { TW_CHECK(false); }
absl::Status SynchronizeStream(void*, Device) { return NoCuda(); }
absl::Status CopyAsync(void*, const void*, int64_t, void*, Device) { return NoCuda(); }

}  // namespace thinwire::backend
