// VPTQ linears for few tokens with all centroids in shared memory (vptq_linear_cuda.h). A lane
// turns its code into the address of a centroid, the matrix load instruction makes 32 of these the
// operand of a product, 16 outputs by 16 columns, and x is the other operand, which a warp keeps in
// registers: no value of a weight ever passes through an instruction of its own.
//
// A warp has a unit of columns and goes through quads of vector rows; the block adds its warps'
// sums in the order of the columns. Longer rows are split, and splits' sums added by a second
// kernel. So an element's sum depends on the columns alone.
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "kernels/core/cuda_math.cuh"
#include "kernels/vptq_linear/vptq_linear_cuda.h"
#include "kernels/vptq_linear/vptq_result.cuh"

namespace thinwire {
namespace {

constexpr int kQuadOutputs = kVptqQuadRows * kVptqRow;  // 32
// Floats of a token's outputs in shared memory; four more let a warp write without conflicts.
constexpr int kRowStride = kQuadOutputs + 4;
constexpr int kSteps = kVptqUnitColumns / 16;

template <int kCount, int kFirst = 0, typename F>
__device__ inline void ForEach(F&& f) {
  if constexpr (kFirst < kCount) {
    f(std::integral_constant<int, kFirst>());
    ForEach<kCount, kFirst + 1>(f);
  }
}

// Bits [kFirst, kFirst + kWidth) of a string, times 2^kShift.
template <int kFirst, int kWidth, int kShift, int kWords>
__device__ inline uint32_t Field(const uint32_t (&words)[kWords]) {
  constexpr int kWord = kFirst / 32, kAt = kFirst % 32;
  constexpr uint32_t kMask = ((1u << kWidth) - 1u) << kShift;
  if constexpr (kAt + kWidth > 32) {
    static_assert(kAt >= kShift);
    return __funnelshift_r(words[kWord], words[kWord + 1], kAt - kShift) & kMask;
  } else if constexpr (kAt >= kShift) {
    return words[kWord] >> (kAt - kShift) & kMask;
  } else {
    return words[kWord] << (kShift - kAt) & kMask;
  }
}

// Four matrices of 8 rows of 16 bytes, transposed: lane 4 g + t gets of matrix m in a[m] element g
// of rows 2 t and 2 t + 1. Lane 8 m + j has the address of row j of matrix m.
__device__ inline void LoadRows(uint32_t address, uint32_t (&a)[4]) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(a[0]), "=r"(a[1]), "=r"(a[2]), "=r"(a[3])
               : "r"(address));
}

template <int kIndexBits, int kResidualBits>
struct Tables {
  static constexpr int kPlaceBits = VptqPlaceBits(kIndexBits);
  static constexpr int kBits = VptqTableCodeBits(kIndexBits, kResidualBits);
  // A place times 2^kShift is an address. Small books lie 8 times, side by side.
  static constexpr int kShift = kIndexBits == 8 ? 7 : 4;
  static constexpr int kResidualShift = kResidualBits == 8 ? 7 : 4;
  static constexpr int kBytes = 1 << (kPlaceBits + kShift);
  static constexpr int kResidualBytes =
      kResidualBits == 0 ? 0 : 1 << (kResidualBits + kResidualShift);
  static constexpr int kAllBytes = kBytes + kResidualBytes;

  template <int kBookBits>
  __device__ static void FillOne(const uint4* book, bool twice, unsigned char* memory) {
    auto* const rows = reinterpret_cast<uint4*>(memory);
#pragma unroll 4
    for (int i = threadIdx.x; i < 1 << kBookBits; i += blockDim.x) {
      const uint4 row = __ldg(book + i);
      if constexpr (kBookBits == 8) {
#pragma unroll
        for (int copy = 0; copy < 8; ++copy) rows[8 * i + (copy + threadIdx.x) % 8] = row;
      } else {
        rows[i] = row;
        if (twice) rows[(1 << kBookBits) + VptqOtherPlace(i)] = row;
      }
    }
  }
  __device__ static void Fill(const VptqTablesCall& call, unsigned char* memory) {
    FillOne<kIndexBits>(static_cast<const uint4*>(call.centroids), true, memory);
    if constexpr (kResidualBits > 0) {
      FillOne<kResidualBits>(static_cast<const uint4*>(call.residual), false, memory + kBytes);
    }
  }
};

template <int kTiles>
constexpr int kWarps = kTiles == 1 ? 16 : 8;

