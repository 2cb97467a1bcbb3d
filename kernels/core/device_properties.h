// What a device is: for choosing launch shapes, and for reports.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "kernels/core/device.h"

namespace thinwire {

struct DeviceProperties {
  std::string name;              // "NVIDIA H100 80GB HBM3"
  std::string bus_id;            // where it is in its host: "0000:18:00.0"
  int driver_cuda_version = 0;   // the newest CUDA that the driver knows: 13000 is 13.0
  int runtime_cuda_version = 0;  // the one that this program uses
  int compute_capability = 0;    // 10 * major + minor: 90
  int num_multiprocessors = 0;
  int64_t memory_bytes = 0;       // in all
  int64_t free_memory_bytes = 0;  // at the time of the call, of all processes
  int64_t l2_bytes = 0;
  int64_t shared_memory_per_block_bytes = 0;  // the most that a block can ask for
};

// As the driver says; nothing is measured. For the CPU: InvalidArgument. Errors as
// CheckDeviceUsable.
absl::StatusOr<DeviceProperties> GetDeviceProperties(Device device);

// Whether kernels on `device` can read and write memory of `peer`, another GPU of this host.
absl::StatusOr<bool> CanAccessPeer(Device device, Device peer);

}  // namespace thinwire
