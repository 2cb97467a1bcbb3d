// Attention of prompts over fp16 and bf16 pages on tensor cores: 64 query rows of a KV head share
// each tile of 64 keys, which is fetched while the one before is multiplied.
#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/attention/attention_cuda.h"
#include "kernels/attention/attention_rows.cuh"
#include "kernels/core/cuda_math.cuh"

namespace thinwire {
namespace {

constexpr int kThreads = 128;
constexpr int kKeys = 64;
constexpr uint32_t kWarp = 0xffffffffu;

// Rows of a tile lie 16 bytes further apart than they are long, so that the eight rows of a matrix
// are in different banks.
template <int kDim>
struct Shared {
  static constexpr int kStride = kDim + 8;
  uint16_t k[2][kKeys][kStride];
  uint16_t v[2][kKeys][kStride];
};

__device__ inline uint32_t SharedAddress(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// 16 bytes to shared memory in the background; zeros where `there` is false.
__device__ inline void CopyAsync16(void* to, const void* from, bool there) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(SharedAddress(to)), "l"(from),
               "r"(there ? 16 : 0));
}

// Four matrices of 8 rows of 16 bytes; lane i has the address of row i % 8 of matrix i / 8.
__device__ inline void LoadMatrices(uint32_t (&to)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(SharedAddress(row)));
}
__device__ inline void LoadTransposed(uint32_t (&to)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(SharedAddress(row)));
}

template <typename T, int kDim>
__global__ void __launch_bounds__(kThreads, kDim == 64 ? 4 : 2) Prompt(const AttentionCall call) {
  extern __shared__ __align__(16) unsigned char memory[];
  auto& shared = *reinterpret_cast<Shared<kDim>*>(memory);
  const AttentionItem item = call.prompt_items[blockIdx.x];
  const int kv_head = blockIdx.y;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int g = lane / 4, t = lane % 4;
  const int any_begin = KeysOfRow(call, item, 0).begin;
  const int* page_ids = call.page_ids + call.page_offsets[item.seq];

  // Rows g and g + 8 of the warp's 16.
  int rows[2];
  KeySpan keys[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    rows[i] = 16 * warp + g + 8 * i;
    keys[i] = KeysOfRow(call, item, min(rows[i], item.num_rows - 1));
  }
  // Of the warp's rows.
  const KeySpan first = KeysOfRow(call, item, min(16 * warp, item.num_rows - 1));
  const KeySpan last = KeysOfRow(call, item, min(16 * warp + 15, item.num_rows - 1));

  uint32_t q[kDim / 16][4];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const bool there = rows[i] < item.num_rows;
    const int row = item.first_row + min(rows[i], item.num_rows - 1);
    const auto* from = static_cast<const uint16_t*>(call.q) +
                       RowElement(call, item.seq, kv_head, row, call.q_stride) + 2 * t;
#pragma unroll
    for (int s = 0; s < kDim / 16; ++s) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const uint32_t low = from[16 * s + 8 * half], high = from[16 * s + 8 * half + 1];
        q[s][2 * half + i] = there ? low | high << 16 : 0u;
      }
    }
  }

  const auto fetch = [&](int key, int stage) {
    constexpr int kChunks = kDim / 8;
#pragma unroll
    for (int i = 0; i < kKeys * kChunks / kThreads; ++i) {
      const int at = i * kThreads + threadIdx.x;
      const int j = at / kChunks, chunk = at % kChunks;
      const bool there = key + j >= any_begin && key + j < item.key_end;
      const int found = min(key + j, item.key_end - 1);
      const int page = found / call.page_size;
      const int64_t row =
          (static_cast<int64_t>(page_ids[page]) * call.num_kv_heads + kv_head) * call.page_size +
          (found - page * call.page_size);
      const int64_t offset = row * (2 * kDim) + 16 * chunk;
      CopyAsync16(&shared.k[stage][j][8 * chunk], call.k.pages + offset, there);
      CopyAsync16(&shared.v[stage][j][8 * chunk], call.v.pages + offset, there);
    }
    asm volatile("cp.async.commit_group;");
  };

  float o[kDim / 8][4];
