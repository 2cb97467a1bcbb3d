// Results of CUDA calls and kernel launches as statuses. For *_cuda.* and *.cu files.
#pragma once

#include <cuda_runtime_api.h>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "kernels/core/device.h"
#include "kernels/core/status_macros.h"
#include "kernels/core/stream.h"

namespace thinwire {

// OK for cudaSuccess. Else a message of the call ("cudaMalloc"), the device and CUDA's words:
// ResourceExhausted without memory, FailedPrecondition without a driver or with one too old, or
// without code for this GPU; Unavailable where the GPU fell out or is busy; Internal for the rest.
absl::Status CudaStatus(cudaError_t error, absl::string_view call, Device device);

// The same from where a destructor can return no status: says it on standard error and goes on.
void LogCudaFailure(cudaError_t error, absl::string_view call, Device device);

// Whether the kernel launched last by this thread could be launched: bad configurations, no code
// for this GPU. What goes wrong while it runs, Stream::Synchronize reports.
absl::Status CudaLaunchStatus(absl::string_view kernel, const Stream& stream);

// The stream for CUDA calls and launches, after making its device the calling thread's current one,
// which launches need. Cheap where it is already.
cudaStream_t CudaStream(const Stream& stream);

}  // namespace thinwire

// Returns from the enclosing function when the CUDA runtime call `expr` on `device` fails.
#define TW_RETURN_IF_CUDA_ERROR(expr, device)                  \
  do {                                                         \
    const cudaError_t tw_error_ = (expr);                      \
    if (tw_error_ != cudaSuccess) [[unlikely]]                 \
      return ::thinwire::CudaStatus(tw_error_, #expr, device); \
  } while (false)
