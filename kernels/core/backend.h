// What a device backend provides to core. Private to kernels/core: backend_cuda.cc implements it
// with CUDA, backend_none.cc answers Unimplemented; CMake links one of the two.
#pragma once

#include <cstddef>
#include <cstdint>

#include "absl/status/statusor.h"
#include "kernels/core/device.h"
#include "kernels/core/device_properties.h"

namespace thinwire::backend {

bool IsCuda();
absl::StatusOr<int> CountDevices();
absl::StatusOr<std::byte*> Allocate(int64_t size_bytes, Device device);
void Free(std::byte* data, Device device);
absl::StatusOr<void*> CreateStream(Device device);
void DestroyStream(void* stream, Device device);
absl::Status SynchronizeStream(void* stream, Device device);
absl::Status CopyRowsAsync(void* to, int64_t to_stride, const void* from, int64_t from_stride,
                           int64_t row_bytes, int64_t num_rows, void* stream, Device device);
// Of 1 to 2^30 bytes; host memory is page-locked.
absl::Status CopyFewBytesAsync(void* to, const void* from, int64_t num_bytes, void* stream,
                               Device device);
absl::StatusOr<std::byte*> AllocatePinned(int64_t size_bytes, Device device);
void FreePinned(std::byte* data, Device device);
absl::StatusOr<void*> CreateEvent(bool timed, Device device);
void DestroyEvent(void* event, Device device);
absl::Status RecordEvent(void* event, void* stream, Device device);
absl::Status StreamWaitEvent(void* stream, void* event, Device device);
absl::Status SynchronizeEvent(void* event, Device device);
absl::StatusOr<bool> EventHappened(void* event, Device device);
absl::StatusOr<double> EventMilliseconds(void* start, void* end, Device device);
absl::Status BeginCapture(void* stream, Device device);
absl::StatusOr<void*> EndCapture(void* stream, Device device);  // a graph that can be launched
void DestroyGraph(void* graph, Device device);
absl::Status LaunchGraph(void* graph, void* stream, Device device);
absl::StatusOr<DeviceProperties> GetProperties(Device device);
absl::StatusOr<bool> CanAccessPeer(Device device, Device peer);

}  // namespace thinwire::backend
