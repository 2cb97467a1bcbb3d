#include <algorithm>

#include "kernels/core/cuda_status.h"
#include "kernels/core/early_launch.cuh"
#include "kernels/core/vectors.cuh"
#include "kernels/norm/norm_internal.h"
#include "kernels/norm/norm_row.cuh"

namespace thinwire {
namespace {

// Both operators: the values of Norm or, with Out = uint8_t, the codes of NormCodes.
template <typename T, typename Out>
struct NormParams {
  T* x;
  int64_t x_stride;
  const T* delta;  // null for none
  int64_t delta_stride;
  const float* weight;  // null for ones
  const float* bias;    // null for zeros
  const int32_t* order;
  const uint8_t* max_code;
  Out* out;
  int64_t out_stride;
  int64_t num_tokens;
  int hidden;
  float epsilon;
  bool rms;
};

constexpr float kTwo23 = 8388608.0f;  // fp32 has no fractions from here on

// clamp(round(value), 0, max_code): adding 2^23 rounds halves to even.
__device__ __forceinline__ uint8_t Code(float value, uint8_t max_code) {
  const float clamped = fminf(fmaxf(value, 0.0f), static_cast<float>(max_code));
  return static_cast<uint8_t>(__float_as_uint(clamped + kTwo23));
}

template <typename T, typename Out>
__device__ __forceinline__ Out Finish(float normalised, float weight, float bias,
                                      uint8_t max_code) {
  const float value = fmaf(normalised, weight, bias);
  if constexpr (std::is_same_v<Out, uint8_t>) {
    return Code(value, max_code);
  } else {
    return FromFloat<T>(value);
  }
}

// What a vector's results need of each channel. Rows with an order fit shared memory, so that 16
// bits hold a place in them.
template <typename T, typename Out, bool kOrder>
struct Channels {
  static constexpr int kCount = kElementsPerVector<T>;
  Pack<float, kCount> weight, bias;
  Pack<uint8_t, kCount> max_code;
  uint32_t order[kCount / 2];

