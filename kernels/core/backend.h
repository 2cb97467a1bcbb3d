// What a device backend provides to core. Private to kernels/core: backend_cuda.cc implements it
// with CUDA, backend_none.cc answers Unimplemented; CMake links one of the two.
#pragma once

#include <cstddef>
#include <cstdint>

#include "absl/status/statusor.h"
#include "kernels/core/device.h"

namespace thinwire::backend {

bool IsCuda();
int NumDevices();
absl::StatusOr<std::byte*> Allocate(int64_t size_bytes, Device device);
void Free(std::byte* data, Device device);
absl::StatusOr<void*> CreateStream(Device device);
void DestroyStream(void* stream, Device device);
absl::Status SynchronizeStream(void* stream, Device device);
absl::Status CopyAsync(void* to, const void* from, int64_t size_bytes, void* stream, Device device);

}  // namespace thinwire::backend
