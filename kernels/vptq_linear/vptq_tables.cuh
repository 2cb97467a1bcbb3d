// Tables of centroids in shared memory, and the look-up of a warp's codes in them as operands of
// matrix products. Private to kernels/vptq_linear.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <type_traits>

#include "kernels/core/cuda_math.cuh"
#include "kernels/vptq_linear/vptq_linear_cuda.h"
#include "kernels/vptq_linear/vptq_tables_block.h"
#include "kernels/vptq_linear/vptq_x.cuh"

namespace thinwire::vptq {

inline constexpr int kHalfColumns = kVptqUnitColumns / 2;
// Of half a unit, a lane: what is loaded at a time.
inline constexpr int kCodes = 16;

static_assert(Block<1>::kThreads == kVptqXThreads);

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

// Asks for bytes, a multiple of 16, to come into the second-level cache.
__device__ inline void PrefetchL2(const void* from, int bytes) {
#if __CUDA_ARCH__ >= 900
  asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(from), "r"(bytes) : "memory");
#endif
}

// Takes until v is there. Else what waits for v would wait for all that was asked for after it.
// as_it_is: 0x3210, which the compiler does not know.
__device__ inline void WaitFor(uint4& v, uint32_t as_it_is) {
  v = make_uint4(__byte_perm(v.x, 0, as_it_is), __byte_perm(v.y, 0, as_it_is),
                 __byte_perm(v.z, 0, as_it_is), __byte_perm(v.w, 0, as_it_is));
}

template <int kIndexBits, int kResidualBits>
struct Tables {
  static constexpr int kPlaceBits = VptqPlaceBits(kIndexBits);
  static constexpr int kBits = VptqTableCodeBits(kIndexBits, kResidualBits);
  static constexpr int kShift = PlaceShift(kIndexBits);
  static constexpr int kResidualShift = PlaceShift(kResidualBits);
  static constexpr int kResidualBytes =
      kResidualBits == 0 ? 0 : 1 << (kResidualBits + kResidualShift);
  static constexpr int kBytes = TableBytes(kIndexBits, kResidualBits);

  // Loads all before it stores any, so that it waits once.
  template <int kBookBits, int kThreads>
  struct Rows {
    static constexpr int kCount = ((1 << kBookBits) + kThreads - 1) / kThreads;
    uint4 rows[kCount];

    __device__ explicit Rows(const void* book) {
#pragma unroll
      for (int k = 0; k < kCount; ++k) {
        const int i = static_cast<int>(threadIdx.x) + k * kThreads;
        if (i < 1 << kBookBits) rows[k] = __ldg(static_cast<const uint4*>(book) + i);
      }
    }
    __device__ void Store(int num_thirds, bool twice, uint4* to) const {
#pragma unroll
      for (int k = 0; k < kCount; ++k) {
        const int i = static_cast<int>(threadIdx.x) + k * kThreads;
        if constexpr (kBookBits == 8) {
          if (i >= 1 << kBookBits) continue;
#pragma unroll
          for (int copy = 0; copy < 8; ++copy) to[8 * i + (copy + threadIdx.x) % 8] = rows[k];
        } else {
          to[i] = rows[k];
          if (twice) to[4096 + VptqOtherPlace(i)] = rows[k];
          if (i < num_thirds) to[8192 + VptqThirdPlace(i)] = rows[k];
        }
      }
    }
  };
  // The residual book lies first.
  template <int kThreads>
  __device__ static void Fill(const VptqTablesCall& call, unsigned char* memory) {
    auto* const main = reinterpret_cast<uint4*>(memory + kResidualBytes);
    if constexpr (kResidualBits > 0) {
      const Rows<kResidualBits, kThreads> residual(call.residual);
      const Rows<kIndexBits, kThreads> rows(call.centroids);
      residual.Store(0, false, reinterpret_cast<uint4*>(memory));
      rows.Store(call.num_thirds, true, main);
    } else {
      const Rows<kIndexBits, kThreads> rows(call.centroids);
      rows.Store(call.num_thirds, true, main);
    }
  }
};

// Adds to c, of two pairs of vector rows, what half `half` of a strip makes, whose codes are
// `codes`; in an odd one they begin in the middle of a word. x: of the strip, in parts of 32
// columns.
template <typename T, int kResidualBits, int kTiles, bool kOdd, int kWords, int kParts>
__device__ inline void AddHalf(const uint32_t (&codes)[kWords], uint32_t main, uint32_t residual,
                               int half, const uint4 (&x)[kTiles][kParts],
                               float (&c)[2][kTiles][4]) {
  constexpr int kAhead = Block<kTiles>::kAhead;
  constexpr int kFrom = kOdd ? kCodes * T::kBits % 32 : 0;
  uint32_t a[kAhead][2][4];
  const auto look_up = [&](auto at) {
    constexpr int i = decltype(at)::value;
    constexpr int kAt = kFrom + i * T::kBits;
    LoadRows(main + Field<kAt, T::kPlaceBits, T::kShift>(codes), a[i % kAhead][0]);
    if constexpr (kResidualBits > 0) {
      LoadRows(residual + Field<kAt + T::kPlaceBits, kResidualBits, T::kResidualShift>(codes),
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
        const uint4& v = x[n][4 * half + s / 2];
        Mma<__half>(c[i % 2][n], a[i % kAhead][book], s % 2 == 0 ? v.x : v.z,
                    s % 2 == 0 ? v.y : v.w);
      }
    }
    if constexpr (i + kAhead < kCodes) look_up(std::integral_constant<int, i + kAhead>());
  });
}

}  // namespace thinwire::vptq
