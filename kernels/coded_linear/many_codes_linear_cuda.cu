// Codes of many tokens times codes of weights: weights are unpacked into signed bytes, code - zero,
// and multiplied as bytes, 128 tokens by 128 rows a block of threads. A piece, at most a part of a
// segment, is summed exactly, beginning at the bits of 1.5 * 2^23 as an fp32: the sum's bits are
// then that number plus the integer, so that turning it into a float is one subtraction.
//
// Pieces are added in the order of the kernel for few tokens where that one's chunks have a part
// each: within a split of the columns, then the splits.
#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/coded_linear/coded_linear_cuda.h"
#include "kernels/coded_linear/linear_operands.cuh"
#include "kernels/coded_linear/linear_result.cuh"
#include "kernels/core/async_copy.cuh"
#include "kernels/core/cuda_math.cuh"

namespace thinwire {
namespace {

constexpr int kThreads = 256;
constexpr int kTile = 128;       // tokens, rows
constexpr int kTileBytes = 128;  // columns
constexpr int kStages = 3;
constexpr int kSideBytes = kTile * kTileBytes;  // of a stage
constexpr int kMemory = kStages * 2 * kSideBytes + kTile * kTile * static_cast<int>(sizeof(float));
constexpr int32_t kMagic = 0x4b400000;
constexpr float kMagicFloat = 12582912.0f;

// A thread unpacks a row's codes of a step.
template <int kBits>
__global__ void __launch_bounds__(kThreads) Subtract(const ManyCodesCall call) {
  using B = Block<kBits>;
  constexpr int kColumns = kStepBlocks * B::kColumns;
  const CodedLinearCall& w = call.linear;
  const int row = threadIdx.x % 16;
  const int at = blockIdx.x * (kThreads / 16) + static_cast<int>(threadIdx.x) / 16;
  if (at >= w.num_steps) return;
  const LinearStep step = w.steps[at];
  const int panel = call.first_row / 16 + static_cast<int>(blockIdx.y);
  const int64_t scales_at =
      (static_cast<int64_t>(panel) * w.num_groups + w.parts[step.part].group) * 16;
  const int zero = w.zeros[scales_at + row];
  const uint8_t* const blocks =
      w.codes + (static_cast<int64_t>(panel) * w.num_blocks + step.block) * B::kBytes;
  alignas(16) int8_t values[kColumns];
#pragma unroll
  for (int c = 0; c < kColumns; ++c) {
    const int code = CodeOf(blocks + c / B::kColumns * B::kBytes, kBits, row, c % B::kColumns);
    values[c] = static_cast<int8_t>(c >= step.begin && c < step.end ? code - zero : 0);
  }
  int8_t* const to = call.widened + (static_cast<int64_t>(blockIdx.y) * 16 + row) * call.columns +
                     static_cast<int64_t>(at) * kColumns;
#pragma unroll
  for (int i = 0; i < kColumns / 16; ++i) {
    reinterpret_cast<uint4*>(to)[i] = reinterpret_cast<const uint4*>(values)[i];
  }
}

// Of four 8 x 16 byte matrices, one row by each lane.
__device__ inline void LoadMatrices(uint32_t at, uint32_t (&to)[4]) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(at));
}

