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
constexpr int kWarps = 16;
constexpr int kThreads = 32 * kWarps;
// Two warps share a unit: each has half of its columns, that is of each lane's codes.
constexpr int kHalves = 2;
constexpr int kCodes = 32 / kHalves;
constexpr int kHalfColumns = kVptqUnitColumns / kHalves;
// Codes whose centroids are on their way while others are multiplied.
constexpr int kAhead = 4;
// Shared memory for sums: of one round at least, of about all of them with one row of x.
constexpr int kFewestSumBytes = kWarps * kVptqPassRows * kQuadOutputs * 4;
constexpr int kMostSumBytes = 64 * 1024;

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

// Takes until v is there. Else what waits for v would wait for all that was asked for after it.
// as_it_is: 0x3210, which the compiler does not know.
__device__ inline void WaitFor(uint4& v, uint32_t as_it_is) {
  v = make_uint4(__byte_perm(v.x, 0, as_it_is), __byte_perm(v.y, 0, as_it_is),
                 __byte_perm(v.z, 0, as_it_is), __byte_perm(v.w, 0, as_it_is));
}

// Where in shared memory a warp's sum of a row of x and one of its outputs is: so that a warp
// writes without conflicts.
__device__ inline int PlaceOfSum(int row, int output) {
  return row * kQuadOutputs + (output ^ row / 2 % 4 * 8);
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

template <int kIndexBits, int kResidualBits, int kTiles>
__global__ void __launch_bounds__(kThreads, 1) TablesKernel(const VptqTablesCall call) {
  using T = Tables<kIndexBits, kResidualBits>;
  extern __shared__ __align__(128) unsigned char memory[];
  float* const sums = reinterpret_cast<float*>(memory + T::kAllBytes);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int g = lane / 4, t = lane % 4;
  const int slots = kWarps / kHalves / call.units_room;
  const int half = warp % kHalves, team = warp / kHalves;
  const int slot = team / call.units_room, in_slot = team % call.units_room;
  const int tokens_each = kVptqPassRows / call.planes;
  const int first_token = static_cast<int>(blockIdx.y) * tokens_each;
  const int num_tokens = min(tokens_each, call.result.num_tokens - first_token);
  const int num_rows = num_tokens * call.planes;  // of x

  const uint32_t as_it_is = 0x3210u + (gridDim.z - 1);

  const auto base = static_cast<uint32_t>(__cvta_generic_to_shared(memory));
  const uint32_t main = base + (kIndexBits == 8 ? lane % 8 * 16 : 0);
  const uint32_t residual = base + T::kBytes + (kResidualBits == 8 ? lane % 8 * 16 : 0);

  // Items are quads of a split, split after split.
  const int64_t num_items = static_cast<int64_t>(call.num_quads) * call.result.splits;
  const int begin = static_cast<int>(num_items * blockIdx.x / gridDim.x);
  const int end = static_cast<int>(num_items * (blockIdx.x + 1) / gridDim.x);
  // The next item of this slot; counted on rather than divided, which would cost more than a round.
  int item = begin + slot;
  int split = item / call.num_quads, quad = item % call.num_quads;
  int unit = split * call.units_each + in_slot;
  const bool in_use = in_slot < call.units_each;
  bool there = item < end && in_use && unit < call.num_units;
  // A half's codes may begin in the middle of a word.
  constexpr int kWords = (kCodes * T::kBits + 31) / 32;
  const auto load = [&](uint32_t(&words)[kWords]) {
    if (!there) return;
    const uint32_t* const from =
        call.codes + (static_cast<int64_t>(quad) * call.num_units + unit) * (32 * T::kBits) +
        half * (kCodes * T::kBits / 32 * 32) + lane;
#pragma unroll
    for (int w = 0; w < kWords; ++w) words[w] = __ldcs(from + 32 * w);
  };
  const auto align = [&](const uint32_t(&words)[kWords], uint32_t(&codes)[kWords]) {
    const int shift = half * (kCodes * T::kBits % 32);
#pragma unroll
    for (int w = 0; w < kWords; ++w) {
      codes[w] = __funnelshift_r(words[w], w + 1 < kWords ? words[w + 1] : 0u, shift);
    }
  };

  uint32_t next[kWords] = {};
  load(next);
  T::Fill(call, memory);
  WaitForPrevious();  // what x is made of
  __syncthreads();

  uint4 x[kTiles][kHalfColumns / 32];
  int unit_of_x = -1;
  // Rounds whose sums are held, each [warps, rows of x, kQuadOutputs] at PlaceOfSum.
  const int warp_sums = num_rows * kQuadOutputs;
  const int most_held = call.sum_floats / (kWarps * warp_sums);
  int held = 0;
  for (int first = begin; first < end; first += slots) {
    uint32_t codes[kWords];
    align(next, codes);
    const bool here = there;
    if (here) {
      if (unit != unit_of_x) {
        unit_of_x = unit;
#pragma unroll
        for (int n = 0; n < kTiles; ++n) {
          const bool in_rows = 8 * n + g < num_rows;
          const auto* const from =
              static_cast<const __half*>(call.x) +
              (in_rows ? static_cast<int64_t>(first_token * call.planes + 8 * n + g) * call.x_stride
                       : 0) +
              unit_of_x * kVptqUnitColumns + half * kHalfColumns + 8 * t;
#pragma unroll
          for (int s = 0; s < kHalfColumns / 32; ++s) {
            x[n][s] =
                in_rows ? *reinterpret_cast<const uint4*>(from + 32 * s) : make_uint4(0, 0, 0, 0);
          }
        }
#pragma unroll
        for (int n = 0; n < kTiles; ++n) {
#pragma unroll
          for (uint4& v : x[n]) WaitFor(v, as_it_is);
        }
      }
    }
    item += slots;
    quad += slots;
    while (quad >= call.num_quads) {
      quad -= call.num_quads;
      ++split;
    }
    unit = split * call.units_each + in_slot;
    there = item < end && in_use && unit < call.num_units;
    load(next);
    if (here) {
      float c[2][kTiles][4] = {};  // of two pairs of vector rows
      uint32_t a[kAhead][2][4];
      const auto look_up = [&](auto at) {
        constexpr int i = decltype(at)::value;
        LoadRows(main + Field<i * T::kBits, T::kPlaceBits, T::kShift>(codes), a[i % kAhead][0]);
        if constexpr (kResidualBits > 0) {
          LoadRows(residual +
                       Field<i * T::kBits + T::kPlaceBits, kResidualBits, T::kResidualShift>(codes),
                   a[i % kAhead][1]);
        }
      };
      ForEach<kAhead>(look_up);
      ForEach<kCodes>([&](auto at) {
        constexpr int i = decltype(at)::value;
        constexpr int s = i / 2;
#pragma unroll
        for (int book = 0; book < (kResidualBits > 0 ? 2 : 1); ++book) {
#pragma unroll
          for (int n = 0; n < kTiles; ++n) {
            const uint4& v = x[n][s / 2];
            Mma<__half>(c[i % 2][n], a[i % kAhead][book], s % 2 == 0 ? v.x : v.z,
                        s % 2 == 0 ? v.y : v.w);
          }
        }
        if constexpr (i + kAhead < kCodes) {
          look_up(std::integral_constant<int, i + kAhead>());
        }
      });
      float* const to = sums + (held * kWarps + warp) * warp_sums;
#pragma unroll
      for (int n = 0; n < kTiles; ++n) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const int row = 8 * n + 2 * t + e;
          if (row >= num_rows) continue;
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            to[PlaceOfSum(row, 8 * i + g)] = c[i / 2][n][i % 2 * 2 + e];
          }
        }
      }
    }
    ++held;
    if (held == most_held || first + slots >= end) {
      __syncthreads();
      const int first_held = first - (held - 1) * slots;
      for (int i = threadIdx.x; i < held * slots * num_tokens * kQuadOutputs; i += kThreads) {
        const int element = i % kVptqRow, row = i / kVptqRow % kVptqQuadRows;
        const int at = i / kQuadOutputs / num_tokens;
        const int token = i / kQuadOutputs - at * num_tokens;
        if (first_held + at >= end || element >= call.length) continue;
        const int of_split = (first_held + at) / call.num_quads;
        const int of_quad = first_held + at - of_split * call.num_quads;
        const int64_t o = (static_cast<int64_t>(of_quad) * kVptqQuadRows + row) * call.length +
                          element - call.skip;
        if (o < 0 || o >= call.result.out_features) continue;
        const int units = min(call.units_each, call.num_units - of_split * call.units_each);
        const float* const from = sums + at * (kHalves * call.units_room * warp_sums);
        float value = 0.0f, weight = 1.0f;
        for (int plane = 0; plane < call.planes; ++plane, weight *= 0x1p-11f) {
          const float* const of_row =
              from + PlaceOfSum(token * call.planes + plane, i % kQuadOutputs);
          float sum = 0.0f;
#pragma unroll 4
          for (int u = 0; u < units; ++u) {
            sum += of_row[kHalves * u * warp_sums] + of_row[(kHalves * u + 1) * warp_sums];
          }
          value += weight * sum;
        }
        KeepVptqSum(call.result, of_split, first_token + token, o, value);
      }
      __syncthreads();
      held = 0;
    }
  }
  LetNextStart();
}

template <int kIndexBits, int kResidualBits, int kTiles>
cudaError_t Launch(VptqTablesCall call, cudaStream_t stream) {
  const int bytes = std::min(call.shared_memory_bytes,
                             Tables<kIndexBits, kResidualBits>::kAllBytes + kMostSumBytes);
  call.sum_floats = (bytes - Tables<kIndexBits, kResidualBits>::kAllBytes) / 4;
  const auto kernel = TablesKernel<kIndexBits, kResidualBits, kTiles>;
  const cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  if (error != cudaSuccess) return error;
  const int slots = kWarps / kHalves / call.units_room;
  const int64_t items = static_cast<int64_t>(call.num_quads) * call.result.splits;
  const int tokens_each = kVptqPassRows / call.planes;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(
      static_cast<unsigned>(std::clamp<int64_t>((items + slots - 1) / slots, 1, call.num_blocks)),
      static_cast<unsigned>((call.result.num_tokens + tokens_each - 1) / tokens_each));
  config.blockDim = dim3(32 * kWarps);
  config.dynamicSmemBytes = static_cast<size_t>(bytes);
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
  return book + residual + kFewestSumBytes <= shared_memory_bytes;
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
