#include <cuda_runtime_api.h>

#include "kernels/core/cuda_status.h"
#include "parallel/wire/captured_calls.h"

namespace thinwire {

absl::StatusOr<CapturedCalls> CapturedCalls::Capture(absl::FunctionRef<absl::Status()> enqueue,
                                                     Stream& stream) {
  CapturedCalls made(stream.device());
  const cudaStream_t native = CudaStream(stream);
  cudaEvent_t event = nullptr;
  TW_RETURN_IF_CUDA_ERROR(cudaEventCreate(&event), stream.device());
  made.begin_ = event;
  TW_RETURN_IF_CUDA_ERROR(cudaEventCreate(&event), stream.device());
  made.end_ = event;
  // Relaxed: NCCL makes its calls from threads of its own.
  TW_RETURN_IF_CUDA_ERROR(cudaStreamBeginCapture(native, cudaStreamCaptureModeRelaxed),
                          stream.device());
  const absl::Status enqueued = enqueue();
  cudaGraph_t graph = nullptr;
  const cudaError_t ended = cudaStreamEndCapture(native, &graph);
  if (!enqueued.ok() || ended != cudaSuccess) {
    if (graph != nullptr) (void)cudaGraphDestroy(graph);
    TW_RETURN_IF_ERROR(enqueued);
    return CudaStatus(ended, "cudaStreamEndCapture", stream.device());
  }
  cudaGraphExec_t instance = nullptr;
  const cudaError_t instantiated = cudaGraphInstantiate(&instance, graph, 0);
  (void)cudaGraphDestroy(graph);
  TW_RETURN_IF_CUDA_ERROR(instantiated, stream.device());
  made.graph_ = instance;
  return made;
}

CapturedCalls::CapturedCalls(CapturedCalls&& other) noexcept
    : device_(other.device_),
      begin_(std::exchange(other.begin_, nullptr)),
      end_(std::exchange(other.end_, nullptr)),
      graph_(std::exchange(other.graph_, nullptr)) {}

CapturedCalls& CapturedCalls::operator=(CapturedCalls&& other) noexcept {
  std::swap(device_, other.device_);
  std::swap(begin_, other.begin_);
  std::swap(end_, other.end_);
  std::swap(graph_, other.graph_);
  return *this;
}

CapturedCalls::~CapturedCalls() {
  if (graph_ != nullptr) {
    LogCudaFailure(cudaGraphExecDestroy(static_cast<cudaGraphExec_t>(graph_)),
                   "cudaGraphExecDestroy", device_);
  }
  for (void* const event : {begin_, end_}) {
    if (event == nullptr) continue;
    LogCudaFailure(cudaEventDestroy(static_cast<cudaEvent_t>(event)), "cudaEventDestroy", device_);
  }
}

absl::StatusOr<double> CapturedCalls::Run(Communicator& waits, Stream& stream) {
  const cudaStream_t native = CudaStream(stream);
  const auto begin = static_cast<cudaEvent_t>(begin_);
  const auto end = static_cast<cudaEvent_t>(end_);
  TW_RETURN_IF_CUDA_ERROR(cudaEventRecord(begin, native), device_);
  TW_RETURN_IF_CUDA_ERROR(cudaGraphLaunch(static_cast<cudaGraphExec_t>(graph_), native), device_);
  TW_RETURN_IF_CUDA_ERROR(cudaEventRecord(end, native), device_);
  TW_RETURN_IF_ERROR(waits.Wait(stream));
  float ms = 0.0f;
  TW_RETURN_IF_CUDA_ERROR(cudaEventElapsedTime(&ms, begin, end), device_);
  return 1e3 * ms;
}

}  // namespace thinwire