template <int kIndexBits, int kResidualBits, int kTiles>
__global__ void __launch_bounds__(32 * kWarps<kTiles>, 1) TablesKernel(const VptqTablesCall call) {
  using T = Tables<kIndexBits, kResidualBits>;
  constexpr int kThreads = 32 * kWarps<kTiles>;
  constexpr int kWarpSums = 8 * kTiles * kRowStride;
  extern __shared__ __align__(128) unsigned char memory[];
  float* const sums = reinterpret_cast<float*>(memory + T::kAllBytes);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int g = lane / 4, t = lane % 4;
  const int slots = kWarps<kTiles> / call.warps_each;
  const int slot = warp / call.warps_each, in_slot = warp % call.warps_each;
  const int tokens_each = kVptqPassRows / call.planes;
  const int first_token = static_cast<int>(blockIdx.y) * tokens_each;
  const int num_tokens = min(tokens_each, call.result.num_tokens - first_token);
  const int num_rows = num_tokens * call.planes;  // of x

  const auto base = static_cast<uint32_t>(__cvta_generic_to_shared(memory));
  const uint32_t main = base + (kIndexBits == 8 ? lane % 8 * 16 : 0);
  const uint32_t residual = base + T::kBytes + (kResidualBits == 8 ? lane % 8 * 16 : 0);

  // Items are quads of a split, split after split.
  const int64_t num_items = static_cast<int64_t>(call.num_quads) * call.result.splits;
  const int begin = static_cast<int>(num_items * blockIdx.x / gridDim.x);
  const int end = static_cast<int>(num_items * (blockIdx.x + 1) / gridDim.x);
  const auto unit_of = [&](int item) { return item / call.num_quads * call.units_each + in_slot; };
  const auto is_there = [&](int item) {
    return item < end && in_slot < call.units_each && unit_of(item) < call.num_units;
  };
  const auto load = [&](int item, uint32_t(&codes)[T::kBits]) {
    if (!is_there(item)) return;
    const int quad = item % call.num_quads;
    const uint32_t* const from =
        call.codes +
        (static_cast<int64_t>(quad) * call.num_units + unit_of(item)) * (32 * T::kBits) + lane;
#pragma unroll
    for (int w = 0; w < T::kBits; ++w) codes[w] = __ldcs(from + 32 * w);
  };

  uint32_t codes[T::kBits] = {};
  load(begin + slot, codes);
  T::Fill(call, memory);
  WaitForPrevious();  // what x is made of
  __syncthreads();

  uint4 x[kTiles][kSteps / 2];
  int unit_of_x = -1;
  int parity = 0;
  for (int first = begin; first < end; first += slots) {
    const int item = first + slot;
    uint32_t next[T::kBits] = {};
    load(item + slots, next);
    float* const set = sums + parity * (kWarps<kTiles> * kWarpSums);
    if (is_there(item)) {
      if (unit_of(item) != unit_of_x) {
        unit_of_x = unit_of(item);
#pragma unroll
        for (int n = 0; n < kTiles; ++n) {
          const bool there = 8 * n + g < num_rows;
          const auto* const from =
              static_cast<const __half*>(call.x) +
              (there ? static_cast<int64_t>(first_token * call.planes + 8 * n + g) * call.x_stride
                     : 0) +
              unit_of_x * kVptqUnitColumns + 8 * t;
#pragma unroll
          for (int s = 0; s < kSteps / 2; ++s) {
            x[n][s] =
                there ? *reinterpret_cast<const uint4*>(from + 32 * s) : make_uint4(0, 0, 0, 0);
          }
        }
      }
      float c[2][2][kTiles][4] = {};  // centroids and residuals of two pairs of vector rows
      ForEach<2 * kSteps>([&](auto at) {
        constexpr int i = decltype(at)::value;
        constexpr int s = i / 2;
        uint32_t a[4];
        LoadRows(main + Field<i * T::kBits, T::kPlaceBits, T::kShift>(codes), a);
#pragma unroll
        for (int n = 0; n < kTiles; ++n) {
          const uint4& v = x[n][s / 2];
          Mma<__half>(c[0][i % 2][n], a, s % 2 == 0 ? v.x : v.z, s % 2 == 0 ? v.y : v.w);
        }
        if constexpr (kResidualBits > 0) {
          LoadRows(residual +
                       Field<i * T::kBits + T::kPlaceBits, kResidualBits, T::kResidualShift>(codes),
                   a);
#pragma unroll
          for (int n = 0; n < kTiles; ++n) {
            const uint4& v = x[n][s / 2];
            Mma<__half>(c[1][i % 2][n], a, s % 2 == 0 ? v.x : v.z, s % 2 == 0 ? v.y : v.w);
          }
        }
      });
#pragma unroll
      for (int n = 0; n < kTiles; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int row = 8 * n + 2 * t + i % 2;
          if (row >= num_rows) continue;
#pragma unroll
          for (int p = 0; p < 2; ++p) {
            set[warp * kWarpSums + row * kRowStride + 16 * p + i / 2 * 8 + g] =
                c[0][p][n][i] + c[1][p][n][i];
          }
        }
      }
    } else if (item < end) {
      for (int i = lane; i < kWarpSums; i += 32) set[warp * kWarpSums + i] = 0.0f;
    }
    __syncthreads();
    // What is read here is written again after the next barrier but one.
    for (int i = threadIdx.x; i < slots * num_tokens * kQuadOutputs; i += kThreads) {
      const int element = i % kVptqRow, row = i / kVptqRow % kVptqQuadRows;
      const int token = i / kQuadOutputs % num_tokens, of_slot = i / kQuadOutputs / num_tokens;
      if (first + of_slot >= end || element >= call.length) continue;
      const int quad = (first + of_slot) % call.num_quads,
                split = (first + of_slot) / call.num_quads;
      const int64_t o =
          (static_cast<int64_t>(quad) * kVptqQuadRows + row) * call.length + element - call.skip;
      if (o < 0 || o >= call.result.out_features) continue;
      float value = 0.0f, weight = 1.0f;
      for (int plane = 0; plane < call.planes; ++plane, weight *= 0x1p-11f) {
        const float* from = set + of_slot * call.warps_each * kWarpSums +
                            (token * call.planes + plane) * kRowStride + i % kQuadOutputs;
        float sum = 0.0f;
#pragma unroll 4
        for (int w = 0; w < call.units_each; ++w) sum += from[w * kWarpSums];
        value += weight * sum;
      }
      KeepVptqSum(call.result, split, first_token + token, o, value);
    }
    parity ^= 1;
#pragma unroll
    for (int w = 0; w < T::kBits; ++w) codes[w] = next[w];
  }
  LetNextStart();
}

