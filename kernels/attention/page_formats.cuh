// How a warp takes 8 keys of K, or 4 keys of V for each of its lanes, from pages straight into the
// operands of the matrix instructions. Private to kernels/attention. Rows have kDim channels.
//
// Lane 4 g + t of a warp reads quarter t of key g of K, and eighth g of four keys of V: what lies
// together in memory, whichever channels they are. A sum over channels does not mind as long as the
// query is laid out alike (KPosition), nor does a result that is written by position (VPosition).
//
// Codes stay where their bits lie: as the low bits of an fp16 a code c is the subnormal number
// c * 2^-24, and 2^e as much where it lies e bits higher, as long as it ends below bit 10. The
// matrix units multiply subnormal numbers exactly; the powers of two are taken out of the query and
// of the result (KExponent, VExponent).
#pragma once

#include <cstdint>

#include "kernels/attention/attention_cuda.h"
#include "kernels/core/cuda_math.cuh"

namespace thinwire {

__device__ inline uint4 Load16(const void* from) { return __ldg(static_cast<const uint4*>(from)); }
__device__ inline uint2 Load8(const void* from) { return __ldg(static_cast<const uint2*>(from)); }
__device__ inline uint32_t Load4(const void* from) {
  return __ldg(static_cast<const unsigned int*>(from));
}
__device__ inline uint32_t Load2(const void* from) {
  return __ldg(static_cast<const unsigned short*>(from));
}

// The low halves, and the high halves, of two words.
__device__ inline uint32_t LowHalves(uint32_t a, uint32_t b) { return __byte_perm(a, b, 0x5410); }
__device__ inline uint32_t HighHalves(uint32_t a, uint32_t b) { return __byte_perm(a, b, 0x7632); }

// What a format has to know of a head's rows at run time: nothing.
template <int kBytes>
struct FixedLayout {
  __device__ void Read(const AttentionSide&, int, bool) {}
  __device__ int64_t row_bytes() const { return kBytes; }
};

// fp16 or bf16, kDim 64 or 128.
template <typename T, int kChannels>
struct FloatPages {
  using Element = T;
  static constexpr bool kCoded = false;
  static constexpr bool kStaged = false;
  static constexpr int kDim = kChannels;
  static constexpr int kRowBytes = 2 * kDim;
  using Layout = FixedLayout<kRowBytes>;

  struct KRow {
    uint4 words[kDim / 32];
  };
  __device__ static KRow LoadK(const uint8_t* row, int t, const Layout&) {
    KRow k;
#pragma unroll
    for (int i = 0; i < kDim / 32; ++i) k.words[i] = Load16(row + 64 * i + 16 * t);
    return k;
  }
  // Pair `half` of b in step s of 16 channels.
  __device__ static void KStep(const KRow& k, int s, const Layout&, uint32_t& b0, uint32_t& b1) {
    const uint4& w = k.words[s / 2];
    b0 = s % 2 == 0 ? w.x : w.z;
    b1 = s % 2 == 0 ? w.y : w.w;
  }
  __device__ static int KPosition(int s, int half, int e, int t) {
    return 32 * (s / 2) + 8 * t + 4 * (s % 2) + 2 * half + e;
  }

  struct VRow {
    uint4 words[kDim / 64];
  };
  __device__ static VRow LoadV(const uint8_t* row, int g, const Layout&) {
    VRow v;
#pragma unroll
    for (int i = 0; i < kDim / 64; ++i) v.words[i] = Load16(row + 128 * i + 16 * g);
    return v;
  }
  __device__ static uint32_t Word(const VRow& v, int m) {
    const uint4& w = v.words[m / 4];
    return m % 4 == 0 ? w.x : m % 4 == 1 ? w.y : m % 4 == 2 ? w.z : w.w;
  }
  // Operand a for channels 16 m to 16 m + 15: rows g and g + 8 of it, for four keys.
  __device__ static void VTile(const VRow (&v)[4], int m, const Layout&, uint32_t (&a)[4]) {
    a[0] = LowHalves(Word(v[0], m), Word(v[1], m));
    a[1] = HighHalves(Word(v[0], m), Word(v[1], m));
    a[2] = LowHalves(Word(v[2], m), Word(v[3], m));
    a[3] = HighHalves(Word(v[2], m), Word(v[3], m));
  }
  __device__ static int VPosition(int m, int r, int g) {
    return 64 * (m / 4) + 8 * g + 2 * (m % 4) + r;
  }
  __device__ static void Clear(VRow& v) {
#pragma unroll
    for (int i = 0; i < kDim / 64; ++i) v.words[i] = make_uint4(0, 0, 0, 0);
  }
};

// What rows of 128 codes share: position 16 u + lane of unit u.
struct CodePages {
  using Element = __half;
  static constexpr bool kCoded = true;
  static constexpr bool kStaged = false;  // through shared memory
  static constexpr int kDim = 128;
  __device__ static int VPosition(int m, int r, int g) { return 16 * m + 2 * g + r; }
};

// A word of 32 bits a lane: unit u at bit 4 u.
struct CodePages4 : CodePages {
  static constexpr int kRowBytes = 64;
  using Layout = FixedLayout<kRowBytes>;

