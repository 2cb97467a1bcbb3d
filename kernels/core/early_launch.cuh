// Kernels that follow each other closely in a stream: one may begin while the one ahead still runs,
// to get ready, if it waits before it touches what others write.
#pragma once

#include <cuda_runtime.h>

#include <utility>

namespace thinwire {

// Kernels that were launched to follow this one may get ready. Where this one has not waited yet,
// the one ahead of it may still run, and so on: what a kernel touches before it waits was there
// before the last kernel in the stream that called this after its wait, or had none.
__device__ inline void LetNextStart() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// Returns when the kernel ahead has ended and what it wrote is seen.
__device__ inline void WaitForPrevious() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// Whether the kernel as it is on this GPU was compiled with what WaitForPrevious does (PTX of 9.0
// on): only then may it begin early.
template <typename... Parameters>
bool CanStartEarly(void (*kernel)(Parameters...)) {
  cudaFuncAttributes attributes;
  return cudaFuncGetAttributes(&attributes, kernel) == cudaSuccess && attributes.ptxVersion >= 90;
}

struct LaunchShape {
  dim3 grid;
  dim3 block;
  size_t shared_bytes = 0;
  cudaStream_t stream = nullptr;
  dim3 cluster = 1;  // blocks of a cluster; divide the grid
};

// early: begins before the kernel ahead has ended; only for kernels of which CanStartEarly, and
// which call WaitForPrevious in every thread that reads or writes what others may have to do with.
template <typename... Parameters, typename... Arguments>
cudaError_t LaunchKernel(const LaunchShape& shape, bool early, void (*kernel)(Parameters...),
                         Arguments&&... arguments) {
  cudaLaunchConfig_t config = {};
  config.gridDim = shape.grid;
  config.blockDim = shape.block;
  config.dynamicSmemBytes = shape.shared_bytes;
  config.stream = shape.stream;
  cudaLaunchAttribute attributes[2] = {};
  config.attrs = attributes;
  if (early) {
    cudaLaunchAttribute& attribute = attributes[config.numAttrs++];
    attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute.val.programmaticStreamSerializationAllowed = 1;
  }
  if (shape.cluster.x * shape.cluster.y * shape.cluster.z > 1) {
    cudaLaunchAttribute& attribute = attributes[config.numAttrs++];
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim = {shape.cluster.x, shape.cluster.y, shape.cluster.z};
  }
  return cudaLaunchKernelEx(&config, kernel, std::forward<Arguments>(arguments)...);
}

}  // namespace thinwire