template <int kIndexBits, int kResidualBits, int kTiles>
cudaError_t Launch(const VptqTablesCall& call, cudaStream_t stream) {
  constexpr int kBytes = Tables<kIndexBits, kResidualBits>::kAllBytes +
                         2 * kWarps<kTiles> * 8 * kTiles * kRowStride * 4;
  const auto kernel = TablesKernel<kIndexBits, kResidualBits, kTiles>;
  const cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes);
  if (error != cudaSuccess) return error;
  const int slots = kWarps<kTiles> / call.warps_each;
  const int64_t items = static_cast<int64_t>(call.num_quads) * call.result.splits;
  const int tokens_each = kVptqPassRows / call.planes;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(
      static_cast<unsigned>(std::clamp<int64_t>((items + slots - 1) / slots, 1, call.num_blocks)),
      static_cast<unsigned>((call.result.num_tokens + tokens_each - 1) / tokens_each));
  config.blockDim = dim3(32 * kWarps<kTiles>);
  config.dynamicSmemBytes = kBytes;
  config.stream = stream;
  cudaLaunchAttribute early = {};
  early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  early.val.programmaticStreamSerializationAllowed = 1;
  config.attrs = &early;
  config.numAttrs = call.early_launches ? 1 : 0;
  return cudaLaunchKernelEx(&config, kernel, call);
}

template <int kIndexBits, int kResidualBits>
cudaError_t LaunchTiles(const VptqTablesCall& call, cudaStream_t stream) {
  return call.result.num_tokens * call.planes <= 8
             ? Launch<kIndexBits, kResidualBits, 1>(call, stream)
             : Launch<kIndexBits, kResidualBits, 2>(call, stream);
}

}  // namespace

bool HasVptqTables(int length, int index_bits, int residual_bits, int64_t shared_memory_bytes) {
  const bool known =
      (index_bits == 8 && (residual_bits == 0 || residual_bits == 8)) ||
      (index_bits == 12 && (residual_bits == 0 || residual_bits == 8 || residual_bits == 12));
  if (!known || length > kVptqRow) return false;
  const int64_t book = index_bits == 8 ? Tables<8, 0>::kBytes : Tables<12, 0>::kBytes;
  const int64_t residual = residual_bits == 0 ? 0 : int64_t{1} << (residual_bits == 8 ? 15 : 16);
  return book + residual + 2 * 16 * 8 * kRowStride * 4 <= shared_memory_bytes;
}

cudaError_t LaunchVptqTables(const VptqTablesCall& call, cudaStream_t stream) {
  cudaError_t error = cudaErrorInvalidValue;
  if (call.index_bits == 8) {
    if (call.residual_bits == 0) error = LaunchTiles<8, 0>(call, stream);
    if (call.residual_bits == 8) error = LaunchTiles<8, 8>(call, stream);
  } else if (call.index_bits == 12) {
    if (call.residual_bits == 0) error = LaunchTiles<12, 0>(call, stream);
    if (call.residual_bits == 8) error = LaunchTiles<12, 8>(call, stream);
    if (call.residual_bits == 12) error = LaunchTiles<12, 12>(call, stream);
  }
  if (error != cudaSuccess || call.result.partials == nullptr) return error;
  return LaunchVptqAdd(call.result, call.early_launches, stream);
}

}  // namespace thinwire
