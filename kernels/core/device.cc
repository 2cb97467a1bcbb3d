#include "kernels/core/device.h"

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "kernels/core/backend.h"
#include "kernels/core/status_macros.h"

namespace thinwire {

std::string DeviceName(Device device) {
  return device.kind == DeviceKind::kCpu ? "cpu" : absl::StrCat("cuda:", device.index);
}

int NumCudaDevices() { return backend::CountDevices().value_or(0); }

bool BuiltWithCuda() { return backend::IsCuda(); }

absl::Status CheckDeviceUsable(Device device) {
  if (device.kind == DeviceKind::kCpu) return absl::OkStatus();
  if (!BuiltWithCuda()) {
    return absl::UnimplementedError(absl::StrCat(
        DeviceName(device),
        ": this build has no CUDA; configure with -DTHINWIRE_CUDA=ON (preset cuda-release)"));
  }
  TW_ASSIGN_OR_RETURN(const int count, backend::CountDevices());
  if (device.index < 0 || device.index >= count) {
    return absl::NotFoundError(
        absl::StrCat(DeviceName(device), " does not exist; this host has ", count, " GPUs"));
  }
  return absl::OkStatus();
}

}  // namespace thinwire
