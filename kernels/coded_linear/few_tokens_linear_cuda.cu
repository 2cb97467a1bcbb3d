// Coded linears for few tokens: each weight is read once for up to 16 (floats) or 32 (codes) tokens
// and goes from memory straight into the operands of the matrix instructions.
//
// A block of threads takes pairs of panels; its warps take ranges of steps, as do the blocks of a
// cluster, and the ranges' sums are added in the order of the ranges. Within a part the products
// are summed as codes (exactly, for codes of activations), beside the sum of x, by an operand of
// ones; scale and zero come after.
#include <cooperative_groups.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/coded_linear/coded_linear_cuda.h"
#include "kernels/coded_linear/linear_operands.cuh"
#include "kernels/core/cuda_math.cuh"

namespace thinwire {
namespace {

// What floats and codes of activations differ in. T: __half, __nv_bfloat16 or uint8_t.
template <int kBits, typename T>
struct Products {
  using B = Block<kBits>;
  using Sum = float;
  static constexpr int kXWords = B::kColumns / 2;  // of a block
  static constexpr int kSteps = B::kFloatSteps;
  static constexpr uint32_t kOnes = __is_same(T, __half) ? 0x3c003c00u : 0x3f803f80u;

  __device__ static void Operand(const B& block, int rows, int step, int nibble, uint32_t (&a)[4]) {
    a[0] = block.template Pair<T>(rows, step, 0, nibble);
    a[1] = block.template Pair<T>(rows + 1, step, 0, nibble);
    a[2] = block.template Pair<T>(rows, step, 1, nibble);
    a[3] = block.template Pair<T>(rows + 1, step, 1, nibble);
  }
  __device__ static void X(const uint32_t* x, int step, uint32_t& b0, uint32_t& b1) {
    B::X(x, step, b0, b1);
  }
  __device__ static void Multiply(Sum (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    if constexpr (kBits == 8 && !__is_same(T, __half)) {
      uint32_t low[4], high[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        low[i] = (a[i] & 0x000f000fu) | 0x43004300u;
        high[i] = (a[i] >> 4 & 0x000f000fu) | 0x45004500u;
      }
      Mma<T>(c, low, b0, b1);
      Mma<T>(c, high, b0, b1);
    } else {
      Mma<T>(c, a, b0, b1);
    }
  }
  __device__ static void AddUp(Sum (&c)[4], uint32_t b0, uint32_t b1) {
    const uint32_t ones[4] = {kOnes, kOnes, kOnes, kOnes};
    Mma<T>(c, ones, b0, b1);
  }
  __device__ static float Value(Sum sum, Sum x_sum, int zero) {
    return sum * B::template Unit<T>() -
           (static_cast<float>(zero) + B::template Constant<T>()) * x_sum;
  }
};

template <int kBits>
struct Products<kBits, uint8_t> {
  using B = Block<kBits>;
  using Sum = int32_t;
  static constexpr int kXWords = B::kColumns / 4;
  static constexpr int kSteps = B::kByteSteps;