  __device__ __forceinline__ int Order(int e) const {
    return static_cast<int>(e % 2 == 0 ? order[e / 2] & 0xffffu : order[e / 2] >> 16);
  }
};

template <typename T, typename Out, bool kOrder>
__device__ __forceinline__ Channels<T, Out, kOrder> LoadChannels(const NormParams<T, Out>& p,
                                                                 int at) {
  constexpr int kCount = kElementsPerVector<T>;
  Channels<T, Out, kOrder> channels;
#pragma unroll
  for (int e = 0; e < kCount; ++e) {
    channels.weight.values[e] = 1.0f;
    channels.bias.values[e] = 0.0f;
  }
  if (p.weight != nullptr) channels.weight = LoadPack<kCount>(p.weight + at);
  if (p.bias != nullptr) channels.bias = LoadPack<kCount>(p.bias + at);
  if constexpr (std::is_same_v<Out, uint8_t>) {
    channels.max_code = LoadPack<kCount>(p.max_code + at);
  }
  if constexpr (kOrder) {
    const Pack<int32_t, kCount> order = LoadPack<kCount>(p.order + at);
#pragma unroll
    for (int e = 0; e < kCount; e += 2) {
      channels.order[e / 2] =
          static_cast<uint32_t>(order.values[e]) | static_cast<uint32_t>(order.values[e + 1]) << 16;
    }
  }
  return channels;
}

// A block takes whole rows, one after another, in registers: thread i has the vectors i, i +
// blockDim.x and so on. The next row is on its way while the sums of this one are taken. With an
// order, the row lies in shared memory as well (two rows, taken in turns), for the gather.
template <typename T, typename Out, int kVectors, bool kOrder>
__global__ void __launch_bounds__(kVectors <= 2 ? 512 : 384, kVectors <= 4 ? 2 : 1)
    NormRows(NormParams<T, Out> p) {
  LetNextStart();  // to fetch weights
  constexpr int kCount = kElementsPerVector<T>;
  constexpr bool kPrefetch = kVectors == 1;  // more would not fit the registers
  extern __shared__ __align__(16) unsigned char staged[];
  __shared__ float partial[2][32];
  int turn = 0, stage_turn = 0;
  const auto sum = [&](float value) {
    turn ^= 1;
    return ReduceBlock(value, 0.0f, partial[turn], SumOf());
  };
  const int num_vectors = p.hidden / kCount;
  const auto vector_at = [&](int i) { return static_cast<int>(threadIdx.x + i * blockDim.x); };
  uint4 x[kVectors];
  uint4 delta[kVectors];
  const auto fetch = [&](int64_t row) {
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      if (row >= p.num_tokens || vector_at(i) >= num_vectors) continue;
      const int64_t at = static_cast<int64_t>(vector_at(i)) * kCount;
      x[i] = __ldcs(reinterpret_cast<const uint4*>(p.x + row * p.x_stride + at));
      if (p.delta != nullptr) {
        delta[i] = __ldcs(reinterpret_cast<const uint4*>(p.delta + row * p.delta_stride + at));
      }
    }
  };
  // Of threads with one vector, the same for all rows.
  constexpr bool kKeepsChannels = kOrder && kVectors == 1;
  Channels<T, Out, kOrder> kept;
  if (kKeepsChannels && vector_at(0) < num_vectors) {
    kept = LoadChannels<T, Out, kOrder>(p, vector_at(0) * kCount);
  }
  if (kPrefetch) fetch(blockIdx.x);
  for (int64_t row = blockIdx.x; row < p.num_tokens; row += gridDim.x) {
    T* const stage = reinterpret_cast<T*>(staged) + stage_turn * p.hidden;
    stage_turn ^= 1;
    if (!kPrefetch) fetch(row);
    uint4 row_x[kVectors];
    float total = 0.0f;
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      if (vector_at(i) >= num_vectors) continue;
      row_x[i] = x[i];
      const int64_t at = static_cast<int64_t>(vector_at(i)) * kCount;
      if (p.delta != nullptr) {
        row_x[i] = Sum<T>(x[i], delta[i]);
        *reinterpret_cast<uint4*>(p.x + row * p.x_stride + at) = row_x[i];
      }
      if (kOrder) *reinterpret_cast<uint4*>(stage + at) = row_x[i];
#pragma unroll
      for (int e = 0; e < kCount; ++e) total += Element<T>(row_x[i], e);
    }
    if (kPrefetch) fetch(row + gridDim.x);
    const float n = static_cast<float>(p.hidden);
    const float mean = p.rms ? 0.0f : sum(total) / n;
    float squares = 0.0f;
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      if (vector_at(i) >= num_vectors) continue;
      Forget(row_x[i]);
#pragma unroll
      for (int e = 0; e < kCount; ++e) {
        const float centered = Element<T>(row_x[i], e) - mean;
        squares = fmaf(centered, centered, squares);
      }
    }
    // Its barrier is also the one between staging and gathering.
    const float scale = 1.0f / sqrtf(sum(squares) / n + p.epsilon);
    if (kOrder && blockDim.x == 32) __syncwarp();
    const auto finish = [&](int at, const Channels<T, Out, kOrder>& channels, const uint4& vector) {
      Pack<Out, kCount> out;
#pragma unroll
      for (int e = 0; e < kCount; ++e) {
        const float value = kOrder ? AsFloat(stage[channels.Order(e)]) : Element<T>(vector, e);
        out.values[e] = Finish<T, Out>((value - mean) * scale, channels.weight.values[e],
                                       channels.bias.values[e], channels.max_code.values[e]);
      }
      StorePack(out, p.out + row * p.out_stride + at);
    };
    if constexpr (kOrder) {
#pragma unroll 1
      for (int i = 0; i < kVectors; ++i) {
        if (vector_at(i) >= num_vectors) continue;
        const int at = vector_at(i) * kCount;
        if constexpr (kKeepsChannels) {
          finish(at, kept, uint4());
        } else {
          finish(at, LoadChannels<T, Out, kOrder>(p, at), uint4());
        }
      }
    } else {
#pragma unroll
      for (int i = 0; i < kVectors; ++i) {
        if (vector_at(i) >= num_vectors) continue;
        asm volatile("" ::: "memory");  // one vector's weights at a time
        Forget(row_x[i]);
        const int at = vector_at(i) * kCount;
        finish(at, LoadChannels<T, Out, kOrder>(p, at), row_x[i]);
      }
    }
  }
}

// Any width and alignment, one element at a time, with the row read again for each step.
template <typename T, typename Out>
__global__ void NormAnyRow(NormParams<T, Out> p) {
  __shared__ float partial[2][32];
  const int64_t row = blockIdx.x;
  T* const x = p.x + row * p.x_stride;
  const float n = static_cast<float>(p.hidden);
  float total = 0.0f;
  for (int j = threadIdx.x; j < p.hidden; j += blockDim.x) {
    if (p.delta != nullptr) {
      x[j] = FromFloat<T>(AsFloat(x[j]) + AsFloat(p.delta[row * p.delta_stride + j]));
    }
    total += AsFloat(x[j]);
  }
  const float mean = p.rms ? 0.0f : ReduceBlock(total, 0.0f, partial[0], SumOf()) / n;
  float squares = 0.0f;
  for (int j = threadIdx.x; j < p.hidden; j += blockDim.x) {
    const float centered = AsFloat(x[j]) - mean;
    squares = fmaf(centered, centered, squares);
  }
  const float scale = 1.0f / sqrtf(ReduceBlock(squares, 0.0f, partial[1], SumOf()) / n + p.epsilon);
  __syncthreads();
  for (int j = threadIdx.x; j < p.hidden; j += blockDim.x) {
    const float value = AsFloat(x[p.order != nullptr ? p.order[j] : j]);
    uint8_t max_code = 0;
    if constexpr (std::is_same_v<Out, uint8_t>) max_code = p.max_code[j];
    p.out[row * p.out_stride + j] =
        Finish<T, Out>((value - mean) * scale, p.weight != nullptr ? p.weight[j] : 1.0f,
                       p.bias != nullptr ? p.bias[j] : 0.0f, max_code);
  }
}

