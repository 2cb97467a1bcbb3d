// The nearest of many short vectors on matrix units. Private to kernels/quantize.
//
// A score x.c - |c|^2 / 2 is a product of matrices with the books' vectors as rows and the searched
// ones as columns: 16 deep, x's 8 elements as two halves each (so x keeps 22 bits) against c's,
// rounded to fp16, twice; the accumulator begins at -|c|^2 / 2. A lane takes the maximum over 64
// vectors of the book, of which it has 8 scores, and puts down which 64 they were where it grew.
// Lanes whose maximum is within rounding of the best compute their 8 scores again in fp32, as the
// CPU does.
#pragma once

#include <cuda_fp16.h>

#include <cstdint>

namespace thinwire {

inline constexpr int kBookGroup = 64;  // vectors of a book that are compared in one go
inline constexpr int kMaxSearchLength = 16;

// A book of `groups` whole groups, padded by vectors that nothing is near to. Borrowed.
struct BookView {
  const uint4* fragments;  // [groups, steps, 2, 32 lanes]: c scaled, in the order of the units
  const float4* norms;     // [groups, 2, 8]: -|c|^2 / 2 of the scaled
  const float* centroids;  // [groups * 64, length], as they are
  const float* negative;   // [groups * 64]: -|c|^2 / 2 of these
  const float* scale;      // [2]: the power of two that c and x are scaled by; largest |c| after it
  int groups;
  int length;
};

// Elements 8 * step .. 8 * step + 7 in one product.
__host__ __device__ constexpr int BookSteps(int length) { return (length + 7) / 8; }

// d = rows x + c, 8 deep.
__device__ __forceinline__ void MultiplyAdd(float (&d)[4], uint32_t a0, uint32_t a1, uint32_t x,
                                            const float (&c)[4]) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 "
      "{%0, %1, %2, %3}, {%4, %5}, {%6}, {%7, %8, %9, %10};\n"
      : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
      : "r"(a0), "r"(a1), "r"(x), "f"(c[0]), "f"(c[1]), "f"(c[2]), "f"(c[3]));
}

// Two elements of x as fp16 and what that leaves of them.
__device__ __forceinline__ void SplitHalves(float first, float second, uint32_t& high,
                                            uint32_t& low) {
  constexpr float kMost = 65504.0f;
  first = fminf(fmaxf(first, -kMost), kMost);
  second = fminf(fmaxf(second, -kMost), kMost);
  const __half2 rounded = __floats2half2_rn(first, second);
  const __half2 left =
      __floats2half2_rn(first - __low2float(rounded), second - __high2float(rounded));
  high = *reinterpret_cast<const uint32_t*>(&rounded);
  low = *reinterpret_cast<const uint32_t*>(&left);
}

// What a lane knows of 8 * kTiles vectors x: of its two in each tile (2 j and 2 j + 1, j = lane %
// 4) the best score among the books' rows it sees, and the group that it was in.
// kAhead: a group is read while the one before is compared, for warps that are few.
template <int kSteps, int kTiles, bool kAhead>
struct BookSearch {
  uint32_t x[kTiles][kSteps][2];
  float best[kTiles][2];
  int where[kTiles][2];