  __device__ static void Operand(const B& block, int rows, int step, int nibble, uint32_t (&a)[4]) {
    a[0] = block.Bytes(rows, step, 0, nibble);
    a[1] = block.Bytes(rows + 1, step, 0, nibble);
    a[2] = block.Bytes(rows, step, 1, nibble);
    a[3] = block.Bytes(rows + 1, step, 1, nibble);
  }
  __device__ static void X(const uint32_t* x, int step, uint32_t& b0, uint32_t& b1) {
    b0 = x[kXWords == 1 ? 0 : 2 * step];
    b1 = kXWords == 1 ? 0u : x[kXWords == 1 ? 0 : 2 * step + 1];
  }
  __device__ static void Multiply(Sum (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    MmaBytes(c, a, b0, b1);
  }
  __device__ static void AddUp(Sum (&c)[4], uint32_t b0, uint32_t b1) {
    const uint32_t ones[4] = {0x01010101u, 0x01010101u, 0x01010101u, 0x01010101u};
    MmaBytes(c, ones, b0, b1);
  }
  __device__ static float Value(Sum sum, Sum x_sum, int zero) {
    return static_cast<float>(sum - zero * x_sum);
  }
};

template <int kWords>
__device__ inline void LoadX(const uint32_t* from, bool there, uint32_t (&to)[kWords]) {
  if constexpr (kWords % 4 == 0) {
#pragma unroll
    for (int i = 0; i < kWords / 4; ++i) {
      const uint4 v =
          there ? __ldg(reinterpret_cast<const uint4*>(from) + i) : make_uint4(0, 0, 0, 0);
      to[4 * i] = v.x;
      to[4 * i + 1] = v.y;
      to[4 * i + 2] = v.z;
      to[4 * i + 3] = v.w;
    }
  } else if constexpr (kWords == 2) {
    const uint2 v = there ? __ldg(reinterpret_cast<const uint2*>(from)) : make_uint2(0, 0);
    to[0] = v.x;
    to[1] = v.y;
  } else {
    to[0] = there ? __ldg(from) : 0u;
  }
}

// kPairs pairs of panels, kTiles times 8 tokens, kDepth steps fetched ahead.
template <int kBits, typename T, int kPairs, int kTiles, int kWarps, int kDepth, int kBlocks>
__global__ void __launch_bounds__(32 * kWarps, kBlocks) FewTokens(const CodedLinearCall call) {
  using P = Products<kBits, T>;
  using B = Block<kBits>;
  constexpr int kRows = 32 * kPairs, kTokens = 8 * kTiles;
  extern __shared__ __align__(16) float sums[];  // [kWarps, kTokens, kRows]
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int g = lane / 4, t = lane % 4;
  const int quarter = g % 4, nibble = quarter / 2 * 4;
  const int first_token = blockIdx.z * kTokens;
  const int num_rows_of_x = call.num_tokens * call.planes;

  // This warp's steps.
  const int ranges = call.splits * kWarps;
  const int range = blockIdx.y * kWarps + warp;
  const int begin = static_cast<int>(static_cast<int64_t>(call.num_steps) * range / ranges);
  const int end = static_cast<int>(static_cast<int64_t>(call.num_steps) * (range + 1) / ranges);

  int panels[kPairs];
  const uint8_t* codes[kPairs];
#pragma unroll
  for (int p = 0; p < kPairs; ++p) {
    const int panel = (static_cast<int>(blockIdx.x) * kPairs + p) * 2 + g / 4;
    panels[p] = min(panel, call.num_panels - 1);
    codes[p] = call.codes + (static_cast<int64_t>(panels[p]) * call.num_blocks + t) * B::kBytes;
  }
  const uint32_t* x[kTiles];
  bool there[kTiles];
  const int64_t x_words = call.x_stride * static_cast<int64_t>(sizeof(T)) / 4;
#pragma unroll
  for (int n = 0; n < kTiles; ++n) {
    const int token = first_token + 8 * n + g;
    there[n] = token < num_rows_of_x;
    x[n] = static_cast<const uint32_t*>(call.x) + (there[n] ? token : 0) * x_words + t * P::kXWords;
  }

  typename P::Sum c[kPairs][2][kTiles][4] = {};
  typename P::Sum x_sums[kTiles][4] = {};
  float y[kPairs][4][kTiles][2] = {};

  struct Fetched {
    B blocks[kPairs];
    uint32_t x[kTiles][P::kXWords];
    int part;
  };
  // Steps are fetched in ascending order; where parts are alike, counting beats dividing.
  const bool alike = call.steps_per_part > 0;
  int fetched_part = alike && begin < end ? begin / call.steps_per_part : 0;
  int left = alike && begin < end ? (fetched_part + 1) * call.steps_per_part - begin : 0;
  const auto fetch = [&](int step, Fetched& to) {
    const bool inside = step < end;
    const int at = inside ? step : begin;
    int block = kStepBlocks * at;
    if (alike) {
      if (left == 0) {
        ++fetched_part;
        left = call.steps_per_part;
      }
      --left;
      to.part = fetched_part;
    } else {
      block = call.steps[at].block;
      to.part = call.steps[at].part;
    }
#pragma unroll
    for (int p = 0; p < kPairs; ++p) {
      to.blocks[p].Load(codes[p] + static_cast<int64_t>(block) * B::kBytes, quarter);
    }
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
      LoadX(x[n] + static_cast<int64_t>(at) * (kStepBlocks * P::kXWords), there[n] && inside,
            to.x[n]);
    }
  };
  // Scales and zeros of this lane's rows, fetched a part ahead.
  struct Part {
    uint2 scales[kPairs];
    uint32_t zeros[kPairs];
    float factor;
  };
  const auto fetch_part = [&](int part, Part& to) {
    const LinearPart info = call.parts[min(part, call.num_parts - 1)];
    to.factor = info.factor;
#pragma unroll
    for (int p = 0; p < kPairs; ++p) {
      const int64_t at =
          (static_cast<int64_t>(panels[p]) * call.num_groups + info.group) * 16 + 4 * quarter;
      to.scales[p] = __ldg(reinterpret_cast<const uint2*>(call.scales + at));
      to.zeros[p] = __ldg(reinterpret_cast<const unsigned int*>(call.zeros + at));
    }
  };
  const auto finish_part = [&](const Part& part) {
#pragma unroll
    for (int p = 0; p < kPairs; ++p) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float2 pair = UnpackPair<__half>(i < 2 ? part.scales[p].x : part.scales[p].y);
        const float scale = (i % 2 == 0 ? pair.x : pair.y) * part.factor;
        const int zero = static_cast<int>(part.zeros[p] >> (8 * i) & 255u);
#pragma unroll
        for (int n = 0; n < kTiles; ++n) {
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            auto& sum = c[p][i / 2][n][i % 2 * 2 + e];
            y[p][i][n][e] += scale * P::Value(sum, x_sums[n][e], zero);
            sum = 0;
          }
        }
      }
    }
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) x_sums[n][i] = 0;
    }
  };

  if (begin < end) {
    // A place is filled again as soon as it is used, so that kDepth steps are on their way.
    Fetched fetched[kDepth];
#pragma unroll
    for (int d = 0; d < kDepth; ++d) fetch(begin + d, fetched[d]);
    int part = fetched[0].part;
    Part part_now, part_next;
    fetch_part(part, part_now);
    fetch_part(part + 1, part_next);
    for (int step = begin; step < end; step += kDepth) {
#pragma unroll
      for (int d = 0; d < kDepth; ++d) {
        if (step + d >= end) break;
        Fetched& now = fetched[d];
        if (now.part != part) {
          finish_part(part_now);
          part = now.part;
          part_now = part_next;
          fetch_part(part + 1, part_next);
        }
#pragma unroll
        for (int s = 0; s < P::kSteps; ++s) {
          uint32_t b[kTiles][2];
#pragma unroll
          for (int n = 0; n < kTiles; ++n) {
            P::X(now.x[n], s, b[n][0], b[n][1]);
            P::AddUp(x_sums[n], b[n][0], b[n][1]);
          }
#pragma unroll
          for (int p = 0; p < kPairs; ++p) {
#pragma unroll
            for (int q = 0; q < 2; ++q) {
              uint32_t a[4];
              P::Operand(now.blocks[p], 2 * q, s, nibble, a);
#pragma unroll
              for (int n = 0; n < kTiles; ++n) P::Multiply(c[p][q][n], a, b[n][0], b[n][1]);
            }
          }
        }
        fetch(step + d + kDepth, now);
      }
    }
    finish_part(part_now);
  }

