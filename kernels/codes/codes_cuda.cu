#include <algorithm>

#include "kernels/codes/codes_internal.h"
#include "kernels/core/cuda_status.h"
#include "kernels/core/vectors.cuh"

// The same operations as on the CPU, fused where they are there: the same codes, and the same gains
// but for kRms, whose sum has another order.
namespace thinwire {
namespace {

constexpr int kThreads = 256;
constexpr float kTwo23 = 8388608.0f;  // fp32 has no fractions from here on

// clamp(round(value), 0, max_code): adding 2^23 rounds halves to even.
__device__ __forceinline__ float RoundedAbove(float value, uint8_t max_code) {
  return fminf(fmaxf(value, 0.0f), static_cast<float>(max_code)) + kTwo23;
}

// As RoundGain on the CPU, of an fp32 value.
__device__ __forceinline__ float Rounded(float gain) {
  const float rounded = __half2float(__float2half_rn(fminf(gain, 65504.0f)));
  return rounded == 0.0f ? 1.0f : rounded;
}

struct QuantizeParams {
  const void* x;
  int64_t x_stride;
  const float* inverse_step;
  const float* zero;
  const uint8_t* max_code;
  const uint8_t* snap;  // null for none
  uint8_t* codes;
  int64_t codes_stride;
  float* gains;  // null for none
  int64_t num_rows, width;
};

template <typename T, int kCount>
__device__ __forceinline__ void QuantizePiece(const QuantizeParams& p, int64_t row, int64_t at,
                                              bool divide, float inverse_gain) {
  const Pack<T, kCount> x = LoadPack<kCount>(static_cast<const T*>(p.x) + row * p.x_stride + at);
  const Pack<float, kCount> inverse_step = LoadPack<kCount>(p.inverse_step + at);
  const Pack<float, kCount> zero = LoadPack<kCount>(p.zero + at);
  const Pack<uint8_t, kCount> max_code = LoadPack<kCount>(p.max_code + at);
  Pack<uint8_t, kCount> codes;
#pragma unroll
  for (int e = 0; e < kCount; ++e) {
    const float value = divide ? fmaf(__fmul_rn(AsFloat(x.values[e]), inverse_step.values[e]),
                                      inverse_gain, zero.values[e])
                               : fmaf(AsFloat(x.values[e]), inverse_step.values[e], zero.values[e]);
    codes.values[e] =
        static_cast<uint8_t>(__float_as_uint(RoundedAbove(value, max_code.values[e])));
    if (p.snap != nullptr) codes.values[e] = p.snap[codes.values[e]];
  }
  StorePack(codes, p.codes + row * p.codes_stride + at);
}

// Without a gain from the row: a thread keeps its columns.
template <typename T, int kCount>
__global__ void QuantizeColumns(QuantizeParams p, bool given) {
  const int64_t at = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * kCount;
  for (int64_t row = blockIdx.y; row < p.num_rows; row += gridDim.y) {
    float gain = 1.0f;
    if (given && p.gains[row] != 0.0f) gain = p.gains[row];
    if (at < p.width) QuantizePiece<T, kCount>(p, row, at, given, 1.0f / gain);
    if (given || p.gains == nullptr) continue;
    if (blockIdx.x == 0 && threadIdx.x == 0) p.gains[row] = 1.0f;
  }
}

// What a gain of 0 means, once all have read it.
__global__ void ReplaceZeroGains(float* gains, int64_t n) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i < n && gains[i] == 0.0f) gains[i] = 1.0f;
}

// max |u| or the sum of u^2 of a row, on all threads of the block.
template <typename T, int kCount>
__device__ __forceinline__ float RowStatistic(const T* x, const float* inverse_step, int64_t width,
                                              bool rms, float* partial) {
  float found = 0.0f;
  for (int64_t at = threadIdx.x * kCount; at < width; at += kThreads * kCount) {
    const Pack<T, kCount> pack = LoadPack<kCount>(x + at);
    const Pack<float, kCount> inverse = LoadPack<kCount>(inverse_step + at);
#pragma unroll
    for (int e = 0; e < kCount; ++e) {
      const float u = AsFloat(pack.values[e]) * inverse.values[e];
      found = rms ? fmaf(u, u, found) : fmaxf(found, fabsf(u));
    }
  }
  return rms ? ReduceBlock(found, 0.0f, partial, SumOf())
             : ReduceBlock(found, 0.0f, partial, MaxOf());
}

// With a gain from the row: a block takes a row, which it reads again from the cache.
template <typename T, int kCount>
__global__ void QuantizeWithGain(QuantizeParams p, bool rms) {
  __shared__ float partial[32];
  const int64_t row = blockIdx.x;
  const float statistic = RowStatistic<T, kCount>(static_cast<const T*>(p.x) + row * p.x_stride,
                                                  p.inverse_step, p.width, rms, partial);
  const float gain =
      Rounded(rms ? sqrtf(statistic / static_cast<float>(p.width)) : statistic / kMaxGainCodes);
  if (threadIdx.x == 0) p.gains[row] = gain;
  for (int64_t at = threadIdx.x * kCount; at < p.width; at += kThreads * kCount) {
    QuantizePiece<T, kCount>(p, row, at, true, 1.0f / gain);
  }
}

template <typename T, int kCount>
__global__ void MaxGainOfRow(const T* x, int64_t stride, const float* inverse_step, int64_t width,
                             float* gains) {
  __shared__ float partial[32];
  const int64_t row = blockIdx.x;
  const float gain =
      RowStatistic<T, kCount>(x + row * stride, inverse_step, width, false, partial) /
      kMaxGainCodes;
  if (threadIdx.x != 0) return;
  gains[row] = __half2float(__float2half_rn(gain)) == 0.0f ? 0.0f : Rounded(gain);
}

