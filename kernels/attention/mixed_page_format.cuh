// Rows of codes of any widths as operands; as kernels/attention/page_formats.cuh otherwise. The
// words of a lane (kv_codes.h) are put together from their parts, then each unit is a shift and a
// mask. Private to kernels/attention.
#pragma once

#include <cstdint>

#include "kernels/attention/attention_cuda.h"
#include "kernels/attention/page_formats.cuh"

namespace thinwire {

// Of 128 channels: 8 units of 8 bits are 64 bits a lane, and only the last word can have less than
// 25.
inline constexpr int kMostWords = 3;

template <int kChannels>
struct MixedPages {
  using Element = __half;
  static constexpr bool kCoded = true;
  static constexpr int kDim = kChannels;
  static constexpr int kUnits = kDim / 16;
  __device__ static int Exponent(int) { return 0; }

  struct Layout {
    CudaRowLayout row;
    int64_t bytes;

    // By one thread, into shared memory.
    __device__ void Read(const AttentionSide& side, int head) {
      row = side.layouts[head];
      bytes = side.row_bytes;
    }
    __device__ int64_t row_bytes() const { return bytes; }
  };

  // Rows and parts begin at even bytes.
  __device__ static uint32_t Two(const uint8_t* from) { return Load2(from); }
  __device__ static uint32_t Four(const uint8_t* from, bool aligned) {
    return aligned ? Load4(from) : Load2(from) | Load2(from + 2) << 16;
  }

  struct KRow {
    uint32_t words[kMostWords][4];  // of lanes 4 t to 4 t + 3
  };
  __device__ static KRow LoadK(const uint8_t* row, int t, const Layout& layout) {
    KRow k = {};
    const bool aligned = layout.row.aligned != 0;
#pragma unroll
    for (int w = 0; w < kMostWords; ++w) {
      uint32_t(&words)[4] = k.words[w];
      for (int p = layout.row.first_part[w]; p < layout.row.first_part[w + 1]; ++p) {
        const CudaRowPart part = layout.row.parts[p];
        const uint8_t* from = row + part.offset;
        if (part.size == 32) {
#pragma unroll
          for (int i = 0; i < 4; ++i) words[i] = Four(from + 16 * t + 4 * i, aligned);
          continue;
        }
        uint32_t fields[4];
        if (part.size == 16) {
          const uint32_t low = Four(from + 8 * t, aligned), high = Four(from + 8 * t + 4, aligned);
          fields[0] = low & 0xffffu;
          fields[1] = low >> 16;
          fields[2] = high & 0xffffu;
          fields[3] = high >> 16;
        } else if (part.size == 8) {
          const uint32_t all = Four(from + 4 * t, aligned);
#pragma unroll
          for (int i = 0; i < 4; ++i) fields[i] = all >> (8 * i) & 255u;
        } else if (part.size == 4) {
          const uint32_t even = __ldg(from + t), odd = __ldg(from + 4 + t);
          fields[0] = even & 15u;
          fields[1] = odd & 15u;
          fields[2] = even >> 4;
          fields[3] = odd >> 4;
        } else if (part.size == 2) {
          const uint32_t even = Two(from) >> (4 * t), odd = Two(from + 2) >> (4 * t);
          fields[0] = even & 3u;
          fields[1] = odd & 3u;
          fields[2] = even >> 2 & 3u;
          fields[3] = odd >> 2 & 3u;
        } else {
          const uint32_t all = Two(from) >> (4 * t);
#pragma unroll
          for (int i = 0; i < 4; ++i) fields[i] = all >> i & 1u;
        }
#pragma unroll
        for (int i = 0; i < 4; ++i) words[i] |= fields[i] << part.shift;
      }
    }
    return k;
  }
  __device__ static uint32_t Code(const uint32_t (&words)[kMostWords], const CudaRowUnit& unit) {
    const uint32_t word = unit.word == 0 ? words[0] : unit.word == 1 ? words[1] : words[2];
    return word >> unit.shift & unit.mask;
  }
  __device__ static void KStep(const KRow& k, int s, const Layout& layout, uint32_t& b0,
                               uint32_t& b1) {
    const CudaRowUnit unit = layout.row.units[s];
    uint32_t codes[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      codes[i] = Code({k.words[0][i], k.words[1][i], k.words[2][i]}, unit);
    }
    b0 = codes[0] | codes[1] << 16;
    b1 = codes[2] | codes[3] << 16;
  }
  __device__ static int KPosition(int s, int half, int e, int t) {
    return 16 * s + 4 * t + 2 * half + e;
  }

  struct VRow {
    uint32_t words[kMostWords][2];  // of lanes 2 g and 2 g + 1
  };
  __device__ static VRow LoadV(const uint8_t* row, int g, const Layout& layout) {
    VRow v = {};
    const bool aligned = layout.row.aligned != 0;
#pragma unroll
    for (int w = 0; w < kMostWords; ++w) {
      uint32_t(&words)[2] = v.words[w];
      for (int p = layout.row.first_part[w]; p < layout.row.first_part[w + 1]; ++p) {
        const CudaRowPart part = layout.row.parts[p];
        const uint8_t* from = row + part.offset;
        if (part.size == 32) {
          words[0] = Four(from + 8 * g, aligned);
          words[1] = Four(from + 8 * g + 4, aligned);
          continue;
        }
        uint32_t first, second;
        if (part.size == 16) {
          const uint32_t both = Four(from + 4 * g, aligned);
          first = both & 0xffffu;
          second = both >> 16;
        } else if (part.size == 8) {
          const uint32_t both = Two(from + 2 * g);
          first = both & 255u;
          second = both >> 8;
        } else if (part.size == 4) {
          first = __ldg(from + g / 2) >> (g % 2 * 4) & 15u;
          second = __ldg(from + 4 + g / 2) >> (g % 2 * 4) & 15u;
        } else if (part.size == 2) {
          first = Two(from) >> (2 * g) & 3u;
          second = Two(from + 2) >> (2 * g) & 3u;
        } else {
          const uint32_t both = Two(from) >> (2 * g);
          first = both & 1u;
          second = both >> 1 & 1u;
        }
        words[0] |= first << part.shift;
        words[1] |= second << part.shift;
      }
    }
    return v;
  }
  __device__ static void VTile(const VRow (&v)[4], int m, const Layout& layout, uint32_t (&a)[4]) {
    const CudaRowUnit unit = layout.row.units[m];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const VRow &first = v[i / 2 * 2], &second = v[i / 2 * 2 + 1];
      const int lane = i % 2;
      a[i] = Code({first.words[0][lane], first.words[1][lane], first.words[2][lane]}, unit) |
             Code({second.words[0][lane], second.words[1][lane], second.words[2][lane]}, unit)
                 << 16;
    }
  }
  __device__ static int VPosition(int m, int r, int g) { return 16 * m + 2 * g + r; }
};

}  // namespace thinwire
