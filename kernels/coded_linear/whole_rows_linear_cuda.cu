// Coded linears for up to eight tokens in blocks that have whole rows: no sum crosses blocks.
//
// Columns are cut into chunks of 128, as in few_tokens_linear_cuda.cu. The chunks that a block has
// there, of those that share a row, are a turn here: a block goes through the turns of a pair of
// panels, a warp for each chunk, adds each turn's sums up in the order of the columns, and the
// turns' in theirs. So sums have the bits that they have there. All of x is in shared memory.
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>

#include "kernels/coded_linear/coded_linear_cuda.h"
#include "kernels/coded_linear/linear_operands.cuh"
#include "kernels/coded_linear/linear_products.cuh"
#include "kernels/coded_linear/linear_queue.cuh"
#include "kernels/coded_linear/linear_result.cuh"
#include "kernels/coded_linear/linear_sums.cuh"
#include "kernels/core/async_copy.cuh"
#include "kernels/core/cuda_math.cuh"
#include "kernels/core/early_launch.cuh"

namespace thinwire {
namespace {

constexpr int kWarps = kLinearWarps;
constexpr int kThreads = 32 * kWarps;
constexpr int kTokens = 8;
constexpr int kWarpSums = kTokens * 32;

// Bytes from one row of x to the next in shared memory, 16 banks on.
__host__ __device__ constexpr int RowBytes(int num_chunks) {
  return num_chunks * kChunkColumns * 2 + 64;
}

// From an address aligned like the words together, or 16 bytes.
template <int kWords>
__device__ inline void LoadWords(const uint32_t* from, uint32_t (&to)[kWords]) {
  if constexpr (kWords == 2) {
    const uint2 v = *reinterpret_cast<const uint2*>(from);
    to[0] = v.x;
    to[1] = v.y;
  } else {
    static_assert(kWords % 4 == 0);
#pragma unroll
    for (int i = 0; i < kWords; i += 4) {
      const uint4 v = *reinterpret_cast<const uint4*>(from + i);
      to[i] = v.x;
      to[i + 1] = v.y;
      to[i + 2] = v.z;
      to[i + 3] = v.w;
    }
  }
}

// call.x is fp16 or bf16; parts are groups of whole chunks.
template <int kBits, typename T>
__global__ void __launch_bounds__(kThreads, 1) WholeRows(const CodedLinearCall call) {
  using P = Products<kBits, T>;
  using B = Block<kBits>;
  using Q = LinearQueue<kBits, true>;
  constexpr int kSteps = Q::kSteps, kDepth = Q::kDepth;
  extern __shared__ __align__(16) unsigned char memory[];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int g = lane / 4, t = lane % 4;
  const int num_chunks = call.num_steps / kSteps;
  const int row_bytes = RowBytes(num_chunks);

  // The warps' queues, then two sets of sums, then sums of x of each turn and warp, then x.
  const unsigned char* const queue = memory + warp * Q::kWarpBytes;
  float* const sums = reinterpret_cast<float*>(memory + kWarps * Q::kWarpBytes);
  float* const sums_of_x = sums + 2 * kWarps * kWarpSums;  // [splits, warps, kTokens]
  unsigned char* const x_rows =
      reinterpret_cast<unsigned char*>(sums_of_x + call.splits * kWarps * kTokens);

  const int num_pairs = (call.num_panels + 1) / 2;
  const int stride = gridDim.x;
  // What a lane copies of a pair, from the first byte of its warp's chunk in the first panel.
  const int panel_bytes = call.num_blocks * B::kBytes;
  const int apart = call.gated ? num_pairs : 1, pair_panels = call.gated ? 1 : 2;
  int copy_offsets[Q::kCopies];
  bool copies_second[Q::kCopies];  // panel
#pragma unroll
  for (int i = 0; i < Q::kCopies; ++i) {
    const int piece = 32 * i + lane, of_step = piece / Q::kStepPieces;
    copies_second[i] = of_step % 2 != 0;
    copy_offsets[i] = of_step / 2 * (kStepBlocks * B::kBytes) + piece % Q::kStepPieces * 16 +
                      (copies_second[i] ? apart * panel_bytes : 0);
  }
  constexpr bool kOneOffset = Q::kStepPieces == 16;
  constexpr int kChunkBytes = kSteps * kStepBlocks * B::kBytes;
  const int turn_bytes = call.chunks_each * kChunkBytes;
  const uint8_t* next_codes = call.codes + int64_t{pair_panels} * blockIdx.x * panel_bytes +
                              warp * kChunkBytes + (kOneOffset ? copy_offsets[0] : 0);
  const int64_t codes_stride =
      int64_t{pair_panels} * stride * panel_bytes - int64_t{call.splits - 1} * turn_bytes;
  // Lanes 0 to 3 copy 32 bytes of scales of each panel, lanes 4 and 5 16 of zeros.
  const bool scales_second = lane < 4 ? lane >= 2 : lane == 5;
  const int group_bytes = lane < 4 ? 32 : 16;
  const int panel_scales = call.num_groups * group_bytes;
  const int64_t scales_stride = int64_t{pair_panels} * stride * panel_scales;
  const uint8_t* next_scales =
      (lane < 4 ? reinterpret_cast<const uint8_t*>(call.scales) + lane % 2 * 16 : call.zeros) +
      (int64_t{pair_panels} * blockIdx.x + (scales_second ? apart : 0)) * panel_scales;
  const int chunks_per_group = call.steps_per_part / kSteps;
  const int lone_pair = call.num_panels % 2 != 0 ? num_pairs - 1 : num_pairs;
  const uint32_t queue_at = SharedAddress(queue), lane_at = queue_at + 16 * Q::PlaceOf(lane);
  int fetch_pair = blockIdx.x, fetch_turn = 0, fetch_place = 0;
  const auto has_chunk = [&](int turn) {
    return warp < call.chunks_each && turn * call.chunks_each + warp < num_chunks;
  };
  const auto fetch = [&] {
    if (fetch_pair < num_pairs) {
      if (has_chunk(fetch_turn)) {
        const int codes_back = fetch_pair == lone_pair ? panel_bytes : 0;
#pragma unroll
        for (int i = 0; i < Q::kCopies; ++i) {
          const uint8_t* from =
              next_codes + (kOneOffset ? kStepBlocks * B::kBytes * i : copy_offsets[i]);
          CopyAsync16(lane_at + fetch_place * Q::kPlaceBytes + 512 * i,
                      from - (copies_second[kOneOffset ? 0 : i] ? codes_back : 0));
        }
        if (lane < 6) {
          const int chunk = fetch_turn * call.chunks_each + warp;
          const int group = chunks_per_group == 1 ? chunk : chunk / chunks_per_group;
          CopyAsync16(queue_at + fetch_place * Q::kPlaceBytes + Q::kCodeBytes + 16 * lane,
                      next_scales + group * group_bytes -
                          (scales_second && fetch_pair == lone_pair ? panel_scales : 0));
        }
      }
      if (++fetch_turn == call.splits) {
        fetch_turn = 0;
        fetch_pair += stride;
        next_codes += codes_stride;
        next_scales += scales_stride;
      } else {
        next_codes += turn_bytes;
      }
    }
    CommitCopies();
    fetch_place = fetch_place + 1 == kDepth ? 0 : fetch_place + 1;
  };
#pragma unroll
  for (int d = 0; d < kDepth; ++d) fetch();

  // Weights stay as they are; x and what results are written to may be in use until here.
  WaitForPrevious();
  LetNextStart();  // wherever a block has ended
  // Rows of x as operands take them; several pieces are on their way at a time.
  constexpr int kAtATime = 4;
  const int row_pieces = num_chunks * kChunkColumns * 2 / 16;
  for (int token = 0; token < call.num_tokens; ++token) {
    const auto* from = reinterpret_cast<const uint4*>(static_cast<const uint16_t*>(call.x) +
                                                      token * call.x_stride);
    for (int first = threadIdx.x; first < row_pieces; first += kAtATime * kThreads) {
      uint4 pieces[kAtATime];
#pragma unroll
      for (int i = 0; i < kAtATime; ++i) {
        if (first + i * kThreads < row_pieces) pieces[i] = __ldg(from + first + i * kThreads);
      }
#pragma unroll
      for (int i = 0; i < kAtATime; ++i) {
        const uint4 v = pieces[i];
        if (first + i * kThreads < row_pieces) {
          *reinterpret_cast<uint4*>(x_rows + token * row_bytes + 16 * (first + i * kThreads)) =
              make_uint4(EvenHalves(v.x, v.y), OddHalves(v.x, v.y), EvenHalves(v.z, v.w),
                         OddHalves(v.z, v.w));
        }
      }
    }
  }
  __syncthreads();
  const auto take_x = [&](int turn, uint32_t(&x)[1][kSteps][P::kProducts][2]) {
    const uint32_t* const from =
        reinterpret_cast<const uint32_t*>(x_rows + g * row_bytes) +
        (static_cast<int64_t>(turn * call.chunks_each + warp) * kSteps * kStepBlocks + t) *
            P::kXWords;
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
      uint32_t words[P::kXWords] = {};
      if (g < call.num_tokens) LoadWords(from + s * kStepBlocks * P::kXWords, words);
#pragma unroll
      for (int l = 0; l < P::kProducts; ++l) {
        x[0][s][l][0] = words[2 * l];
        x[0][s][l][1] = words[2 * l + 1];
      }
    }
  };
  for (int turn = 0; turn < call.splits && has_chunk(turn); ++turn) {
    uint32_t x[1][kSteps][P::kProducts][2];
    take_x(turn, x);
    typename P::Sum x_sums[4] = {};
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
#pragma unroll
      for (int l = 0; l < P::kProducts; ++l) P::AddUp(x_sums, x[0][s][l][0], x[0][s][l][1]);
    }
    if (g == 0) {
      *reinterpret_cast<float2*>(sums_of_x + (turn * kWarps + warp) * kTokens + 2 * t) =
          make_float2(x_sums[0], x_sums[1]);
    }
  }
  __syncwarp();