template <typename T, int kCount>
__global__ void RoundColumns(T* x, int64_t stride, const float* step, const float* inverse_step,
                             const float* zero, const uint8_t* max_code, int64_t num_rows,
                             int64_t width) {
  const int64_t at = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * kCount;
  if (at >= width) return;
  const Pack<float, kCount> steps = LoadPack<kCount>(step + at);
  const Pack<float, kCount> inverse = LoadPack<kCount>(inverse_step + at);
  const Pack<float, kCount> zeros = LoadPack<kCount>(zero + at);
  const Pack<uint8_t, kCount> most = LoadPack<kCount>(max_code + at);
  for (int64_t row = blockIdx.y; row < num_rows; row += gridDim.y) {
    Pack<T, kCount> pack = StreamPack<kCount>(x + row * stride + at);
#pragma unroll
    for (int e = 0; e < kCount; ++e) {
      const float value = fmaf(AsFloat(pack.values[e]), inverse.values[e], zeros.values[e]);
      const float code = RoundedAbove(value, most.values[e]) - kTwo23;
      pack.values[e] = FromFloat<T>(steps.values[e] * (code - zeros.values[e]));
    }
    StorePack(pack, x + row * stride + at);
  }
}

// Calls body(T(), number of elements at a time).
template <typename Body>
void WithPieces(DType dtype, bool aligned, const Body& body) {
  WithFloatType(dtype, [&](auto zero) {
    if (aligned) {
      body(zero, std::integral_constant<int, kElementsPerVector<decltype(zero)>>());
    } else {
      body(zero, std::integral_constant<int, 1>());
    }
  });
}

}  // namespace

absl::Status QuantizeCuda(const QuantizeArgs& args, Stream& stream) {
  const cudaStream_t native = CudaStream(stream);
  QuantizeParams p = {};
  p.x = args.x.raw();
  p.x_stride = args.x.row_stride();
  p.inverse_step = args.inverse_step.data<float>();
  p.zero = args.zero.data<float>();
  p.max_code = args.max_code.data<uint8_t>();
  p.snap = args.snap.empty() ? nullptr : args.snap.data<uint8_t>();
  p.codes = args.codes.mutable_data<uint8_t>();
  p.codes_stride = args.codes.row_stride();
  p.gains = args.gains.empty() ? nullptr : args.gains.mutable_data<float>();
  p.num_rows = args.x.dim(0);
  p.width = args.x.dim(1);
  const int64_t count = 16 / DTypeBytes(args.x.dtype(), 1);
  const bool aligned = RowsAlign(args.x, 16) && RowsAlign(args.inverse_step, 16) &&
                       RowsAlign(args.zero, 16) && RowsAlign(args.max_code, count) &&
                       RowsAlign(args.codes, count);
  WithPieces(args.x.dtype(), aligned, [&](auto zero, auto pieces) {
    using T = decltype(zero);
    constexpr int kCount = decltype(pieces)::value;
    if (args.gain == GainKind::kNone || args.gain == GainKind::kGiven) {
      QuantizeColumns<T, kCount>
          <<<RowGrid(p.num_rows, p.width, kThreads * kCount), kThreads, 0, native>>>(
              p, args.gain == GainKind::kGiven);
    } else {
      QuantizeWithGain<T, kCount><<<static_cast<unsigned>(p.num_rows), kThreads, 0, native>>>(
          p, args.gain == GainKind::kRms);
    }
  });
  if (args.gain == GainKind::kGiven) {
    ReplaceZeroGains<<<static_cast<unsigned>((p.num_rows + kThreads - 1) / kThreads), kThreads, 0,
                       native>>>(p.gains, p.num_rows);
  }
  return CudaLaunchStatus("quantize", stream);
}

absl::Status MaxGainsCuda(const ConstTensorView& x, const ConstTensorView& inverse_step,
                          const TensorView& gains, Stream& stream) {
  const cudaStream_t native = CudaStream(stream);
  const bool aligned = RowsAlign(x, 16) && RowsAlign(inverse_step, 16);
  WithPieces(x.dtype(), aligned, [&](auto zero, auto pieces) {
    using T = decltype(zero);
    MaxGainOfRow<T, decltype(pieces)::value>
        <<<static_cast<unsigned>(x.dim(0)), kThreads, 0, native>>>(
            x.data<T>(), x.row_stride(), inverse_step.data<float>(), x.dim(1),
            gains.mutable_data<float>());
  });
  return CudaLaunchStatus("max gains", stream);
}

absl::Status RoundToCodesCuda(const RoundToCodesArgs& args, Stream& stream) {
  const cudaStream_t native = CudaStream(stream);
  const int64_t count = 16 / DTypeBytes(args.x.dtype(), 1);
  const bool aligned = RowsAlign(args.x, 16) && RowsAlign(args.step, 16) &&
                       RowsAlign(args.inverse_step, 16) && RowsAlign(args.zero, 16) &&
                       RowsAlign(args.max_code, count);
  WithPieces(args.x.dtype(), aligned, [&](auto zero, auto pieces) {
    using T = decltype(zero);
    constexpr int kCount = decltype(pieces)::value;
    RoundColumns<T, kCount>
        <<<RowGrid(args.x.dim(0), args.x.dim(1), kThreads * kCount), kThreads, 0, native>>>(
            args.x.mutable_data<T>(), args.x.row_stride(), args.step.data<float>(),
            args.inverse_step.data<float>(), args.zero.data<float>(), args.max_code.data<uint8_t>(),
            args.x.dim(0), args.x.dim(1));
  });
  return CudaLaunchStatus("round to codes", stream);
}

}  // namespace thinwire
