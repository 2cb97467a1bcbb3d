// Tables of 8-byte centroids in shared memory, and the look-up of a warp's codes in them as
// operands of matrix products of bytes. Private to kernels/vptq_linear.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/vptq_linear/vptq_bytes_cuda.h"
#include "kernels/vptq_linear/vptq_tables.cuh"

namespace thinwire::vptq {

inline constexpr int kStripChunks = kVptqByteStrip / kVptqByteChunk;
inline constexpr int kChunkWords = kVptqByteCodes / 4;  // of x: four columns each

// c += a b for a of [16, 32] and b of [32, 8], signed bytes; lanes as for MmaBytes.
__device__ inline void MmaSigned(int32_t (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2,
                                 uint32_t a3, uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// One of the two books. kFirst: the word of a lane's codes of a chunk at which its own begin.
template <int kBits, int kFirst>
struct ByteTable {
  static constexpr int kPlaceBits = VptqBytePlaceBits(kBits);
  static constexpr int kShift = kBits == 8 ? 7 : 3;
  static constexpr int kWords = kPlaceBits * kVptqByteCodes / 32;
  static constexpr int kFirstWord = kFirst;

  // Of code kCode of `words`, in the table at `memory`, whose banks of this lane begin at `banks`.
  template <int kCode, int kAll>
  __device__ static uint2 At(const unsigned char* memory, uint32_t banks,
                             const uint32_t (&words)[kAll]) {
    static_assert(kWords <= kAll);
    const uint32_t at = Field<kCode * kPlaceBits, kPlaceBits, kShift>(words);
    return *reinterpret_cast<const uint2*>(memory + (kBits == 8 ? (at | banks) : at));
  }
  __device__ static uint32_t Banks() { return kBits == 8 ? threadIdx.x % 16 * 8 : 0; }

  template <int kThreads>
  __device__ static void Fill(const int8_t* book, unsigned char* memory) {
    constexpr int kCount = ((1 << kBits) + kThreads - 1) / kThreads;
    uint2 rows[kCount];
#pragma unroll
    for (int k = 0; k < kCount; ++k) {
      const int i = static_cast<int>(threadIdx.x) + k * kThreads;
      if (i < 1 << kBits) rows[k] = __ldg(reinterpret_cast<const uint2*>(book) + i);
    }
    auto* const to = reinterpret_cast<uint2*>(memory);
#pragma unroll
    for (int k = 0; k < kCount; ++k) {
      const int i = static_cast<int>(threadIdx.x) + k * kThreads;
      if (i >= 1 << kBits) continue;
      if constexpr (kBits == 8) {
#pragma unroll
        for (int copy = 0; copy < 16; ++copy) to[16 * i + (copy + threadIdx.x) % 16] = rows[k];
      } else {
#pragma unroll
        for (int copy = 0; copy < 4; ++copy) to[VptqBytePlace(i, copy)] = rows[k];
      }
    }
  }
};

// Of one row of x. Four bytes of a register are components of a vector, so no byte moves: x is
// spread instead, so that column 2 j + plane of b has it at component j and zeros at the others.
// spread: selectors of the lane's j for each of four columns. c: lane 4 g + t gets of vector row g
// both planes of component t, then those of component 4 + t.
template <typename Table>
__device__ inline void AddOneRow(const unsigned char* memory, uint32_t banks,
                                 const uint32_t (&words)[Table::kWords],
                                 const uint32_t (&x)[kChunkWords], const uint32_t (&spread)[4],
                                 int32_t (&c)[4]) {
  ForEach<kVptqByteCodes / 2>([&](auto at) {
    constexpr int kPair = decltype(at)::value / 4, kColumn = decltype(at)::value % 4;
    const uint2 a = Table::template At<8 * kPair + kColumn>(memory, banks, words);
    const uint2 b = Table::template At<8 * kPair + 4 + kColumn>(memory, banks, words);
    MmaSigned(c, a.x, a.y, b.x, b.y, __byte_perm(x[2 * kPair], 0, spread[kColumn]),
              __byte_perm(x[2 * kPair + 1], 0, spread[kColumn]));
  });
}

// Four columns of four components as four components of four columns.
__device__ inline void TransposeBytes(uint32_t (&v)[4]) {
  const uint32_t a = __byte_perm(v[0], v[1], 0x5140), b = __byte_perm(v[2], v[3], 0x5140);
  const uint32_t c = __byte_perm(v[0], v[1], 0x7362), d = __byte_perm(v[2], v[3], 0x7362);
  v[0] = __byte_perm(a, b, 0x5410);
  v[1] = __byte_perm(a, b, 0x7632);
  v[2] = __byte_perm(c, d, 0x5410);
  v[3] = __byte_perm(c, d, 0x7632);
}

// Of kTiles times four rows of x. c: lane 4 g + t gets of vector row g and of row 4 tile + t of x
// both planes of component 2 p, then those of component 2 p + 1.
template <typename Table, int kTiles>
__device__ inline void AddRows(const unsigned char* memory, uint32_t banks,
                               const uint32_t (&words)[Table::kWords],
                               const uint32_t (&x)[kTiles][kChunkWords],
                               int32_t (&c)[4][kTiles][4]) {
  ForEach<2>([&](auto pair) {
    uint32_t v[2][2][4];  // of four columns and those 16 columns on, components 0 to 3 and 4 to 7
    ForEach<8>([&](auto at) {
      constexpr int i = decltype(at)::value;
      const uint2 a = Table::template At<8 * decltype(pair)::value + i>(memory, banks, words);
      v[i / 4][0][i % 4] = a.x;
      v[i / 4][1][i % 4] = a.y;
    });
#pragma unroll
    for (int i = 0; i < 4; ++i) TransposeBytes(v[i / 2][i % 2]);
#pragma unroll
    for (int p = 0; p < 4; ++p) {
#pragma unroll
      for (int n = 0; n < kTiles; ++n) {
        constexpr int q = 2 * decltype(pair)::value;
        MmaSigned(c[p][n], v[0][p / 2][p % 2 * 2], v[0][p / 2][p % 2 * 2 + 1],
                  v[1][p / 2][p % 2 * 2], v[1][p / 2][p % 2 * 2 + 1], x[n][q], x[n][q + 1]);
      }
    }
  });
}

}  // namespace thinwire::vptq
