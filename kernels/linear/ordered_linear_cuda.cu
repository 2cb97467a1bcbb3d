// Linear in one order of summation for all shapes: columns in chunks of 256, each summed one after
// the other by fused multiply-adds from zero, the chunks' sums added one after the other. So the
// tile that an element is in, and with it tokens and features beside it, change no bit.
#include <algorithm>

#include "kernels/convert/convert.h"
#include "kernels/core/cuda_math.cuh"
#include "kernels/core/cuda_status.h"
#include "kernels/core/vectors.cuh"
#include "kernels/linear/linear_cuda.h"

namespace thinwire {
namespace {

constexpr int kThreads = 256;
constexpr int kChunk = 256;    // columns
constexpr int kElements = 8;   // columns of a load
constexpr int kFewTokens = 8;  // of a pass
// Beyond, passes read the weights more often than tiles do.
constexpr int64_t kMostPassTokens = 2 * kFewTokens;

struct Call {
  const float* x;  // aligned to 16 bytes, rows, too
  int64_t x_stride;
  const float* bias;  // or null
  void* y;
  int64_t y_stride;
  DType y_dtype;
  int64_t num_tokens;
  int64_t out, in;
  bool aligned;  // rows of weights, to kElements of them
};

// Columns [i, i + 8) of a row of `in`; zeros behind its end.
template <typename T>
__device__ __forceinline__ void Load(const T* row, int64_t i, int64_t in, bool aligned,
                                     float (&values)[kElements]) {
  if (aligned && i + kElements <= in) {
    const Pack<T, kElements> pack = LoadPack<kElements>(row + i);
#pragma unroll
    for (int e = 0; e < kElements; ++e) values[e] = AsFloat(pack.values[e]);
    return;
  }
#pragma unroll
  for (int e = 0; e < kElements; ++e) values[e] = i + e < in ? AsFloat(row[i + e]) : 0.0f;
}

__device__ __forceinline__ void Store(const Call& call, int64_t token, int64_t o, float sum) {
  const float value = call.bias != nullptr ? __fadd_rn(sum, call.bias[o]) : sum;
  StoreFloat(call.y, call.y_dtype, token * call.y_stride + o, value);
}

constexpr int kWarps = kThreads / 32;

// A block has 32 features, a lane each, and a chunk for each warp at a time.
template <typename T, int kTokens>
__global__ void __launch_bounds__(kThreads) OrderedFewTokens(const Call call, const T* weight) {
  __shared__ float parts[kWarps][kTokens][32];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int64_t o = static_cast<int64_t>(blockIdx.x) * 32 + lane;
  const T* const row = weight + min(o, call.out - 1) * call.in;
  const auto num_chunks = static_cast<int>((call.in + kChunk - 1) / kChunk);
  float total = 0.0f;  // of token `warp`
  for (int first = 0; first < num_chunks; first += kWarps) {
    const int chunk = first + warp;
    if (chunk < num_chunks) {
      float sums[kTokens] = {};
      const int64_t begin = static_cast<int64_t>(chunk) * kChunk;
      const int64_t end = min(begin + kChunk, call.in);
#pragma unroll 4
      for (int64_t i = begin; i < end; i += kElements) {
        float w[kElements];
        Load(row, i, call.in, call.aligned, w);
#pragma unroll
        for (int t = 0; t < kTokens; ++t) {
          float x[kElements];
          Load(call.x + min(static_cast<int64_t>(t), call.num_tokens - 1) * call.x_stride, i,
               call.in, true, x);
#pragma unroll
          for (int e = 0; e < kElements; ++e) sums[t] = __fmaf_rn(x[e], w[e], sums[t]);
        }
      }
#pragma unroll
      for (int t = 0; t < kTokens; ++t) parts[warp][t][lane] = sums[t];
    }
    __syncthreads();
    if (warp < kTokens) {
      for (int w = 0; w < min(kWarps, num_chunks - first); ++w) {
        total = __fadd_rn(total, parts[w][warp][lane]);
      }
    }
    __syncthreads();
  }
  if (warp < min(static_cast<int64_t>(kTokens), call.num_tokens) && o < call.out) {
    Store(call, warp, o, total);
  }
}

// A block has a tile of 128 features by 64 tokens, a thread 8 by 4 of it.
constexpr int kTileRows = 128;
constexpr int kTileTokens = 64;
constexpr int kTileColumns = 16;

template <typename T>
__global__ void __launch_bounds__(kThreads, 2) OrderedTiles(const Call call, const T* weight) {
  __shared__ __align__(16) float ws[kTileColumns][kTileRows + 4];
  __shared__ __align__(16) float xs[kTileColumns][kTileTokens + 4];
  const int64_t first_row = static_cast<int64_t>(blockIdx.x) * kTileRows;
  const int64_t first_token = static_cast<int64_t>(blockIdx.y) * kTileTokens;
  // What this thread brings: 8 columns of a row of weights, 4 of a token.
  const int w_row = threadIdx.x / 2, w_column = threadIdx.x % 2 * kElements;
  const int x_row = threadIdx.x / 4, x_column = threadIdx.x % 4 * 4;
  const T* const w_from = weight + min(first_row + w_row, call.out - 1) * call.in;
  const float* const x_from =
      call.x + min(first_token + x_row, call.num_tokens - 1) * call.x_stride;
  float w_next[kElements];
  float4 x_next;
  const auto fetch = [&](int64_t begin) {
    Load(w_from, begin + w_column, call.in, call.aligned, w_next);
    const int64_t i = begin + x_column;
    if (i + 4 <= call.in) {
      x_next = *reinterpret_cast<const float4*>(x_from + i);
    } else {
      x_next = make_float4(i < call.in ? x_from[i] : 0.0f, i + 1 < call.in ? x_from[i + 1] : 0.0f,
                           i + 2 < call.in ? x_from[i + 2] : 0.0f, 0.0f);
    }
  };
  const int tile_row = static_cast<int>(threadIdx.x % 16) * 4;
  const int tile_token = static_cast<int>(threadIdx.x / 16) * 4;
  float parts[8][4] = {}, totals[8][4] = {};
  fetch(0);
  for (int64_t begin = 0; begin < call.in; begin += kTileColumns) {
#pragma unroll
    for (int e = 0; e < kElements; ++e) ws[w_column + e][w_row] = w_next[e];
    xs[x_column][x_row] = x_next.x;
    xs[x_column + 1][x_row] = x_next.y;
    xs[x_column + 2][x_row] = x_next.z;
    xs[x_column + 3][x_row] = x_next.w;
    __syncthreads();
    if (begin + kTileColumns < call.in) fetch(begin + kTileColumns);
#pragma unroll
    for (int k = 0; k < kTileColumns; ++k) {
      float w[8], x[4];
      *reinterpret_cast<float4*>(w) = *reinterpret_cast<const float4*>(&ws[k][tile_row]);
      *reinterpret_cast<float4*>(w + 4) = *reinterpret_cast<const float4*>(&ws[k][64 + tile_row]);
      *reinterpret_cast<float4*>(x) = *reinterpret_cast<const float4*>(&xs[k][tile_token]);
#pragma unroll
      for (int r = 0; r < 8; ++r) {
#pragma unroll
        for (int t = 0; t < 4; ++t) parts[r][t] = __fmaf_rn(x[t], w[r], parts[r][t]);
      }
    }
    __syncthreads();
    if ((begin + kTileColumns) % kChunk == 0 || begin + kTileColumns >= call.in) {
#pragma unroll
      for (int r = 0; r < 8; ++r) {
#pragma unroll
        for (int t = 0; t < 4; ++t) {
          totals[r][t] = __fadd_rn(totals[r][t], parts[r][t]);
          parts[r][t] = 0.0f;
        }
      }
    }
  }
#pragma unroll
  for (int t = 0; t < 4; ++t) {
    const int64_t token = first_token + tile_token + t;
    if (token >= call.num_tokens) continue;
#pragma unroll
    for (int r = 0; r < 8; ++r) {
      const int64_t o = first_row + r / 4 * 64 + tile_row + r % 4;
      if (o < call.out) Store(call, token, o, totals[r][t]);
    }
  }
}

template <typename T>
void Launch(Call call, const T* weight, cudaStream_t stream) {
  const int64_t tokens = call.num_tokens;
  if (tokens > kMostPassTokens) {
    const dim3 grid(static_cast<unsigned>((call.out + kTileRows - 1) / kTileRows),
                    static_cast<unsigned>((tokens + kTileTokens - 1) / kTileTokens));
    OrderedTiles<T><<<grid, kThreads, 0, stream>>>(call, weight);
    return;
  }
  const auto grid = static_cast<unsigned>((call.out + 31) / 32);
  const int64_t element = DTypeBytes(call.y_dtype, 1);
  for (int64_t begin = 0; begin < tokens; begin += kFewTokens) {
    Call pass = call;
    pass.num_tokens = std::min<int64_t>(kFewTokens, tokens - begin);
    pass.x = call.x + begin * call.x_stride;
    pass.y = static_cast<std::byte*>(call.y) + begin * call.y_stride * element;
    if (pass.num_tokens == 1) {
      OrderedFewTokens<T, 1><<<grid, kThreads, 0, stream>>>(pass, weight);
    } else {
      OrderedFewTokens<T, kFewTokens><<<grid, kThreads, 0, stream>>>(pass, weight);
    }
  }
}

}  // namespace

absl::Status OrderedLinearCuda(const LinearArgs& args, Stream& stream) {
  const cudaStream_t native = CudaStream(stream);
  const int64_t tokens = args.x.dim(0), in = args.x.dim(1);
  constexpr int64_t kMostTokens = int64_t{65535} * kTileTokens;
  if (tokens > kMostTokens) {
    LinearArgs first = args, rest = args;
    first.x = args.x.Rows(0, kMostTokens);
    first.y = args.y.Rows(0, kMostTokens);
    rest.x = args.x.Rows(kMostTokens, tokens - kMostTokens);
    rest.y = args.y.Rows(kMostTokens, tokens - kMostTokens);
    TW_RETURN_IF_ERROR(OrderedLinearCuda(first, stream));
    return OrderedLinearCuda(rest, stream);
  }
  ConstTensorView x = args.x;
  const bool x_aligned = reinterpret_cast<uintptr_t>(x.raw()) % 16 == 0 &&
                         (tokens == 1 || DTypeBytes(x.dtype(), x.row_stride()) % 16 == 0);
  if (x.dtype() != DType::kF32 || !x_aligned) {
    const int64_t stride = (in + 3) / 4 * 4;
    TW_ASSIGN_OR_RETURN(std::byte* const scratch, stream.Scratch(4 * tokens * stride));
    const TensorView copy =
        TensorView(scratch, DType::kF32, {tokens, stride}, stream.device()).Columns(0, in);
    TW_RETURN_IF_ERROR(Convert(x, copy, stream));
    x = copy;
  }
  Call call = {};
  call.x = x.data<float>();
  call.x_stride = x.row_stride();
  call.bias = args.bias.empty() ? nullptr : args.bias.data<float>();
  call.y = args.y.mutable_raw();
  call.y_stride = args.y.row_stride();
  call.y_dtype = args.y.dtype();
  call.num_tokens = tokens;
  call.out = args.weight.dim(0);
  call.in = in;
  call.aligned = RowsAlign(args.weight, 16);
  WithFloatType(args.weight.dtype(),
                [&](auto zero) { Launch(call, args.weight.data<decltype(zero)>(), native); });
  return CudaLaunchStatus("linear in one order", stream);
}

}  // namespace thinwire
