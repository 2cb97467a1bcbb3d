// Rows of codes of mixed widths (planes of kv_codes.h) as operands; as
// kernels/attention/page_formats.cuh otherwise. Rows begin at any even byte and fields at any bit,
// so that keys first come into shared memory, 16 rows at a time as they lie; there, two words and
// one shift bring the fields of two lanes into a register. Private to kernels/attention.
#pragma once

#include <cstdint>

#include "kernels/attention/attention_cuda.h"
#include "kernels/attention/page_formats.cuh"
#include "kernels/core/async_copy.cuh"

namespace thinwire {

// 16 bytes between rows that would all begin in the same banks.
__host__ __device__ inline int StagedStride(int64_t row_bytes) {
  return static_cast<int>(row_bytes) + (row_bytes % 64 == 0 ? 16 : 0);
}

template <int kChannels>
struct MixedPages {
  using Element = __half;
  static constexpr bool kCoded = true;
  static constexpr bool kStaged = true;
  static constexpr int kDim = kChannels;
  static constexpr int kPlanes = kDim / 32;
  __device__ static int Exponent(int) { return 0; }

  struct Layout {
    CudaRowPlane planes[kPlanes];
    // Where in 16 staged rows a lane finds its fields: two words' byte and the shift, twice. K:
    // lanes 4 t and 4 t + 1, then 4 t + 2 and 4 t + 3 of key g; V: lanes 2 g and 2 g + 1 of key
    // 2 t, then of 2 t + 1.
    uint4 places[kPlanes][32];
    int64_t bytes;
    int stride;

    // By one warp.
    __device__ void Read(const AttentionSide& side, int head, bool is_k) {
      const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
      const CudaRowLayout& row = side.layouts[head];
      const int between = StagedStride(side.row_bytes);
      if (lane == 0) {
        bytes = side.row_bytes;
        stride = between;
      }
      for (int k = 0; k < kPlanes; ++k) {
        const CudaRowPlane plane = row.planes[k];
        if (lane == 0) planes[k] = plane;
        const int width = static_cast<int>(plane.width);
        const int key = is_k ? g : 2 * t, first_lane = is_k ? 4 * t : 2 * g;
        const int first = 8 * key * between + row.first_bit[k] + first_lane * width;
        const int second = first + (is_k ? 2 * width : 8 * between);
        places[k][lane] = make_uint4(first / 32 * 4, first % 32, second / 32 * 4, second % 32);
      }
    }
    __device__ int64_t row_bytes() const { return bytes; }
  };

  // Two lanes' fields from bit 0 up.
  __device__ static uint32_t Fields(const unsigned char* words, uint32_t byte, uint32_t shift) {
    const auto* from = reinterpret_cast<const uint32_t*>(words + byte);
    return __funnelshift_r(from[0], from[1], shift);
  }

  // Operands b of units 2 k and 2 k + 1 for key g of the eight that begin at `rows`.
  __device__ static void KPlane(const unsigned char* rows, int k, int lane, const Layout& layout,
                                uint32_t (&even)[2], uint32_t (&odd)[2]) {
    const CudaRowPlane plane = layout.planes[k];
    const uint4 place = layout.places[k][lane];
    const uint32_t fields[2] = {Fields(rows, place.x, place.y), Fields(rows, place.z, place.w)};
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const uint32_t pair = LowHalves(fields[i], fields[i] >> plane.width);
      even[i] = pair & plane.low_mask;
      odd[i] = pair >> plane.low & plane.high_mask;
    }
  }
  __device__ static int KPosition(int s, int half, int e, int t) {
    return 16 * s + 4 * t + 2 * half + e;
  }

  // Operands a of units 2 k and 2 k + 1 for 16 keys.
  __device__ static void VPlane(const unsigned char* rows, int k, int lane, const Layout& layout,
                                uint32_t (&even)[4], uint32_t (&odd)[4]) {
    const CudaRowPlane plane = layout.planes[k];
    const uint4 place = layout.places[k][lane];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const unsigned char* const from = rows + half * 8 * layout.stride;
      const uint32_t first = Fields(from, place.x, place.y);
      const uint32_t second = Fields(from, place.z, place.w);
      const uint32_t pairs[2] = {LowHalves(first, second),
                                 LowHalves(first >> plane.width, second >> plane.width)};
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        even[2 * half + i] = pairs[i] & plane.low_mask;
        odd[2 * half + i] = pairs[i] >> plane.low & plane.high_mask;
      }
    }
  }
  __device__ static int VPosition(int m, int r, int g) { return 16 * m + 2 * g + r; }
};

// 16 rows from memory into shared memory, by a warp.
__device__ inline void StageRows(const uint8_t* from, int64_t row_bytes, unsigned char* to,
                                 int lane) {
  const auto pieces = static_cast<int>(row_bytes);  // of 16 bytes, in 16 rows
  const uint32_t at = SharedAddress(to);
  // Where there are gaps between rows, these have 64 or 128 bytes.
  const bool gaps = row_bytes % 64 == 0;
  const int shift = row_bytes == 64 ? 2 : 3;
  for (int i = lane; i < pieces; i += 32) {
    CopyAsync16(at + 16 * i + (gaps ? (i >> shift) * 16 : 0), from + 16 * i);
  }
}

}  // namespace thinwire