  // The code of unit u or, of LowHalves and HighHalves, u % 4, stays at bit 4 (u % 2).
  __device__ static int Exponent(int unit) { return unit % 2 * 4; }
  __device__ static uint32_t Codes(uint32_t pair, int unit) {
    return (unit % 4 < 2 ? pair : pair >> 8) & (unit % 2 == 0 ? 0x000f000fu : 0x00f000f0u);
  }

  struct KRow {
    uint4 words;  // of lanes 4 t to 4 t + 3
  };
  __device__ static KRow LoadK(const uint8_t* row, int t, const Layout&) {
    return {Load16(row + 16 * t)};
  }
  __device__ static void KStep(const KRow& k, int s, const Layout&, uint32_t& b0, uint32_t& b1) {
    const uint32_t w = s / 2 == 0   ? k.words.x
                       : s / 2 == 1 ? k.words.y
                       : s / 2 == 2 ? k.words.z
                                    : k.words.w;
    b0 = Codes(w, 2 * (s % 2));
    b1 = Codes(w, 2 * (s % 2) + 1);
  }
  __device__ static int KPosition(int s, int half, int e, int t) {
    return 16 * (2 * (s % 2) + half + 4 * e) + 4 * t + s / 2;
  }

  struct VRow {
    uint2 words;  // of lanes 2 g and 2 g + 1
  };
  __device__ static VRow LoadV(const uint8_t* row, int g, const Layout&) {
    return {Load8(row + 8 * g)};
  }
  __device__ static void VTile(const VRow (&v)[4], int m, const Layout&, uint32_t (&a)[4]) {
    const auto pair = [&](uint32_t first, uint32_t second) {
      return Codes(m < 4 ? LowHalves(first, second) : HighHalves(first, second), m);
    };
    a[0] = pair(v[0].words.x, v[1].words.x);
    a[1] = pair(v[0].words.y, v[1].words.y);
    a[2] = pair(v[2].words.x, v[3].words.x);
    a[3] = pair(v[2].words.y, v[3].words.y);
  }
};

// A word of 24 bits a lane: 16 lanes of 16 bits, which hold units 0 to 4 and the lowest bit of unit
// 5, then 16 lanes of 8 bits.
struct CodePages3 : CodePages {
  static constexpr int kRowBytes = 48;
  using Layout = FixedLayout<kRowBytes>;

  __device__ static int Exponent(int unit) {
    return unit == 6 ? 2 : unit == 7 ? 5 : unit == 5 ? 6 : unit % 3 * 3;
  }
  // low: the 16 bits of two words; high: their 8.
  __device__ static uint32_t Codes(uint32_t low, uint32_t high, int unit) {
    switch (unit) {
      case 0:
        return low & 0x00070007u;
      case 1:
        return low & 0x00380038u;
      case 2:
        return low & 0x01c001c0u;
      case 3:
        return (low >> 9) & 0x00070007u;
      case 4:
        return (low >> 9) & 0x00380038u;
      case 5:
        return ((low >> 9) & 0x00400040u) | ((high << 7) & 0x01800180u);
      case 6:
        return high & 0x001c001cu;
      default:
        return high & 0x00e000e0u;
    }
  }

