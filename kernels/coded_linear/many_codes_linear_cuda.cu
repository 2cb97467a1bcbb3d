// Codes of many tokens times codes of weights on Hopper: weights are unpacked into signed bytes,
// code - zero, and multiplied as bytes by the matrix units, which take them from shared memory, 128
// tokens by 128 rows a block of threads. A piece, at most a part of a segment, is summed exactly,
// then times its scale added to the rest in fp32.
//
// Pieces are added in the order of the kernel for few tokens where that one's chunks have a part
// each: within a split of the columns, then the splits.
#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/coded_linear/coded_linear_cuda.h"
#include "kernels/coded_linear/linear_operands.cuh"
#include "kernels/coded_linear/linear_result.cuh"
#include "kernels/core/async_copy.cuh"
#include "kernels/core/block_barrier.cuh"
#include "kernels/core/cuda_math.cuh"

namespace thinwire {
namespace {

constexpr int kThreads = 256;      // that multiply
constexpr int kCopyThreads = 128;  // that bring tiles into shared memory for them
constexpr int kTile = 128;         // tokens, rows
constexpr int kTileBytes = 128;    // columns
constexpr int kStages = 4;
constexpr int kSideBytes = kTile * kTileBytes;  // of a stage
constexpr int kBarriersAt =
    kStages * 2 * kSideBytes + kTile * kTile * static_cast<int>(sizeof(float));
constexpr int kMemory = kBarriersAt + 2 * kStages * 8;
// Warps that give the matrix units work together, 64 tokens.
constexpr int kGroupThreads = 128;

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

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
// Rows of kTileBytes from `at` on, a multiple of 1024 but for the column, as the matrix units read
// them: pieces of 16 bytes lie as PlaceOf says, eight rows take 1024 bytes.
__device__ inline uint64_t MatrixAt(uint32_t at) {
  return (at & 0x3ffffu) >> 4 | uint64_t{1} << 16 | uint64_t{1024 >> 4} << 32 | uint64_t{1} << 62;
}

// c = x w^T, to which c is added unless it is `fresh`: 64 unsigned rows by 128 signed ones, 32
// columns. Warp m of a group has rows 16 m to 16 m + 15 of c; c[4 n + i] is what Mma leaves in c[i]
// for columns 8 n to 8 n + 7.
__device__ inline void Multiply(int32_t (&c)[64], uint64_t x, uint64_t w, bool fresh) {
  asm volatile(
      "{\n.reg .pred added;\nsetp.ne.b32 added, %66, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k32.s32.u8.s8 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, "
      "%18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, "
      "%35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, "
      "%52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "
      "%64, %65, added;\n}"
      : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3]), "+r"(c[4]), "+r"(c[5]), "+r"(c[6]),
        "+r"(c[7]), "+r"(c[8]), "+r"(c[9]), "+r"(c[10]), "+r"(c[11]), "+r"(c[12]), "+r"(c[13]),
        "+r"(c[14]), "+r"(c[15]), "+r"(c[16]), "+r"(c[17]), "+r"(c[18]), "+r"(c[19]), "+r"(c[20]),
        "+r"(c[21]), "+r"(c[22]), "+r"(c[23]), "+r"(c[24]), "+r"(c[25]), "+r"(c[26]), "+r"(c[27]),
        "+r"(c[28]), "+r"(c[29]), "+r"(c[30]), "+r"(c[31]), "+r"(c[32]), "+r"(c[33]), "+r"(c[34]),
        "+r"(c[35]), "+r"(c[36]), "+r"(c[37]), "+r"(c[38]), "+r"(c[39]), "+r"(c[40]), "+r"(c[41]),
        "+r"(c[42]), "+r"(c[43]), "+r"(c[44]), "+r"(c[45]), "+r"(c[46]), "+r"(c[47]), "+r"(c[48]),
        "+r"(c[49]), "+r"(c[50]), "+r"(c[51]), "+r"(c[52]), "+r"(c[53]), "+r"(c[54]), "+r"(c[55]),
        "+r"(c[56]), "+r"(c[57]), "+r"(c[58]), "+r"(c[59]), "+r"(c[60]), "+r"(c[61]), "+r"(c[62]),
        "+r"(c[63])
      : "l"(x), "l"(w), "r"(fresh ? 0 : 1));
}
__device__ inline void BeginMultiplying() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
// Until c is there; the compiler must not read it before.
__device__ inline void FinishMultiplying(int32_t (&c)[64]) {
  asm volatile("wgmma.commit_group.sync.aligned;\nwgmma.wait_group.sync.aligned 0;" ::: "memory");
#pragma unroll
  for (int i = 0; i < 64; ++i) asm volatile("" : "+r"(c[i])::"memory");
}
// What this thread's copies left in shared memory may be read by the matrix units.
__device__ inline void ShowToMatrixUnits() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// Rows of 128 bytes whose 16-byte pieces change places, so that neither copies nor matrices meet in
// a bank.
__device__ inline int PlaceOf(int row, int piece) {
  return row * kTileBytes + ((piece ^ (row & 7)) << 4);
}

