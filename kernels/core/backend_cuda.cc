#include <cuda_runtime_api.h>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "kernels/core/backend.h"
#include "kernels/core/cuda_status.h"

namespace thinwire::backend {

bool IsCuda() { return true; }

absl::StatusOr<int> CountDevices() {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error == cudaSuccess) return count;
  (void)cudaGetLastError();  // else the next launch would report it
  return CudaStatus(error, "cudaGetDeviceCount", Device::Cuda(0));
}

absl::StatusOr<std::byte*> Allocate(int64_t size_bytes, Device device) {
  TW_RETURN_IF_CUDA_ERROR(cudaSetDevice(device.index), device);
  void* data = nullptr;
  const cudaError_t error = cudaMalloc(&data, static_cast<size_t>(size_bytes));
  if (error == cudaSuccess) return static_cast<std::byte*>(data);
  (void)cudaGetLastError();
  const absl::Status status = CudaStatus(error, "cudaMalloc", device);
  size_t free = 0, total = 0;
  if (cudaMemGetInfo(&free, &total) != cudaSuccess) {
    return Annotate(status, absl::StrCat("allocating ", size_bytes, " bytes"));
  }
  return Annotate(
      status, absl::StrCat("allocating ", size_bytes, " bytes, ", free, " of ", total, " free"));
}

void Free(std::byte* data, Device device) { LogCudaFailure(cudaFree(data), "cudaFree", device); }

absl::StatusOr<void*> CreateStream(Device device) {
  TW_RETURN_IF_CUDA_ERROR(cudaSetDevice(device.index), device);
  cudaStream_t stream = nullptr;
  TW_RETURN_IF_CUDA_ERROR(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), device);
  return stream;
}

void DestroyStream(void* stream, Device device) {
  LogCudaFailure(cudaStreamDestroy(static_cast<cudaStream_t>(stream)), "cudaStreamDestroy", device);
}

absl::Status SynchronizeStream(void* stream, Device device) {
  return CudaStatus(cudaStreamSynchronize(static_cast<cudaStream_t>(stream)),
                    "cudaStreamSynchronize", device);
}

absl::Status CopyRowsAsync(void* to, int64_t to_stride, const void* from, int64_t from_stride,
                           int64_t row_bytes, int64_t num_rows, void* stream, Device device) {
  TW_RETURN_IF_CUDA_ERROR(cudaSetDevice(device.index), device);
  const auto native = static_cast<cudaStream_t>(stream);
  const auto bytes = static_cast<size_t>(row_bytes);
  if (num_rows == 1) {
    return CudaStatus(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, native),
                      "cudaMemcpyAsync", device);
  }
  return CudaStatus(
      cudaMemcpy2DAsync(to, static_cast<size_t>(to_stride), from, static_cast<size_t>(from_stride),
                        bytes, static_cast<size_t>(num_rows), cudaMemcpyDefault, native),
      "cudaMemcpy2DAsync", device);
}

absl::StatusOr<std::byte*> AllocatePinned(int64_t size_bytes, Device device) {
  TW_RETURN_IF_CUDA_ERROR(cudaSetDevice(device.index), device);
  void* data = nullptr;
  const cudaError_t error =
      cudaHostAlloc(&data, static_cast<size_t>(size_bytes), cudaHostAllocPortable);
  if (error == cudaSuccess) return static_cast<std::byte*>(data);
  (void)cudaGetLastError();
  return Annotate(CudaStatus(error, "cudaHostAlloc", device),
                  absl::StrCat("locking ", size_bytes, " bytes of host memory"));
}

void FreePinned(std::byte* data, Device device) {
  LogCudaFailure(cudaFreeHost(data), "cudaFreeHost", device);
}

absl::StatusOr<void*> CreateEvent(bool timed, Device device) {
  TW_RETURN_IF_CUDA_ERROR(cudaSetDevice(device.index), device);
  cudaEvent_t event = nullptr;
  TW_RETURN_IF_CUDA_ERROR(
      cudaEventCreateWithFlags(&event, timed ? cudaEventDefault : cudaEventDisableTiming), device);
  return event;
}

void DestroyEvent(void* event, Device device) {
  LogCudaFailure(cudaEventDestroy(static_cast<cudaEvent_t>(event)), "cudaEventDestroy", device);
}

absl::Status RecordEvent(void* event, void* stream, Device device) {
  return CudaStatus(
      cudaEventRecord(static_cast<cudaEvent_t>(event), static_cast<cudaStream_t>(stream)),
      "cudaEventRecord", device);
}

absl::Status StreamWaitEvent(void* stream, void* event, Device device) {
  return CudaStatus(
      cudaStreamWaitEvent(static_cast<cudaStream_t>(stream), static_cast<cudaEvent_t>(event)),
      "cudaStreamWaitEvent", device);
}