  struct KRow {
    uint2 low;      // of lanes 4 t to 4 t + 3
    uint32_t high;  // of the same
  };
  __device__ static KRow LoadK(const uint8_t* row, int t, const Layout&) {
    return {Load8(row + 8 * t), Load4(row + 32 + 4 * t)};
  }
  __device__ static void KStep(const KRow& k, int s, const Layout&, uint32_t& b0, uint32_t& b1) {
    const uint32_t low = s < 4 ? k.low.x : k.low.y;
    const uint32_t high = __byte_perm(k.high, 0, s < 4 ? 0x4140 : 0x4342);
    b0 = Codes(low, high, 2 * (s % 4));
    b1 = Codes(low, high, 2 * (s % 4) + 1);
  }
  __device__ static int KPosition(int s, int half, int e, int t) {
    return 16 * (2 * (s % 4) + half) + 4 * t + 2 * (s / 4) + e;
  }

  struct VRow {
    uint32_t low;   // of lanes 2 g and 2 g + 1
    uint32_t high;  // of the same, in the low 16 bits
  };
  __device__ static VRow LoadV(const uint8_t* row, int g, const Layout&) {
    return {Load4(row + 4 * g), Load2(row + 32 + 2 * g)};
  }
  __device__ static void VTile(const VRow (&v)[4], int m, const Layout&, uint32_t (&a)[4]) {
    const auto first = [&](const VRow& i, const VRow& j) {
      return Codes(LowHalves(i.low, j.low), __byte_perm(i.high, j.high, 0x2420), m);
    };
    const auto second = [&](const VRow& i, const VRow& j) {
      return Codes(HighHalves(i.low, j.low), __byte_perm(i.high, j.high, 0x2521), m);
    };
    a[0] = first(v[0], v[1]);
    a[1] = second(v[0], v[1]);
    a[2] = first(v[2], v[3]);
    a[3] = second(v[2], v[3]);
  }
};

// Two words of 32 bits a lane: units 0 to 3, then 4 to 7.
struct CodePages8 : CodePages {
  static constexpr int kRowBytes = 128;
  using Layout = FixedLayout<kRowBytes>;

  __device__ static int Exponent(int) { return 0; }
  __device__ static uint32_t Codes(uint32_t pair, int byte) {
    return (byte == 0 ? pair : pair >> 8) & 0x00ff00ffu;
  }

  struct KRow {
    uint4 words[2];  // of lanes 4 t to 4 t + 3
  };
  __device__ static KRow LoadK(const uint8_t* row, int t, const Layout&) {
    return {{Load16(row + 16 * t), Load16(row + 64 + 16 * t)}};
  }
  __device__ static void KStep(const KRow& k, int s, const Layout&, uint32_t& b0, uint32_t& b1) {
    const uint4& lanes = k.words[s / 4];
    const uint32_t w = s % 4 == 0 ? lanes.x : s % 4 == 1 ? lanes.y : s % 4 == 2 ? lanes.z : lanes.w;
    b0 = Codes(w, 0);
    b1 = Codes(w, 1);
  }
  __device__ static int KPosition(int s, int half, int e, int t) {
    return 16 * (4 * (s / 4) + half + 2 * e) + 4 * t + s % 4;
  }

  struct VRow {
    uint2 words[2];  // of lanes 2 g and 2 g + 1
  };
  __device__ static VRow LoadV(const uint8_t* row, int g, const Layout&) {
    return {{Load8(row + 8 * g), Load8(row + 64 + 8 * g)}};
  }
  __device__ static void VTile(const VRow (&v)[4], int m, const Layout&, uint32_t (&a)[4]) {
    const auto pair = [&](uint32_t first, uint32_t second) {
      return Codes(m % 4 < 2 ? LowHalves(first, second) : HighHalves(first, second), m % 2);
    };
    a[0] = pair(v[0].words[m / 4].x, v[1].words[m / 4].x);
    a[1] = pair(v[0].words[m / 4].y, v[1].words[m / 4].y);
    a[2] = pair(v[2].words[m / 4].x, v[3].words[m / 4].x);
    a[3] = pair(v[2].words[m / 4].y, v[3].words[m / 4].y);
  }
};

}  // namespace thinwire