  // As in few_tokens_linear_cuda.cu, half of the warps add before they multiply, half after.
  const bool adds_late = (warp & 4) != 0;
  float total = 0.0f;  // of a row, for the warp's token
  const auto add_turn = [&](int pair, int turn, const float* set) {
    if (warp >= call.num_tokens) return;
    const float* from = set + SumAt(warp, lane);
    const int count = min(call.chunks_each, num_chunks - turn * call.chunks_each);
    float sum = 0.0f;
    if (count == kWarps) {
      float values[kWarps];
#pragma unroll
      for (int w = 0; w < kWarps; ++w) values[w] = from[w * kWarpSums];
#pragma unroll
      for (int w = 0; w < kWarps; ++w) sum += values[w];
    } else {
#pragma unroll 4
      for (int w = 0; w < count; ++w) sum += from[w * kWarpSums];
    }
    total = turn == 0 ? sum : total + sum;
    if (turn + 1 < call.splits) return;
    if (call.gated) {
      const float up = __shfl_down_sync(0xffffffffu, total, 16);
      if (lane < 16) StoreGated(call, warp, 16 * pair + lane, total, up);
    } else if (32 * pair + lane < call.out_features) {
      StoreResult(call, warp, 32 * pair + lane, total);
    }
  };

  int place = 0, parity = 0, turn = 0, last_pair = -1, last_turn = 0;
  for (int pair = blockIdx.x;;) {
    float* const set = sums + parity * (kWarps * kWarpSums);
    const float* const previous = sums + (parity ^ 1) * (kWarps * kWarpSums);
    if (last_pair >= 0 && !adds_late) add_turn(last_pair, last_turn, previous);
    if (pair < num_pairs) {
      WaitForCopies<kDepth - 1>();
      __syncwarp();  // all lanes' copies are there
      if (has_chunk(turn)) {
        const unsigned char* const here = queue + place * Q::kPlaceBytes;
        B blocks[kSteps];
        Q::Take(here, lane, blocks);
        const uint2 scales = *reinterpret_cast<const uint2*>(here + Q::kCodeBytes + 8 * g);
        const uint32_t zeros =
            *reinterpret_cast<const uint32_t*>(here + Q::kCodeBytes + 64 + 4 * g);
        uint32_t x[1][kSteps][P::kProducts][2];
        take_x(turn, x);
        const float2 x_sum =
            *reinterpret_cast<const float2*>(sums_of_x + (turn * kWarps + warp) * kTokens + 2 * t);
        __syncwarp();  // and taken
        fetch();
        typename P::Sum c[2][1][4] = {};
        Multiply<P, 0, kSteps>(blocks, x, c);
        float y[2][4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float2 two = UnpackPair<__half>(i < 2 ? scales.x : scales.y);
          const float scale = i % 2 == 0 ? two.x : two.y;
          const int zero = static_cast<int>(zeros >> (8 * i) & 255u);
          y[0][i] = scale * P::Value(c[i / 2][0][i % 2 * 2], x_sum.x, zero);
          y[1][i] = scale * P::Value(c[i / 2][0][i % 2 * 2 + 1], x_sum.y, zero);
        }
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          if (2 * t + e >= call.num_tokens) continue;
          *reinterpret_cast<float4*>(&set[warp * kWarpSums + SumAt(2 * t + e, 4 * g)]) =
              make_float4(y[e][0], y[e][1], y[e][2], y[e][3]);
        }
      } else {
        fetch();
      }
      place = place + 1 == kDepth ? 0 : place + 1;
    }
    if (last_pair >= 0 && adds_late) add_turn(last_pair, last_turn, previous);
    if (pair >= num_pairs) break;
    last_pair = pair;
    last_turn = turn;
    if (++turn == call.splits) {
      turn = 0;
      pair += stride;
    }
    __syncthreads();
    parity ^= 1;
  }
}

