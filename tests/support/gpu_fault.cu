// Preloaded into a program, breaks its GPU on demand: once the file that THINWIRE_GPU_FAULT names
// is there, the next look at an event first runs a kernel that writes where nothing is mapped.
#include <cuda_runtime.h>
#include <dlfcn.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>

namespace {

__global__ void WriteNowhere(int* nowhere) { *nowhere = 1; }

}  // namespace

extern "C" cudaError_t cudaEventQuery(cudaEvent_t event) {
  static const auto query =
      reinterpret_cast<cudaError_t (*)(cudaEvent_t)>(dlsym(RTLD_NEXT, "cudaEventQuery"));
  static std::atomic<bool> broken{false};
  const char* file = std::getenv("THINWIRE_GPU_FAULT");
  if (file != nullptr && !broken && access(file, F_OK) == 0 && !broken.exchange(true)) {
    WriteNowhere<<<1, 1>>>(reinterpret_cast<int*>(64));
  }
  return query(event);
}
