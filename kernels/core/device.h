// Where memory lies and where kernels run.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace thinwire {

enum class DeviceKind { kCpu, kCuda };

struct Device {
  DeviceKind kind = DeviceKind::kCpu;
  int index = 0;  // CUDA device ordinal; 0 for the CPU

  static Device Cpu() { return Device{}; }
  static Device Cuda(int index) { return Device{DeviceKind::kCuda, index}; }

  friend bool operator==(const Device& a, const Device& b) = default;
};

// "cpu", "cuda:0".
std::string DeviceName(Device device);

// Number of usable CUDA devices: 0 without a GPU, without a driver, or in a build without CUDA.
int NumCudaDevices();

// True when this build contains the CUDA backend.
bool BuiltWithCuda();

// OK for the CPU and for an existing CUDA device; Unimplemented in a build without CUDA (says how
// to configure one), FailedPrecondition where the driver will not do, NotFound for other ordinals.
absl::Status CheckDeviceUsable(Device device);

}  // namespace thinwire
