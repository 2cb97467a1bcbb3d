// Rotates queries where they are, and keys on their way into pages, where values go as they are.
#include <algorithm>
#include <cstdint>

#include "kernels/attention/attention_device.h"
#include "kernels/attention/step_sequences.h"
#include "kernels/core/copy.h"
#include "kernels/core/cuda_status.h"
#include "kernels/core/early_launch.cuh"
#include "kernels/core/vectors.cuh"
#include "kernels/rope/rotate.cuh"

namespace thinwire {
namespace {

constexpr int kThreads = 256;

template <typename T>
struct Call {
  T* x;  // queries, then keys
  const T* v;
  T* k_pages;
  T* v_pages;
  int64_t x_stride;
  int64_t v_stride;
  const int32_t* positions;
  const float* inv_freq;
  const int64_t* slots;
  int num_heads;  // of queries
  int num_kv_heads;
  int half;  // of head_dim
  int page_size;
};

// A block has some of a token's pieces: pairs of vectors of queries and keys, then pairs of vectors
// of values.
template <typename T>
__global__ void __launch_bounds__(kThreads) RotateAndWrite(const Call<T> call) {
  constexpr int kCount = kElementsPerVector<T>;
  LetNextStart();
  extern __shared__ float angles[];
  float* const cosines = angles;
  float* const sines = angles + call.half;
  const int64_t token = blockIdx.x;
  TakeAngles(static_cast<float>(call.positions[token]), call.inv_freq, call.half, cosines, sines);
  const int64_t page = call.slots[token] / call.page_size;
  const int64_t row = call.slots[token] % call.page_size;
  const int head_dim = 2 * call.half;
  const auto in_page = [&](int head) {
    return ((page * call.num_kv_heads + head) * call.page_size + row) * head_dim;
  };
  __syncthreads();
  WaitForPrevious();  // what makes queries, keys and values
  const int pieces_per_head = call.half / kCount;
  const int rotated = call.num_heads + call.num_kv_heads;
  const int pieces = (rotated + call.num_kv_heads) * pieces_per_head;
  for (int piece = blockIdx.y * kThreads + threadIdx.x; piece < pieces;
       piece += gridDim.y * kThreads) {
    const int head = piece / pieces_per_head;
    const int i = piece % pieces_per_head * kCount;
    const bool is_value = head >= rotated;
    const T* const from =
        is_value ? call.v + token * call.v_stride + static_cast<int64_t>(head - rotated) * head_dim
                 : call.x + token * call.x_stride + static_cast<int64_t>(head) * head_dim;
    Pack<T, kCount> a = StreamPack<kCount>(from + i);
    Pack<T, kCount> b = StreamPack<kCount>(from + i + call.half);
    if (!is_value) RotatePair(cosines + i, sines + i, a, b);
    T* to = call.x + token * call.x_stride + static_cast<int64_t>(head) * head_dim;
    if (is_value) {
      to = call.v_pages + in_page(head - rotated);
    } else if (head >= call.num_heads) {
      to = call.k_pages + in_page(head - call.num_heads);
    }
    StorePack(a, to + i);
    StorePack(b, to + i + call.half);
  }
}

}  // namespace

bool RotatesWithKvWrite(const RopeArgs& rope, const KvWriteArgs& write) {
  const int64_t count = 16 / DTypeBytes(rope.x.dtype(), 1);
  return rope.x.dtype() == write.k.dtype() && rope.head_dim / 2 % count == 0 &&
         rope.head_dim <= 4096 && RowsAlign(rope.x, 16) && RowsAlign(write.v, 16);
}

absl::Status RotateAndWriteKvCuda(const RopeArgs& rope, const KvWriteArgs& write, Stream& stream) {
  const int64_t num_tokens = rope.x.dim(0);
  const int64_t* slots = nullptr;
  if (write.step != nullptr) {
    slots = write.step->addresses().slots;
  } else {
    TW_ASSIGN_OR_RETURN(std::byte* const scratch, stream.Scratch(8 * num_tokens));
    TW_RETURN_IF_ERROR(Copy(ConstTensorView(write.slots.data(), DType::kI64, {num_tokens}),
                            TensorView(scratch, DType::kI64, {num_tokens}, stream.device()),
                            stream));
    slots = reinterpret_cast<const int64_t*>(scratch);
  }
  const cudaStream_t native = CudaStream(stream);
  const cudaError_t error = WithFloatType(rope.x.dtype(), [&](auto zero) {
    using T = decltype(zero);
    const int64_t num_kv_heads = write.k_pages.dim(1);
    const int64_t half = rope.head_dim / 2;
    const Call<T> call = {.x = rope.x.mutable_data<T>(),
                          .v = write.v.data<T>(),
                          .k_pages = write.k_pages.mutable_data<T>(),
                          .v_pages = write.v_pages.mutable_data<T>(),
                          .x_stride = rope.x.row_stride(),
                          .v_stride = write.v.row_stride(),
                          .positions = rope.positions.data<int32_t>(),
                          .inv_freq = rope.inv_freq.data<float>(),
                          .slots = slots,
                          .num_heads = static_cast<int>(rope.num_heads - num_kv_heads),
                          .num_kv_heads = static_cast<int>(num_kv_heads),
                          .half = static_cast<int>(half),
                          .page_size = static_cast<int>(write.k_pages.dim(2))};
    const int64_t pieces = (rope.num_heads + num_kv_heads) * (half / kElementsPerVector<T>);
    // Few tokens share the multiprocessors by heads, many by tokens.
    const int64_t blocks_per_token =
        num_tokens >= 256 ? 1 : std::min<int64_t>(16, (pieces + kThreads - 1) / kThreads);
    const auto kernel = RotateAndWrite<T>;
    return LaunchKernel(
        {dim3(static_cast<unsigned>(num_tokens), static_cast<unsigned>(blocks_per_token)), kThreads,
         2 * static_cast<size_t>(half) * sizeof(float), native},
        CanStartEarly(kernel), kernel, call);
  });
  return CudaStatus(error, "rotation and write of keys and values", stream.device());
}

}  // namespace thinwire