template <typename T, typename Out, int kVectors, bool kOrder>
absl::Status LaunchRows(const NormParams<T, Out>& p, int threads, Stream& stream) {
  const auto kernel = NormRows<T, Out, kVectors, kOrder>;
  const cudaStream_t native = CudaStream(stream);
  const size_t shared = kOrder ? 2 * sizeof(T) * static_cast<size_t>(p.hidden) : 0;
  if (shared > (47 << 10)) {  // above 48 KiB, with what is static

    TW_RETURN_IF_CUDA_ERROR(
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             static_cast<int>(shared)),
        stream.device());
  }
  int blocks_per_multiprocessor = 0;
  int multiprocessors = 0;
  TW_RETURN_IF_CUDA_ERROR(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks_per_multiprocessor,
                                                                        kernel, threads, shared),
                          stream.device());
  TW_RETURN_IF_CUDA_ERROR(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount,
                                                 stream.device().index),
                          stream.device());
  const int64_t resident = std::max(1, blocks_per_multiprocessor) * multiprocessors;
  kernel<<<static_cast<unsigned>(std::min(p.num_tokens, resident)), threads, shared, native>>>(p);
  return CudaLaunchStatus("norm", stream);
}

template <typename T, typename Out>
absl::Status Launch(const NormParams<T, Out>& p, bool aligned, Stream& stream) {
  constexpr int kCount = kElementsPerVector<T>;
  constexpr int64_t kSharedBytes = 96 << 10;  // of two rows; two such blocks fit an A100 or H100
  const int num_vectors = p.hidden / kCount;
  const bool staged = p.order != nullptr;
  if (!aligned || num_vectors > kMostRowVectors ||
      (staged && 2 * static_cast<int64_t>(sizeof(T)) * p.hidden > kSharedBytes)) {
    const int threads = std::min(1024, (p.hidden + 31) / 32 * 32);
    NormAnyRow<<<static_cast<unsigned>(p.num_tokens), threads, 0, CudaStream(stream)>>>(p);
    return CudaLaunchStatus("norm", stream);
  }
  return WithRowShape(num_vectors, [&](auto vectors, int threads) {
    constexpr int kVectors = decltype(vectors)::value;
    return staged ? LaunchRows<T, Out, kVectors, true>(p, threads, stream)
                  : LaunchRows<T, Out, kVectors, false>(p, threads, stream);
  });
}

template <typename T>
const T* DataOrNull(const ConstTensorView& view) {
  return view.empty() ? nullptr : view.data<T>();
}

// What NormArgs and NormCodesArgs have in common.
template <typename T, typename Out, typename Args>
NormParams<T, Out> ParamsOf(const Args& args, const TensorView& out) {
  NormParams<T, Out> p = {};
  p.x = args.x.template mutable_data<T>();
  p.x_stride = args.x.row_stride();
  p.delta = DataOrNull<T>(args.delta);
  p.delta_stride = args.delta.row_stride();
  p.weight = DataOrNull<float>(args.weight);
  p.bias = DataOrNull<float>(args.bias);
  p.order = DataOrNull<int32_t>(args.order);
  p.out = out.mutable_data<Out>();
  p.out_stride = out.row_stride();
  p.num_tokens = args.x.dim(0);
  p.hidden = static_cast<int>(args.x.dim(1));
  p.epsilon = args.epsilon;
  p.rms = args.kind == NormKind::kRmsNorm;
  return p;
}

template <typename Args>
bool Aligned(const Args& args, const TensorView& out) {
  const int64_t count = 16 / DTypeBytes(args.x.dtype(), 1);
  return RowsAlign(args.x, 16) && RowsAlign(args.delta, 16) && RowsAlign(args.weight, 16) &&
         RowsAlign(args.bias, 16) && RowsAlign(args.order, 16) &&
         RowsAlign(out, count * DTypeBytes(out.dtype(), 1));
}

}  // namespace

absl::Status NormCuda(const NormArgs& args, Stream& stream) {
  return WithFloatType(args.x.dtype(), [&](auto zero) {
    using T = decltype(zero);
    return Launch(ParamsOf<T, T>(args, args.out), Aligned(args, args.out), stream);
  });
}

absl::Status NormCodesCuda(const NormCodesArgs& args, Stream& stream) {
  return WithFloatType(args.x.dtype(), [&](auto zero) {
    using T = decltype(zero);
    NormParams<T, uint8_t> p = ParamsOf<T, uint8_t>(args, args.codes);
    p.max_code = args.max_code.data<uint8_t>();
    const bool aligned =
        Aligned(args, args.codes) && RowsAlign(args.max_code, 16 / DTypeBytes(args.x.dtype(), 1));
    return Launch(p, aligned, stream);
  });
}

}  // namespace thinwire
