#include <cuda_runtime_api.h>

#include <cstdio>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "kernels/core/backend.h"
#include "kernels/core/status_macros.h"

namespace thinwire::backend {
namespace {

absl::Status FromCuda(cudaError_t error, absl::string_view call, Device device) {
  if (error == cudaSuccess) return absl::OkStatus();
  const std::string message =
      absl::StrCat(call, " on ", DeviceName(device), ": ", cudaGetErrorString(error));
  if (error == cudaErrorMemoryAllocation) return absl::ResourceExhaustedError(message);
  return absl::InternalError(message);
}

// Destructors cannot return a status: they say what went wrong and go on.
void LogFailure(const absl::Status& status) {
  if (!status.ok()) std::fprintf(stderr, "thinwire: %s\n", status.ToString().c_str());
}

}  // namespace

bool IsCuda() { return true; }

int NumDevices() {
  int count = 0;
  return cudaGetDeviceCount(&count) == cudaSuccess ? count : 0;
}

absl::StatusOr<std::byte*> Allocate(int64_t size_bytes, Device device) {
  TW_RETURN_IF_ERROR(FromCuda(cudaSetDevice(device.index), "cudaSetDevice", device));
  void* data = nullptr;
  TW_RETURN_IF_ERROR(Annotate(FromCuda(cudaMalloc(&data, size_bytes), "cudaMalloc", device),
                              absl::StrCat("allocating ", size_bytes, " bytes")));
  return static_cast<std::byte*>(data);
}

void Free(std::byte* data, Device device) {
  LogFailure(FromCuda(cudaFree(data), "cudaFree", device));
}

absl::StatusOr<void*> CreateStream(Device device) {
  TW_RETURN_IF_ERROR(FromCuda(cudaSetDevice(device.index), "cudaSetDevice", device));
  cudaStream_t stream = nullptr;
  TW_RETURN_IF_ERROR(FromCuda(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking),
                              "cudaStreamCreateWithFlags", device));
  return stream;
}

void DestroyStream(void* stream, Device device) {
  LogFailure(
      FromCuda(cudaStreamDestroy(static_cast<cudaStream_t>(stream)), "cudaStreamDestroy", device));
}

absl::Status SynchronizeStream(void* stream, Device device) {
  return FromCuda(cudaStreamSynchronize(static_cast<cudaStream_t>(stream)), "cudaStreamSynchronize",
                  device);
}

absl::Status CopyAsync(void* to, const void* from, int64_t size_bytes, void* stream,
                       Device device) {
  return FromCuda(
      cudaMemcpyAsync(to, from, size_bytes, cudaMemcpyDefault, static_cast<cudaStream_t>(stream)),
      "cudaMemcpyAsync", device);
}

}  // namespace thinwire::backend