#pragma unroll
  for (int p = 0; p < kPairs; ++p) {
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int token = 8 * n + 2 * t + e, row = 32 * p + 16 * (g / 4) + 4 * quarter;
        *reinterpret_cast<float4*>(&sums[(warp * kTokens + token) * kRows + row]) =
            make_float4(y[p][0][n][e], y[p][1][n][e], y[p][2][n][e], y[p][3][n][e]);
      }
    }
  }
  __syncthreads();
  for (int i = threadIdx.x; i < kTokens * kRows; i += 32 * kWarps) {
    float sum = 0.0f;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) sum += sums[w * kTokens * kRows + i];
    sums[i] = sum;
  }
#if __CUDA_ARCH__ >= 900
  namespace cg = cooperative_groups;
  if (call.splits > 1) {
    cg::cluster_group cluster = cg::this_cluster();
    cluster.sync();
    if (cluster.block_rank() == 0) {
      for (int i = threadIdx.x; i < kTokens * kRows; i += 32 * kWarps) {
        float sum = sums[i];
        for (int r = 1; r < call.splits; ++r) sum += cluster.map_shared_rank(sums, r)[i];
        sums[i] = sum;
      }
    }
    cluster.sync();
    if (cluster.block_rank() != 0) return;
  }
#endif
  __syncthreads();
  const int tokens_here = min(kTokens, num_rows_of_x - first_token) / call.planes;
  for (int i = threadIdx.x; i < tokens_here * kRows; i += 32 * kWarps) {
    const int token = i / kRows, row = i % kRows;
    const int o = static_cast<int>(blockIdx.x) * kRows + row;
    if (o >= call.out_features) continue;
    float value = 0.0f;
    for (int p = 0; p < call.planes; ++p) value += sums[(token * call.planes + p) * kRows + row];
    const int t_out = first_token / call.planes + token;
    if (call.offset != nullptr) value -= call.offset[o];
    if (call.gains != nullptr) value *= call.gains[t_out];
    if (call.bias != nullptr) value += call.bias[o];
    StoreFloat(call.y, call.y_dtype, t_out * call.y_stride + o, value);
  }
}

