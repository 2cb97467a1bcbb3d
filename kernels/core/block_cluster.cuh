// Blocks of a cluster (compute capability 9.0 on): they run at the same time and read each other's
// shared memory. Elsewhere kernels are not launched in clusters, and these do nothing.
#pragma once

#include <cstdint>

namespace thinwire {

// Waits for all threads of the cluster; what they wrote to shared memory before is seen after.
__device__ inline void SyncCluster() {
#if __CUDA_ARCH__ >= 900
  asm volatile(
      "barrier.cluster.arrive.release;\n"
      "barrier.cluster.wait.acquire;" ::
          : "memory");
#endif
}

__device__ inline uint32_t RankInCluster() {
  uint32_t rank = 0;
#if __CUDA_ARCH__ >= 900
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
#endif
  return rank;
}

// What lies at this block's shared address `at` (16-byte aligned) in the shared memory of the block
// of that rank, which has to be running.
__device__ inline float4 LoadFromRank(uint32_t at, uint32_t rank) {
  float4 v = {};
#if __CUDA_ARCH__ >= 900
  uint32_t there;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(at), "r"(rank));
  asm volatile("ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [%4];"
               : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
               : "r"(there)
               : "memory");
#endif
  return v;
}

}  // namespace thinwire