#pragma unroll
  for (int n = 0; n < kDim / 8; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) o[n][i] = 0.0f;
  }
  float maximum[2] = {kLowestScore, kLowestScore}, sum[2] = {0.0f, 0.0f};
  const float to_log2 = call.scale * kLog2E;

  fetch(item.key_begin, 0);
  int stage = 0;
  for (int key = item.key_begin; key < item.key_end; key += kKeys, stage ^= 1) {
    if (key + kKeys < item.key_end) {
      fetch(key + kKeys, stage ^ 1);
      asm volatile("cp.async.wait_group 1;");
    } else {
      asm volatile("cp.async.wait_group 0;");
    }
    __syncthreads();
    if (key < last.end && key + kKeys > first.begin) {
      float s[kKeys / 8][4];
#pragma unroll
      for (int n = 0; n < kKeys / 8; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) s[n][i] = 0.0f;
      }
#pragma unroll
      for (int step = 0; step < kDim / 16; ++step) {
#pragma unroll
        for (int n = 0; n < kKeys / 8; n += 2) {
          uint32_t b[4];
          LoadMatrices(
              b, &shared.k[stage][8 * n + lane % 8 + lane / 16 * 8][16 * step + lane / 8 % 2 * 8]);
          Mma<T>(s[n], q[step], b[0], b[1]);
          Mma<T>(s[n + 1], q[step], b[2], b[3]);
        }
      }
      const bool inside = key >= last.begin && key + kKeys <= first.end;
      float largest[2] = {maximum[0], maximum[1]};
#pragma unroll
      for (int n = 0; n < kKeys / 8; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int k = key + 8 * n + 2 * t + i % 2;
          const KeySpan& span = keys[i / 2];
          s[n][i] = inside || (k >= span.begin && k < span.end) ? s[n][i] * to_log2 : -INFINITY;
          largest[i / 2] = fmaxf(largest[i / 2], s[n][i]);
        }
      }
      float factor[2];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        largest[i] = fmaxf(largest[i], __shfl_xor_sync(kWarp, largest[i], 1));
        largest[i] = fmaxf(largest[i], __shfl_xor_sync(kWarp, largest[i], 2));
        factor[i] = Exp2(maximum[i] - largest[i]);
        maximum[i] = largest[i];
        sum[i] *= factor[i];
      }
      if (__any_sync(kWarp, factor[0] != 1.0f || factor[1] != 1.0f)) {
#pragma unroll
        for (int n = 0; n < kDim / 8; ++n) {
#pragma unroll
          for (int i = 0; i < 4; ++i) o[n][i] *= factor[i / 2];
        }
      }
      uint32_t p[kKeys / 8][2];
#pragma unroll
      for (int n = 0; n < kKeys / 8; ++n) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const float even = Exp2(s[n][2 * i] - maximum[i]);
          const float odd = Exp2(s[n][2 * i + 1] - maximum[i]);
          p[n][i] = PackPair<T>(even, odd);
          // The sum of what is multiplied: a weight's rounding then moves its value's share alone.
          const float2 rounded = UnpackPair<T>(p[n][i]);
          sum[i] += rounded.x + rounded.y;
        }
      }
#pragma unroll
      for (int step = 0; step < kKeys / 16; ++step) {
        const uint32_t a[4] = {p[2 * step][0], p[2 * step][1], p[2 * step + 1][0],
                               p[2 * step + 1][1]};
#pragma unroll
        for (int n = 0; n < kDim / 8; n += 2) {
          uint32_t b[4];
          LoadTransposed(b, &shared.v[stage][16 * step + lane % 16][8 * n + lane / 16 * 8]);
          Mma<T>(o[n], a, b[0], b[1]);
          Mma<T>(o[n + 1], a, b[2], b[3]);
        }
      }
    }
    __syncthreads();
  }

#pragma unroll
  for (int i = 0; i < 2; ++i) {
    sum[i] += __shfl_xor_sync(kWarp, sum[i], 1);
    sum[i] += __shfl_xor_sync(kWarp, sum[i], 2);
    if (rows[i] >= item.num_rows) continue;
    const float scale = 1.0f / sum[i];
    const int64_t to =
        RowElement(call, item.seq, kv_head, item.first_row + rows[i], call.out_stride) + 2 * t;
#pragma unroll
    for (int n = 0; n < kDim / 8; ++n) {
      StoreFloat(call.out, call.out_dtype, to + 8 * n, o[n][2 * i] * scale);
      StoreFloat(call.out, call.out_dtype, to + 8 * n + 1, o[n][2 * i + 1] * scale);
    }
  }
}

template <typename T, int kDim>
cudaError_t Launch(const AttentionCall& call, cudaStream_t stream) {
  constexpr int kBytes = sizeof(Shared<kDim>);
  const cudaError_t error =
      cudaFuncSetAttribute(Prompt<T, kDim>, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes);
  if (error != cudaSuccess) return error;
  Prompt<T, kDim>
      <<<dim3(call.num_prompt_items, call.num_kv_heads), kThreads, kBytes, stream>>>(call);
  return cudaGetLastError();
}

template <typename T>
cudaError_t LaunchDim(const AttentionCall& call, cudaStream_t stream) {
  return call.head_dim == 128 ? Launch<T, 128>(call, stream) : Launch<T, 64>(call, stream);
}

}  // namespace

bool PromptFits(const AttentionCall& call) {
  return HasPromptKernel(call.k.order != nullptr, call.page_dtype, call.head_dim);
}

cudaError_t LaunchPrompt(const AttentionCall& call, cudaStream_t stream) {
  return call.page_dtype == DType::kF16 ? LaunchDim<__half>(call, stream)
                                        : LaunchDim<__nv_bfloat16>(call, stream);
}

}  // namespace thinwire