// Barriers of a stage: its tile has come, its tile has been read.
__device__ inline uint32_t CameBarrier(uint32_t memory, int stage) {
  return memory + kBarriersAt + 8 * stage;
}
__device__ inline uint32_t ReadBarrier(uint32_t memory, int stage) {
  return memory + kBarriersAt + 8 * (kStages + stage);
}

__device__ inline void CopyTiles(const ManyCodesCall& call, uint32_t stages) {
  const CodedLinearCall& w = call.linear;
  constexpr int kRowsAtATime = kCopyThreads / 8;
  constexpr int kTimes = kTile / kRowsAtATime;
  static_assert(kRowsAtATime % 8 == 0);
  const int thread = static_cast<int>(threadIdx.x) - kThreads;
  const int row = thread / 8, piece = thread % 8;
  const int num_tiles = (call.columns + kTileBytes - 1) / kTileBytes;
  const int tokens_left = w.num_tokens - static_cast<int>(blockIdx.x) * kTile - row;
  const int rows_left = call.num_rows - static_cast<int>(blockIdx.y) * kTile - row;
  const uint8_t* const x =
      static_cast<const uint8_t*>(w.x) +
      (tokens_left > 0 ? static_cast<int64_t>(w.num_tokens - tokens_left) * w.x_stride : 0);
  const uint8_t* const rows =
      reinterpret_cast<const uint8_t*>(call.widened) +
      (rows_left > 0 ? static_cast<int64_t>(call.num_rows - rows_left) * call.columns : 0);
  const uint32_t to = PlaceOf(row, piece);
  // A tile is announced when the next but kStages - 2 are on their way.
  constexpr int kAhead = kStages - 2;
  int place = 0, parity = 1, came = 0;
  for (int tile = 0; tile < num_tiles + kAhead; ++tile) {
    if (tile < num_tiles) {
      WaitForPhase(ReadBarrier(stages, place), parity);
      const int column = tile * kTileBytes + 16 * piece;
      const uint32_t at = stages + 2 * place * kSideBytes + to;
#pragma unroll
      for (int i = 0; i < kTimes; ++i) {
        const bool there = column < call.columns && i * kRowsAtATime < tokens_left;
        CopyAsync16OrZero(at + i * kRowsAtATime * kTileBytes,
                          x + (there ? i * kRowsAtATime * w.x_stride + column : 0), there);
      }
#pragma unroll
      for (int i = 0; i < kTimes; ++i) {
        const bool there = column < call.columns && i * kRowsAtATime < rows_left;
        CopyAsync16OrZero(
            at + kSideBytes + i * kRowsAtATime * kTileBytes,
            rows + (there ? static_cast<int64_t>(i * kRowsAtATime) * call.columns + column : 0),
            there);
      }
      if (++place == kStages) {
        place = 0;
        parity ^= 1;
      }
    }
    CommitCopies();
    if (tile >= kAhead) {
      WaitForCopies<kAhead>();
      ShowToMatrixUnits();
      Arrive(CameBarrier(stages, came));
      came = came + 1 == kStages ? 0 : came + 1;
    }
  }
}

