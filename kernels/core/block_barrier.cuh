// Barriers in shared memory that threads of a block arrive at without waiting. A phase ends each
// time that all have arrived; what they wrote before is then seen by those who wait for its end.
// Addresses are of the shared window, of 8 bytes each.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace thinwire {

// By one thread; others may use it after a __syncthreads.
__device__ inline void InitBarrier(uint32_t barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}
__device__ inline void Arrive(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}
// Until the phase of this parity has ended; the one before the first has, and is odd.
__device__ inline void WaitForPhase(uint32_t barrier, uint32_t parity) {
  asm volatile(
      "{\n.reg .pred done;\nwait:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@done bra ended;\nbra wait;\nended:\n}" ::"r"(barrier),
      "r"(parity)
      : "memory");
}

}  // namespace thinwire