// d = a b + c; unsigned a, signed b.
__device__ inline void MmaSigned(int32_t (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                                 int32_t c0, int32_t c1, int32_t c2, int32_t c3) {
  asm("mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%10,%11,%12,%13};"
      : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "r"(c0), "r"(c1), "r"(c2),
        "r"(c3));
}

// Rows of 128 bytes whose 16-byte pieces change places, so that neither copies nor matrices meet in
// a bank.
__device__ inline int PlaceOf(int row, int piece) {
  return row * kTileBytes + ((piece ^ (row & 7)) << 4);
}

// kOnePart: a piece of each tile's columns.
template <bool kOnePart>
__global__ void __launch_bounds__(kThreads, 1) ManyCodes(const ManyCodesCall call) {
  extern __shared__ __align__(128) unsigned char memory[];
  const CodedLinearCall& w = call.linear;
  const uint32_t stages = SharedAddress(memory);
  auto* const totals = reinterpret_cast<float4*>(memory + kStages * 2 * kSideBytes);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int g = lane / 4, t = lane % 4;
  const int first_token = static_cast<int>(blockIdx.x) * kTile;
  const int first_row = static_cast<int>(blockIdx.y) * kTile;  // of widened
  const int num_tiles = (call.columns + kTileBytes - 1) / kTileBytes;

  const auto fetch = [&](int tile, int place) {
#pragma unroll
    for (int i = 0; i < 2 * kTile * 8 / kThreads; ++i) {
      const int at = i * kThreads + static_cast<int>(threadIdx.x);
      const bool is_x = i < kTile * 8 / kThreads;
      const int row = at / 8 % kTile, piece = at % 8;
      const int column = tile * kTileBytes + 16 * piece;
      const int in_matrix = (is_x ? first_token : first_row) + row;
      const bool there = column < call.columns && in_matrix < (is_x ? w.num_tokens : call.num_rows);
      const auto* const from =
          is_x ? static_cast<const uint8_t*>(w.x) : reinterpret_cast<const uint8_t*>(call.widened);
      const int64_t stride = is_x ? w.x_stride : call.columns;
      CopyAsync16OrZero(stages + (2 * place + (is_x ? 0 : 1)) * kSideBytes + PlaceOf(row, piece),
                        from + (there ? in_matrix * stride + column : 0), there);
    }
  };

  // A warp has 64 tokens and 32 rows.
  const int warp_token = warp % 2 * 64, warp_row = warp / 2 * 32;
  int32_t c[4][4][4];
  float y[4][4][4];
#pragma unroll
  for (int m = 0; m < 4; ++m) {
#pragma unroll
    for (int n = 0; n < 4; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        c[m][n][i] = kMagic;
        y[m][n][i] = 0.0f;
      }
    }
  }
  // Scales of this lane's rows, fetched a piece ahead.
  uint32_t scales[4];
  float factor = 0.0f;
  const auto fetch_scales = [&](int of_part) {
    const LinearPart info = w.parts[min(of_part, w.num_parts - 1)];
    factor = info.factor;
#pragma unroll
    for (int n = 0; n < 4; ++n) {
      const int row =
          min(call.first_row + first_row + warp_row + 8 * n + 2 * t, 16 * w.num_panels - 2);
      scales[n] = __ldg(reinterpret_cast<const unsigned int*>(
          w.scales + (static_cast<int64_t>(row / 16) * w.num_groups + info.group) * 16 + row % 16));
    }
  };
  const auto finish_piece = [&](int next_part) {
#pragma unroll
    for (int n = 0; n < 4; ++n) {
      float2 scale = UnpackPair<__half>(scales[n]);
      scale.x *= factor;
      scale.y *= factor;
#pragma unroll
      for (int m = 0; m < 4; ++m) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float sum = __int_as_float(c[m][n][i]) - kMagicFloat;
          // Rounded twice, as sums of chunks are.
          y[m][n][i] = __fadd_rn(y[m][n][i], __fmul_rn(i % 2 == 0 ? scale.x : scale.y, sum));
          if (!kOnePart) c[m][n][i] = kMagic;
        }
      }
    }
    fetch_scales(next_part);
  };
  // Adds a split's sum to those before it.
  const auto finish_split = [&](bool first) {
#pragma unroll
    for (int m = 0; m < 4; ++m) {
#pragma unroll
      for (int n = 0; n < 4; ++n) {
        float4& total = totals[(4 * m + n) * kThreads + threadIdx.x];
        float4 sum = first ? make_float4(0.0f, 0.0f, 0.0f, 0.0f) : total;
        sum.x += y[m][n][0];
        sum.y += y[m][n][1];
        sum.z += y[m][n][2];
        sum.w += y[m][n][3];
        total = sum;
#pragma unroll
        for (int i = 0; i < 4; ++i) y[m][n][i] = 0.0f;
      }
    }
  };