absl::Status SynchronizeEvent(void* event, Device device) {
  return CudaStatus(cudaEventSynchronize(static_cast<cudaEvent_t>(event)), "cudaEventSynchronize",
                    device);
}

absl::StatusOr<bool> EventHappened(void* event, Device device) {
  const cudaError_t error = cudaEventQuery(static_cast<cudaEvent_t>(event));
  if (error == cudaErrorNotReady) {
    (void)cudaGetLastError();  // else the next launch would report it
    return false;
  }
  TW_RETURN_IF_ERROR(CudaStatus(error, "cudaEventQuery", device));
  return true;
}

absl::StatusOr<double> EventMilliseconds(void* start, void* end, Device device) {
  float milliseconds = 0.0f;
  TW_RETURN_IF_ERROR(CudaStatus(cudaEventElapsedTime(&milliseconds, static_cast<cudaEvent_t>(start),
                                                     static_cast<cudaEvent_t>(end)),
                                "cudaEventElapsedTime", device));
  return milliseconds;
}

absl::Status BeginCapture(void* stream, Device device) {
  TW_RETURN_IF_CUDA_ERROR(cudaSetDevice(device.index), device);
  // Relaxed: NCCL makes its calls from threads of its own.
  return CudaStatus(
      cudaStreamBeginCapture(static_cast<cudaStream_t>(stream), cudaStreamCaptureModeRelaxed),
      "cudaStreamBeginCapture", device);
}

absl::StatusOr<void*> EndCapture(void* stream, Device device) {
  cudaGraph_t graph = nullptr;
  const cudaError_t ended = cudaStreamEndCapture(static_cast<cudaStream_t>(stream), &graph);
  if (ended != cudaSuccess) {
    (void)cudaGetLastError();  // else the next launch would report it
    if (graph != nullptr) LogCudaFailure(cudaGraphDestroy(graph), "cudaGraphDestroy", device);
    return CudaStatus(ended, "cudaStreamEndCapture", device);
  }
  cudaGraphExec_t instance = nullptr;
  const cudaError_t made = cudaGraphInstantiate(&instance, graph, 0);
  LogCudaFailure(cudaGraphDestroy(graph), "cudaGraphDestroy", device);
  TW_RETURN_IF_ERROR(CudaStatus(made, "cudaGraphInstantiate", device));
  return instance;
}

void DestroyGraph(void* graph, Device device) {
  LogCudaFailure(cudaGraphExecDestroy(static_cast<cudaGraphExec_t>(graph)), "cudaGraphExecDestroy",
                 device);
}

absl::Status LaunchGraph(void* graph, void* stream, Device device) {
  return CudaStatus(
      cudaGraphLaunch(static_cast<cudaGraphExec_t>(graph), static_cast<cudaStream_t>(stream)),
      "cudaGraphLaunch", device);
}

absl::StatusOr<bool> CanAccessPeer(Device device, Device peer) {
  int can = 0;
  TW_RETURN_IF_CUDA_ERROR(cudaDeviceCanAccessPeer(&can, device.index, peer.index), device);
  return can != 0;
}

absl::StatusOr<DeviceProperties> GetProperties(Device device) {
  TW_RETURN_IF_CUDA_ERROR(cudaSetDevice(device.index), device);
  cudaDeviceProp found;
  TW_RETURN_IF_CUDA_ERROR(cudaGetDeviceProperties(&found, device.index), device);
  size_t free = 0, total = 0;
  TW_RETURN_IF_CUDA_ERROR(cudaMemGetInfo(&free, &total), device);
  DeviceProperties properties;
  properties.name = found.name;
  char bus_id[32] = {};
  TW_RETURN_IF_CUDA_ERROR(cudaDeviceGetPCIBusId(bus_id, sizeof(bus_id), device.index), device);
  properties.bus_id = bus_id;
  int driver = 0, runtime = 0;
  TW_RETURN_IF_CUDA_ERROR(cudaDriverGetVersion(&driver), device);
  TW_RETURN_IF_CUDA_ERROR(cudaRuntimeGetVersion(&runtime), device);
  properties.driver_cuda_version = driver;
  properties.runtime_cuda_version = runtime;
  properties.compute_capability = 10 * found.major + found.minor;
  properties.num_multiprocessors = found.multiProcessorCount;
  properties.memory_bytes = static_cast<int64_t>(total);
  properties.free_memory_bytes = static_cast<int64_t>(free);
  properties.l2_bytes = found.l2CacheSize;
  properties.shared_memory_per_block_bytes = static_cast<int64_t>(found.sharedMemPerBlockOptin);
  return properties;
}

}  // namespace thinwire::backend
