// Activations rearranged into whole steps, and weights unpacked into matrices.
#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/coded_linear/coded_linear_cuda.h"
#include "kernels/coded_linear/linear_operands.cuh"
#include "kernels/core/cuda_math.cuh"

namespace thinwire {
namespace {

constexpr int kThreads = 128;

template <typename T>
__global__ void __launch_bounds__(kThreads) Arrange(const ArrangeCall call) {
  const int64_t columns = static_cast<int64_t>(call.num_steps) * call.step_columns;
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= columns) return;
  const int64_t token = blockIdx.y;
  const LinearStep step = call.steps[i / call.step_columns];
  const int c = static_cast<int>(i % call.step_columns);
  const bool there = c >= step.begin && c < step.end;
  const int64_t from = token * call.x_stride + step.column + c;
  if constexpr (__is_same(T, float)) {
    float left = there ? static_cast<const float*>(call.x)[from] : 0.0f;
    auto* to = static_cast<__nv_bfloat16*>(call.to);
    for (int plane = 0; plane < 3; ++plane) {
      const __nv_bfloat16 rounded = __float2bfloat16_rn(left);
      to[(3 * token + plane) * columns + i] = rounded;
      left -= __bfloat162float(rounded);
    }
  } else {
    static_cast<T*>(call.to)[token * columns + i] =
        there ? static_cast<const T*>(call.x)[from] : T{0};
  }
}

// A thread takes one block of a panel, row after row, so that a warp writes neighbours.
template <int kBits, typename T>
__global__ void __launch_bounds__(kThreads) Widen(const WidenCall call) {
  using B = Block<kBits>;
  const CodedLinearCall& w = call.weights;
  const int at = blockIdx.x * kThreads + threadIdx.x;  // of all blocks of the steps
  const int step_at = at / kStepBlocks, in_step = at % kStepBlocks;
  if (step_at >= w.num_steps) return;
  LinearStep step;
  if (w.steps_per_part > 0) {
    const int columns = kStepBlocks * B::kColumns;
    step = {kStepBlocks * step_at, step_at / w.steps_per_part, step_at * columns, 0, columns};
  } else {
    step = w.steps[step_at];
  }
  const int begin = max(0, step.begin - in_step * B::kColumns);
  const int end = min(B::kColumns, step.end - in_step * B::kColumns);
  if (begin >= end) return;
  const int group = w.parts[step.part].group;
  const int panel = call.first_row / 16 + blockIdx.y;
  const uint8_t* block =
      w.codes + (static_cast<int64_t>(panel) * w.num_blocks + step.block + in_step) * B::kBytes;
  const int64_t scales_at = (static_cast<int64_t>(panel) * w.num_groups + group) * 16;
  const int64_t column = step.column + in_step * B::kColumns;
  for (int r = 0; r < 16; ++r) {
    const int row = static_cast<int>(blockIdx.y) * 16 + r;
    if (row >= call.num_rows) return;
    const float scale = LoadFloat(w.scales, DType::kF16, scales_at + r);
    const int zero = w.zeros[scales_at + r];
    alignas(16) T values[B::kColumns];
#pragma unroll
    for (int c = 0; c < B::kColumns; ++c) {
      StoreFloat(values, call.dtype, c,
                 scale * static_cast<float>(CodeOf(block, kBits, r, c) - zero));
    }
    T* to = static_cast<T*>(call.to) + row * call.in_features + column;
    constexpr int kBytes = B::kColumns * static_cast<int>(sizeof(T));
    if (kBytes % 16 == 0 && begin == 0 && end == B::kColumns &&
        reinterpret_cast<uintptr_t>(to) % 16 == 0) {
#pragma unroll
      for (int i = 0; i < kBytes / 16; ++i) {
        reinterpret_cast<uint4*>(to)[i] = reinterpret_cast<const uint4*>(values)[i];
      }
    } else {
#pragma unroll
      for (int c = 0; c < B::kColumns; ++c) {
        if (c >= begin && c < end) to[c] = values[c];
      }
    }
  }
}

template <typename T>
cudaError_t LaunchWidenTo(const WidenCall& call, cudaStream_t stream) {
  const dim3 grid((call.weights.num_steps * kStepBlocks + kThreads - 1) / kThreads,
                  (call.num_rows + 15) / 16);
  if (call.weights.bits == 3) {
    Widen<3, T><<<grid, kThreads, 0, stream>>>(call);
  } else if (call.weights.bits == 4) {
    Widen<4, T><<<grid, kThreads, 0, stream>>>(call);
  } else {
    Widen<8, T><<<grid, kThreads, 0, stream>>>(call);
  }
  return cudaGetLastError();
}

}  // namespace

cudaError_t LaunchArrange(const ArrangeCall& call, cudaStream_t stream) {
  const int columns = call.num_steps * call.step_columns;
  const dim3 grid((columns + kThreads - 1) / kThreads, call.num_tokens);
  if (call.dtype == DType::kF32) {
    Arrange<float><<<grid, kThreads, 0, stream>>>(call);
  } else if (call.dtype == DType::kU8) {
    Arrange<uint8_t><<<grid, kThreads, 0, stream>>>(call);
  } else {
    Arrange<uint16_t><<<grid, kThreads, 0, stream>>>(call);
  }
  return cudaGetLastError();
}

cudaError_t LaunchWiden(const WidenCall& call, cudaStream_t stream) {
  return call.dtype == DType::kF32 ? LaunchWidenTo<float>(call, stream)
                                   : LaunchWidenTo<uint16_t>(call, stream);
}

}  // namespace thinwire