#pragma unroll
  for (int s = 0; s < kStages - 1; ++s) {
    if (s < num_tiles) fetch(s, s);
    CommitCopies();
  }
  fetch_scales(0);
  int place = 0, until_split = w.chunks_each;
  bool first_split = true;
  for (int tile = 0; tile < num_tiles; ++tile) {
    WaitForCopies<kStages - 2>();
    __syncthreads();  // all see this tile, and none reads the one before it
    const int next = place == 0 ? kStages - 1 : place - 1;
    if (tile + kStages - 1 < num_tiles) fetch(tile + kStages - 1, next);
    CommitCopies();
    const uint32_t x = stages + 2 * place * kSideBytes, rows = x + kSideBytes;
    const int next_part = kOnePart ? call.next_parts[tile] : 0;
#pragma unroll
    for (int k = 0; k < kTileBytes / 32; ++k) {
      if (!kOnePart && tile * (kTileBytes / 32) + k >= call.columns / 32) break;
      uint32_t a[4][4], b[2][4];
#pragma unroll
      for (int m = 0; m < 4; ++m) {
        LoadMatrices(x + PlaceOf(warp_token + 16 * m + lane % 16, 2 * k + lane / 16), a[m]);
      }
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        LoadMatrices(
            rows + PlaceOf(warp_row + 16 * n + lane % 8 + lane / 16 * 8, 2 * k + lane / 8 % 2),
            b[n]);
      }
#pragma unroll
      for (int m = 0; m < 4; ++m) {
#pragma unroll
        for (int n = 0; n < 4; ++n) {
          int32_t(&d)[4] = c[m][n];
          if (kOnePart && k == 0) {
            MmaSigned(d, a[m], b[n / 2][n % 2 * 2], b[n / 2][n % 2 * 2 + 1], kMagic, kMagic, kMagic,
                      kMagic);
          } else {
            MmaSigned(d, a[m], b[n / 2][n % 2 * 2], b[n / 2][n % 2 * 2 + 1], d[0], d[1], d[2],
                      d[3]);
          }
        }
      }
      if constexpr (!kOnePart) {
        const int32_t next = call.next_parts[tile * (kTileBytes / 32) + k];
        if (next >= 0) finish_piece(next);
      }
    }
    if constexpr (kOnePart) {
      finish_piece(next_part);
      if (--until_split == 0 || tile + 1 == num_tiles) {
        finish_split(first_split);
        first_split = false;
        until_split = w.chunks_each;
      }
    }
    place = place + 1 == kStages ? 0 : place + 1;
  }
  if constexpr (!kOnePart) finish_split(true);

#pragma unroll
  for (int m = 0; m < 4; ++m) {
#pragma unroll
    for (int n = 0; n < 4; ++n) {
      const float4 total = totals[(4 * m + n) * kThreads + threadIdx.x];
      const float values[4] = {total.x, total.y, total.z, total.w};
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int token = first_token + warp_token + 16 * m + g + i / 2 * 8;
        const int row = first_row + warp_row + 8 * n + 2 * t + i % 2;
        if (token < w.num_tokens && row < call.num_rows) {
          StoreResult(w, token, call.first_row + row, values[i]);
        }
      }
    }
  }
}

}  // namespace

cudaError_t LaunchManyCodes(const ManyCodesCall& call, cudaStream_t stream) {
  const int panels = (call.num_rows + 15) / 16;
  const dim3 grid((call.linear.num_steps + kThreads / 16 - 1) / (kThreads / 16), panels);
  if (call.linear.bits == 3) {
    Subtract<3><<<grid, kThreads, 0, stream>>>(call);
  } else {
    Subtract<4><<<grid, kThreads, 0, stream>>>(call);
  }
  cudaError_t error = cudaGetLastError();
  if (error != cudaSuccess) return error;
  const auto kernel = call.one_part ? ManyCodes<true> : ManyCodes<false>;
  error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kMemory);
  if (error != cudaSuccess) return error;
  const dim3 tiles((call.linear.num_tokens + kTile - 1) / kTile,
                   (call.num_rows + kTile - 1) / kTile);
  kernel<<<tiles, kThreads, kMemory, stream>>>(call);
  return cudaGetLastError();
}

}  // namespace thinwire