template <int kBits>
constexpr int kChunkSteps = LinearQueue<kBits, true>::kSteps;

template <int kBits>
int SharedBytesOf(const CodedLinearCall& call, int64_t num_tokens) {
  return kWarps * LinearQueue<kBits, true>::kWarpBytes + 2 * kWarps * kWarpSums * 4 +
         call.splits * kWarps * kTokens * 4 +
         static_cast<int>(num_tokens) * RowBytes(call.num_steps / kChunkSteps<kBits>);
}

template <int kBits>
bool Takes(const CodedLinearCall& call, int64_t num_tokens, int most_shared_bytes) {
  return call.steps_per_part > 0 && call.steps_per_part % kChunkSteps<kBits> == 0 &&
         SharedBytesOf<kBits>(call, num_tokens) <= most_shared_bytes;
}

template <int kBits, typename T>
cudaError_t Launch(const CodedLinearCall& call, cudaStream_t stream) {
  const auto kernel = WholeRows<kBits, T>;
  const int bytes = SharedBytesOf<kBits>(call, call.num_tokens);
  const cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  if (error != cudaSuccess) return error;
  const int pairs = (call.num_panels + 1) / 2;
  const dim3 grid(std::min(pairs, call.num_blocks_of_threads));
  return LaunchKernel({grid, kThreads, static_cast<size_t>(bytes), stream}, call.early_launches,
                      kernel, call);
}

template <typename T>
cudaError_t LaunchBits(const CodedLinearCall& call, cudaStream_t stream) {
  if (call.bits == 3) return Launch<3, T>(call, stream);
  if (call.bits == 4) return Launch<4, T>(call, stream);
  return Launch<8, T>(call, stream);
}

}  // namespace

bool HasWholeRows(const CodedLinearCall& call, DType x_dtype, int64_t num_tokens,
                  int most_shared_bytes) {
  if (call.splits < 2 || call.planes > 1 || num_tokens > kTokens || !call.parts_are_groups ||
      (x_dtype != DType::kF16 && x_dtype != DType::kBF16)) {
    return false;
  }
  if (call.bits == 3) return Takes<3>(call, num_tokens, most_shared_bytes);
  if (call.bits == 4) return Takes<4>(call, num_tokens, most_shared_bytes);
  return Takes<8>(call, num_tokens, most_shared_bytes);
}

cudaError_t LaunchWholeRows(const CodedLinearCall& call, cudaStream_t stream) {
  return call.x_dtype == DType::kF16 ? LaunchBits<__half>(call, stream)
                                     : LaunchBits<__nv_bfloat16>(call, stream);
}

}  // namespace thinwire
