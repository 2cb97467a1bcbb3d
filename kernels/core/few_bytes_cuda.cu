// Copies of few bytes between page-locked host memory and a GPU by a kernel: a copy engine takes
// some 10 us to begin and end, this 2 to 3.
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>

#include "kernels/core/backend.h"
#include "kernels/core/cuda_status.h"

namespace thinwire::backend {
namespace {

constexpr int kThreads = 128;
constexpr int kPiece = 16;  // bytes

// Host memory is read anew each time, past what caches hold of it.
__global__ void __launch_bounds__(kThreads)
    CopyBytes(unsigned char* to, const unsigned char* from, int num_pieces, int num_bytes) {
  const int i = static_cast<int>(blockIdx.x * kThreads + threadIdx.x);
  if (i < num_pieces) {
    reinterpret_cast<uint4*>(to)[i] = __ldcv(reinterpret_cast<const uint4*>(from) + i);
  }
  const int rest = kPiece * num_pieces + i;
  if (rest < num_bytes) to[rest] = __ldcv(from + rest);
}

}  // namespace

absl::Status CopyFewBytesAsync(void* to, const void* from, int64_t num_bytes, void* stream,
                               Device device) {
  TW_RETURN_IF_CUDA_ERROR(cudaSetDevice(device.index), device);
  const bool aligned =
      (reinterpret_cast<uintptr_t>(to) | reinterpret_cast<uintptr_t>(from)) % kPiece == 0;
  const int bytes = static_cast<int>(num_bytes);
  const int pieces = aligned ? bytes / kPiece : 0;
  const int threads = std::max(pieces, bytes - kPiece * pieces);
  CopyBytes<<<(threads + kThreads - 1) / kThreads, kThreads, 0,
              static_cast<cudaStream_t>(stream)>>>(
      static_cast<unsigned char*>(to), static_cast<const unsigned char*>(from), pieces, bytes);
  return CudaStatus(cudaGetLastError(), "copy of few bytes", device);
}

}  // namespace thinwire::backend
