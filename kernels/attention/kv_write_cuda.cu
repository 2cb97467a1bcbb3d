// Keys and values into pages: as they are, or as codes.
#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/attention/attention_cuda.h"
#include "kernels/core/cuda_math.cuh"
#include "kernels/core/early_launch.cuh"

namespace thinwire {
namespace {

constexpr int kThreads = 128;

template <typename Word>
__global__ void __launch_bounds__(kThreads) WriteFloats(const KvWriteCall call) {
  LetNextStart();
  const int64_t t = blockIdx.x;
  const bool is_k = blockIdx.y == 0;
  const AttentionSide& side = is_k ? call.k_side : call.v_side;
  const int64_t element_bytes = side.row_bytes / call.head_dim;
  const auto* from =
      reinterpret_cast<const Word*>(static_cast<const uint8_t*>(is_k ? call.k : call.v) +
                                    t * (is_k ? call.k_stride : call.v_stride) * element_bytes);
  const int64_t page = call.slots[t] / call.page_size, row = call.slots[t] % call.page_size;
  const int row_words = static_cast<int>(side.row_bytes / sizeof(Word));
  auto* to = reinterpret_cast<Word*>(const_cast<uint8_t*>(side.pages));
  WaitForPrevious();  // what makes K and V
  for (int i = threadIdx.x; i < call.num_kv_heads * row_words; i += kThreads) {
    const int head = i / row_words;
    to[((page * call.num_kv_heads + head) * call.page_size + row) * row_words +
       (i - head * row_words)] = from[i];
  }
}

// One block: a token, a head, K or V. Positions put their codes' bits into the row in shared
// memory.
__global__ void __launch_bounds__(kThreads) WriteCodes(const KvWriteCall call) {
  LetNextStart();
  extern __shared__ uint32_t packed[];
  const int64_t t = blockIdx.x;
  const int head = blockIdx.y;
  const bool is_k = blockIdx.z == 0;
  const AttentionSide& side = is_k ? call.k_side : call.v_side;
  const void* values = is_k ? call.k : call.v;
  const DType dtype = is_k ? call.k_dtype : call.v_dtype;
  const int64_t from =
      t * (is_k ? call.k_stride : call.v_stride) + static_cast<int64_t>(head) * call.head_dim;
  const int num_words = static_cast<int>(side.row_bytes + 7) / 4;
  for (int i = threadIdx.x; i < num_words; i += kThreads) packed[i] = 0;
  __syncthreads();
  WaitForPrevious();  // what makes K and V
  const int exact_row = call.exact_rows != nullptr ? call.exact_rows[t] : -1;
  for (int i = threadIdx.x; i < call.head_dim; i += kThreads) {
    const int64_t at = static_cast<int64_t>(head) * call.head_dim + i;
    const int channel = side.order[at];
    const float x = LoadFloat(values, dtype, from + channel);
    const KvPiece* pieces = side.pieces + at * kMaxKvPieces;
    int bits = 0;
    for (int p = 0; p < kMaxKvPieces; ++p) bits += pieces[p].size;
    const float largest = static_cast<float>((1 << bits) - 1);
    const float code = rintf(__fadd_rn(__fdiv_rn(x, side.step[at]), side.zero[at]));
    const auto bounded = static_cast<uint32_t>(fminf(fmaxf(code, 0.0f), largest));
    for (int p = 0; p < kMaxKvPieces && pieces[p].size != 0; ++p) {
      const KvPiece piece = pieces[p];
      const uint64_t field =
          static_cast<uint64_t>(bounded >> piece.shift & ((1u << piece.size) - 1u))
          << piece.bit % 32;
      atomicOr(&packed[piece.bit / 32], static_cast<uint32_t>(field));
      if (field >> 32 != 0) {
        atomicOr(&packed[piece.bit / 32 + 1], static_cast<uint32_t>(field >> 32));
      }
    }
    bool wrong = !isfinite(x);
    if (exact_row >= 0) {
      const __half exact = __float2half_rn(x);
      const int64_t to =
          (static_cast<int64_t>(exact_row) * call.num_kv_heads + head) * call.head_dim + channel;
      const_cast<uint16_t*>(side.exact)[to] = __half_as_ushort(exact);
      wrong = wrong || __hisinf(exact) != 0;
    }
    if (wrong) {
      const int64_t width = static_cast<int64_t>(call.num_kv_heads) * call.head_dim;
      const int64_t index =
          (2 * t + (is_k ? 0 : 1)) * width + static_cast<int64_t>(head) * call.head_dim + channel;
      atomicMin(call.first_wrong, static_cast<unsigned long long>(index));
    }
  }
  __syncthreads();
  const int64_t page = call.slots[t] / call.page_size, row = call.slots[t] % call.page_size;
  uint8_t* to = const_cast<uint8_t*>(side.pages) +
                ((page * call.num_kv_heads + head) * call.page_size + row) * side.row_bytes;
  if (side.row_bytes % 4 == 0) {
    for (int i = threadIdx.x; i < side.row_bytes / 4; i += kThreads) {
      reinterpret_cast<uint32_t*>(to)[i] = packed[i];
    }
  } else {  // 2 bytes: rows are of an even size
    for (int i = threadIdx.x; i < side.row_bytes / 2; i += kThreads) {
      reinterpret_cast<uint16_t*>(to)[i] = static_cast<uint16_t>(packed[i / 2] >> (16 * (i % 2)));
    }
  }
}

bool Aligned(const KvWriteCall& call, int64_t bytes) {
  const int64_t element_bytes = call.k_side.row_bytes / call.head_dim;
  return (reinterpret_cast<uintptr_t>(call.k) | reinterpret_cast<uintptr_t>(call.v) |
          static_cast<uintptr_t>(call.k_stride * element_bytes) |
          static_cast<uintptr_t>(call.v_stride * element_bytes) |
          static_cast<uintptr_t>(call.k_side.row_bytes)) %
             static_cast<uintptr_t>(bytes) ==
         0;
}

}  // namespace

cudaError_t LaunchKvWrite(const KvWriteCall& call, cudaStream_t stream) {
  const dim3 grid(call.num_tokens, 2);
  const auto launch = [&](auto kernel) {
    return LaunchKernel({grid, kThreads, 0, stream}, CanStartEarly(kernel), kernel, call);
  };
  if (Aligned(call, 16)) return launch(WriteFloats<uint4>);
  if (call.k_dtype == DType::kF32) return launch(WriteFloats<uint32_t>);
  return launch(WriteFloats<uint16_t>);
}

cudaError_t LaunchCodedKvWrite(const KvWriteCall& call, cudaStream_t stream) {
  const int64_t row_bytes =
      call.k_side.row_bytes > call.v_side.row_bytes ? call.k_side.row_bytes : call.v_side.row_bytes;
  return LaunchKernel({dim3(call.num_tokens, call.num_kv_heads, 2), kThreads,
                       static_cast<size_t>(row_bytes + 8), stream},
                      CanStartEarly(WriteCodes), WriteCodes, call);
}

}  // namespace thinwire