// kOnePart: a piece of each tile's columns.
template <bool kOnePart>
__device__ inline void MultiplyTiles(const ManyCodesCall& call, unsigned char* memory) {
  const CodedLinearCall& w = call.linear;
  const uint32_t stages = SharedAddress(memory);
  auto* const totals = reinterpret_cast<float4*>(memory + kStages * 2 * kSideBytes);
  const int thread = threadIdx.x;
  const int lane = thread % 32, g = lane / 4, t = lane % 4;
  const int first_token = static_cast<int>(blockIdx.x) * kTile;
  const int first_row = static_cast<int>(blockIdx.y) * kTile;  // of widened
  const int num_tiles = (call.columns + kTileBytes - 1) / kTileBytes;

  int32_t c[64];
  float y[64];
#pragma unroll
  for (int i = 0; i < 64; ++i) {
    c[i] = 0;
    y[i] = 0.0f;
  }
  // Scales of rows 8 n + 2 t and the next, fetched a piece ahead; where a tile has a piece, two.
  struct Scales {
    uint32_t rows[16];
    float factor;
  };
  Scales sets[2];
  const auto fetch_scales = [&](int part, Scales& set) {
    const LinearPart info = w.parts[min(part, w.num_parts - 1)];
    set.factor = info.factor;
#pragma unroll
    for (int n = 0; n < 16; ++n) {
      const int64_t panel = min((call.first_row + first_row) / 16 + n / 2, w.num_panels - 1);
      set.rows[n] = __ldg(reinterpret_cast<const unsigned int*>(
          w.scales + (panel * w.num_groups + info.group) * 16 + n % 2 * 8 + 2 * t));
    }
  };
  const auto finish_piece = [&](int next_part, Scales& set) {
#pragma unroll
    for (int n = 0; n < 16; ++n) {
      float2 scale = UnpackPair<__half>(set.rows[n]);
      scale.x *= set.factor;
      scale.y *= set.factor;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        // Rounded twice, as sums of chunks are.
        const float product =
            __fmul_rn(i % 2 == 0 ? scale.x : scale.y, __int2float_rn(c[4 * n + i]));
        y[4 * n + i] = __fadd_rn(y[4 * n + i], product);
      }
    }
    fetch_scales(next_part, set);
  };
  // Adds a split's sum to those before it.
  const auto finish_split = [&](bool first) {
#pragma unroll
    for (int n = 0; n < 16; ++n) {
      float4& total = totals[n * kThreads + thread];
      float4 sum = first ? make_float4(0.0f, 0.0f, 0.0f, 0.0f) : total;
      sum.x += y[4 * n];
      sum.y += y[4 * n + 1];
      sum.z += y[4 * n + 2];
      sum.w += y[4 * n + 3];
      total = sum;
#pragma unroll
      for (int i = 0; i < 4; ++i) y[4 * n + i] = 0.0f;
    }
  };

  int place = 0, parity = 0, until_split = w.chunks_each;
  bool first_split = true, fresh = true;
  const auto take = [&] {
    WaitForPhase(CameBarrier(stages, place), parity);
    return make_uint2(stages + 2 * place * kSideBytes + thread / kGroupThreads * (kSideBytes / 2),
                      stages + (2 * place + 1) * kSideBytes);
  };
  const auto give_back = [&] {
    if (lane == 0) Arrive(ReadBarrier(stages, place));
    if (++place == kStages) {
      place = 0;
      parity ^= 1;
    }
  };
  fetch_scales(0, sets[0]);
  if constexpr (kOnePart) {
    fetch_scales(call.next_parts[0], sets[1]);
    const auto multiply = [&](int tile, Scales& set) {
      if (tile >= num_tiles) return;
      const uint2 from = take();
      const int next_part = call.next_parts[min(tile + 1, num_tiles - 1)];
      BeginMultiplying();
#pragma unroll
      for (int k = 0; k < kTileBytes / 32; ++k) {
        Multiply(c, MatrixAt(from.x + 32 * k), MatrixAt(from.y + 32 * k), k == 0);
      }
      FinishMultiplying(c);
      give_back();
      finish_piece(next_part, set);
      if (--until_split == 0 || tile + 1 == num_tiles) {
        finish_split(first_split);
        first_split = false;
        until_split = w.chunks_each;
      }
    };
    for (int tile = 0; tile < num_tiles; tile += 2) {
      multiply(tile, sets[0]);
      multiply(tile + 1, sets[1]);
    }
  } else {
    for (int tile = 0; tile < num_tiles; ++tile) {
      const uint2 from = take();
      for (int k = 0; k < kTileBytes / 32; ++k) {
        const int at = tile * (kTileBytes / 32) + k;
        if (at >= call.columns / 32) break;
        BeginMultiplying();
        Multiply(c, MatrixAt(from.x + 32 * k), MatrixAt(from.y + 32 * k), fresh);
        FinishMultiplying(c);
        const int next_part = call.next_parts[at];
        fresh = next_part >= 0;
        if (fresh) finish_piece(next_part, sets[0]);
      }
      give_back();
    }
  }
  if constexpr (!kOnePart) finish_split(true);

#pragma unroll
  for (int n = 0; n < 16; ++n) {
    const float4 total = totals[n * kThreads + thread];
    const float values[4] = {total.x, total.y, total.z, total.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int token = first_token + thread / 32 * 16 + g + i / 2 * 8;
      const int row = first_row + 8 * n + 2 * t + i % 2;
      if (token < w.num_tokens && row < call.num_rows) {
        StoreResult(w, token, call.first_row + row, values[i]);
      }
    }
  }
}
#endif

template <bool kOnePart>
__global__ void __launch_bounds__(kThreads + kCopyThreads, 1) ManyCodes(const ManyCodesCall call) {
  extern __shared__ __align__(1024) unsigned char memory[];
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  const uint32_t stages = SharedAddress(memory);
  if (threadIdx.x == 0) {
    for (int s = 0; s < kStages; ++s) {
      InitBarrier(CameBarrier(stages, s), kCopyThreads);
      InitBarrier(ReadBarrier(stages, s), kThreads / 32);
    }
  }
  __syncthreads();
  // Registers are where the products are.
  if (threadIdx.x >= kThreads) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
    CopyTiles(call, stages);
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
    MultiplyTiles<kOnePart>(call, memory);
  }
#else
  __trap();  // the host asks HasManyCodes first
#endif
}

}  // namespace

bool HasManyCodes(int compute_capability_major) {
#ifdef THINWIRE_SM90A
  return compute_capability_major == 9;
#else
  return false;
#endif
}

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
  kernel<<<tiles, kThreads + kCopyThreads, kMemory, stream>>>(call);
  return cudaGetLastError();
}

}  // namespace thinwire