  // element(v, e): element e < length of vector v < 8 * kTiles.
  template <typename Element>
  __device__ __forceinline__ void Load(const BookView& book, Element element) {
    const int lane = threadIdx.x % 32;
    const float scale = book.scale[0];
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
#pragma unroll
      for (int s = 0; s < kSteps; ++s) {
        const int e = 8 * s + 2 * (lane % 4);
        const int v = 8 * t + lane / 4;
        const float first = e < book.length ? element(v, e) * scale : 0.0f;
        const float second = e + 1 < book.length ? element(v, e + 1) * scale : 0.0f;
        SplitHalves(first, second, x[t][s][0], x[t][s][1]);
      }
      best[t][0] = best[t][1] = -__int_as_float(0x7f800000);
      where[t][0] = where[t][1] = 0;
    }
  }

  // Looks at groups first, first + stride and so on.
  __device__ __forceinline__ void Run(const BookView& book, int first, int stride) {
    const int lane = threadIdx.x % 32;
    uint4 next[kSteps][2];
    float4 next_norms[2];
    const auto fetch = [&](int group) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
#pragma unroll
        for (int s = 0; s < kSteps; ++s) {
          next[s][h] = __ldg(book.fragments + ((int64_t{group} * kSteps + s) * 2 + h) * 32 + lane);
        }
        next_norms[h] = __ldg(book.norms + (int64_t{group} * 2 + h) * 8 + lane / 4);
      }
    };
    if (kAhead && first < book.groups) fetch(first);
    for (int group = first; group < book.groups; group += stride) {
      if (!kAhead) fetch(group);
      uint4 rows[kSteps][2];
      float start[2][2][4];
#pragma unroll
      for (int h = 0; h < 2; ++h) {
#pragma unroll
        for (int s = 0; s < kSteps; ++s) rows[s][h] = next[s][h];
        start[h][0][0] = start[h][0][1] = next_norms[h].x;
        start[h][0][2] = start[h][0][3] = next_norms[h].y;
        start[h][1][0] = start[h][1][1] = next_norms[h].z;
        start[h][1][2] = start[h][1][3] = next_norms[h].w;
      }
      if (kAhead && group + stride < book.groups) fetch(group + stride);
#pragma unroll
      for (int t = 0; t < kTiles; ++t) {
        float most[2];
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          float upper[4], lower[4];
          MultiplyAdd(upper, rows[0][h].x, rows[0][h].y, x[t][0][1], start[h][0]);
          MultiplyAdd(lower, rows[0][h].z, rows[0][h].w, x[t][0][1], start[h][1]);
#pragma unroll
          for (int s = 1; s < kSteps; ++s) {
            MultiplyAdd(upper, rows[s][h].x, rows[s][h].y, x[t][s][1], upper);
            MultiplyAdd(lower, rows[s][h].z, rows[s][h].w, x[t][s][1], lower);
          }
#pragma unroll
          for (int s = 0; s < kSteps; ++s) {
            MultiplyAdd(upper, rows[s][h].x, rows[s][h].y, x[t][s][0], upper);
            MultiplyAdd(lower, rows[s][h].z, rows[s][h].w, x[t][s][0], lower);
          }
#pragma unroll
          for (int c = 0; c < 2; ++c) {
            const float four = fmaxf(fmaxf(upper[c], upper[c + 2]), fmaxf(lower[c], lower[c + 2]));
            most[c] = h == 0 ? four : fmaxf(most[c], four);
          }
        }
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          if (most[c] > best[t][c]) {
            best[t][c] = most[c];
            where[t][c] = group;
          }
        }
      }
    }
  }
};

// How far below the best of all lanes a lane's best may be while it may have the nearest: twice
// what rounding c to fp16 (2^-11) and adding up (2^-20 is ample) do to a score.
__device__ __forceinline__ float SearchMargin(const BookView& book, float x_norm) {
  const float radius = book.scale[1];
  const float product = x_norm * book.scale[0] * radius;
  return 0x1.1p-10f * product + 0x1p-18f * (product + radius * radius);
}

// The better of a lane's 8 vectors in `group`, computed as the CPU does; of equals the first.
template <typename Element>
__device__ __forceinline__ void ScoreAgain(const BookView& book, int group, Element element,
                                           float& score, int& index) {
  const int lane = threadIdx.x % 32;
  const int first = group * kBookGroup + lane / 4;
  float scores[8];
#pragma unroll
  for (int k = 0; k < 8; ++k) scores[k] = __ldg(book.negative + first + 8 * k);
  for (int e = 0; e < book.length; ++e) {
    const float value = element(e);
#pragma unroll
    for (int k = 0; k < 8; ++k) {
      scores[k] =
          fmaf(__ldg(book.centroids + int64_t{first + 8 * k} * book.length + e), value, scores[k]);
    }
  }
  score = scores[0];
  index = first;
#pragma unroll
  for (int k = 1; k < 8; ++k) {
    if (scores[k] > score) {
      score = scores[k];
      index = first + 8 * k;
    }
  }
}

// Larger scores first, then smaller indices: as one number. 0 stands for none.
__device__ __forceinline__ unsigned long long SearchKey(float score, int index) {
  const uint32_t bits = __float_as_uint(score);
  const uint32_t ordered = (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
  return (static_cast<unsigned long long>(ordered) << 32) |
         (0xffffffffu - static_cast<uint32_t>(index));
}

__device__ __forceinline__ int IndexOfKey(unsigned long long key) {
  return key == 0 ? 0 : static_cast<int>(0xffffffffu - static_cast<uint32_t>(key));
}

}  // namespace thinwire
