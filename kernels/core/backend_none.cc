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
absl::StatusOr<int> CountDevices() { return NoCuda(); }
absl::StatusOr<std::byte*> Allocate(int64_t, Device) { return NoCuda(); }
void Free(std::byte*, Device) { TW_CHECK(false); }
absl::StatusOr<void*> CreateStream(Device) { return NoCuda(); }
void DestroyStream(void*, Device) { TW_CHECK(false); }
absl::Status SynchronizeStream(void*, Device) { return NoCuda(); }
absl::Status CopyRowsAsync(void*, int64_t, const void*, int64_t, int64_t, int64_t, void*, Device) {
  return NoCuda();
}
absl::Status CopyFewBytesAsync(void*, const void*, int64_t, void*, Device) { return NoCuda(); }
absl::StatusOr<std::byte*> AllocatePinned(int64_t, Device) { return NoCuda(); }
void FreePinned(std::byte*, Device) { TW_CHECK(false); }
absl::StatusOr<void*> CreateEvent(bool, Device) { return NoCuda(); }
void DestroyEvent(void*, Device) { TW_CHECK(false); }
absl::Status RecordEvent(void*, void*, Device) { return NoCuda(); }
absl::Status StreamWaitEvent(void*, void*, Device) { return NoCuda(); }
absl::Status SynchronizeEvent(void*, Device) { return NoCuda(); }
absl::StatusOr<bool> EventHappened(void*, Device) { return NoCuda(); }
absl::StatusOr<double> EventMilliseconds(void*, void*, Device) { return NoCuda(); }
absl::Status BeginCapture(void*, Device) { return NoCuda(); }
absl::StatusOr<void*> EndCapture(void*, Device) { return NoCuda(); }
void DestroyGraph(void*, Device) { TW_CHECK(false); }
absl::Status LaunchGraph(void*, void*, Device) { return NoCuda(); }
absl::StatusOr<DeviceProperties> GetProperties(Device) { return NoCuda(); }
absl::StatusOr<bool> CanAccessPeer(Device, Device) { return NoCuda(); }

}  // namespace thinwire::backend