template <int kBits, typename T, int kPairs, int kTiles, int kWarps, int kDepth, int kBlocks>
cudaError_t Launch(const CodedLinearCall& call, cudaStream_t stream) {
  constexpr int kBytes = kWarps * 8 * kTiles * 32 * kPairs * static_cast<int>(sizeof(float));
  const auto kernel = FewTokens<kBits, T, kPairs, kTiles, kWarps, kDepth, kBlocks>;
  const cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes);
  if (error != cudaSuccess) return error;
  // Whole tokens a pass, also of several planes.
  const int pass = 8 * kTiles / call.planes * call.planes;
  if (pass != 8 * kTiles && call.num_tokens * call.planes > pass) return cudaErrorInvalidValue;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3((call.num_panels + 2 * kPairs - 1) / (2 * kPairs), call.splits,
                        (call.num_tokens * call.planes + 8 * kTiles - 1) / (8 * kTiles));
  config.blockDim = dim3(32 * kWarps);
  config.dynamicSmemBytes = kBytes;
  config.stream = stream;
  cudaLaunchAttribute cluster = {};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim.x = 1;
  cluster.val.clusterDim.y = call.splits;
  cluster.val.clusterDim.z = 1;
  config.attrs = &cluster;
  config.numAttrs = call.splits > 1 ? 1 : 0;
  return cudaLaunchKernelEx(&config, kernel, call);
}

template <int kBits, typename T>
cudaError_t LaunchTokens(const CodedLinearCall& call, cudaStream_t stream) {
  // Steps of 3 bits are twice as long as those of 4.
  constexpr int kDeep = kBits == 3 ? 2 : 3, kFlat = kBits == 3 ? 1 : 2;
  if constexpr (__is_same(T, uint8_t)) {
    // The same ranges for any number of tokens.
    if (call.num_tokens <= 8) return Launch<kBits, T, 2, 1, 8, kDeep, 2>(call, stream);
    if (call.num_tokens <= 16) return Launch<kBits, T, 1, 2, 8, kDeep, 2>(call, stream);
    return Launch<kBits, T, 1, 4, 8, kFlat, 2>(call, stream);
  } else {
    if (call.num_tokens * call.planes <= 8) {
      return Launch<kBits, T, 2, 1, 8, kDeep, 2>(call, stream);
    }
    if constexpr (kBits == 3) {
      return Launch<kBits, T, 1, 2, 8, 2, 2>(call, stream);
    } else {
      return Launch<kBits, T, 2, 2, 4, 3, 3>(call, stream);
    }
  }
}

template <typename T>
cudaError_t LaunchBits(const CodedLinearCall& call, cudaStream_t stream) {
  if (call.bits == 3) return LaunchTokens<3, T>(call, stream);
  if (call.bits == 4) return LaunchTokens<4, T>(call, stream);
  return LaunchTokens<8, T>(call, stream);
}

}  // namespace

cudaError_t LaunchFloatLinear(const CodedLinearCall& call, cudaStream_t stream) {
  return call.x_dtype == DType::kF16 ? LaunchBits<__half>(call, stream)
                                     : LaunchBits<__nv_bfloat16>(call, stream);
}

cudaError_t LaunchIntegerLinear(const CodedLinearCall& call, cudaStream_t stream) {
  return LaunchBits<uint8_t>(call, stream);
}

}  // namespace thinwire
