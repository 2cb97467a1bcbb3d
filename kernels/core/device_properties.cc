#include "kernels/core/device_properties.h"

#include "kernels/core/backend.h"
#include "kernels/core/status_macros.h"

namespace thinwire {

absl::StatusOr<DeviceProperties> GetDeviceProperties(Device device) {
  if (device.kind == DeviceKind::kCpu) {
    return absl::InvalidArgumentError("device properties: expected a GPU, found the CPU");
  }
  TW_RETURN_IF_ERROR(CheckDeviceUsable(device));
  return backend::GetProperties(device);
}

absl::StatusOr<bool> CanAccessPeer(Device device, Device peer) {
  TW_RETURN_IF_ERROR(CheckDeviceUsable(device));
  TW_RETURN_IF_ERROR(CheckDeviceUsable(peer));
  return backend::CanAccessPeer(device, peer);
}

}  // namespace thinwire
