// Coded linears for few tokens: each weight is read once for up to 16 tokens and goes from memory
// through a queue in shared memory into the operands of the matrix instructions.
//
// Columns are cut into chunks of 128 (fewer where parts are ragged), one for each warp of a block.
// A block keeps its chunks, and their x in registers, and goes through pairs of panels: of each,
// every warp multiplies its chunk, then the block adds the warps' sums in the order of the columns.
// Where a row has more chunks than a block has warps, the blocks that share it are a cluster: each
// keeps its sums in shared memory, and at the end takes its part of the rows and adds all blocks'
// in the same order. Where they cannot be one, they leave partial results, which a second kernel
// adds. So an element's sum depends on the columns alone.
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "kernels/coded_linear/coded_linear_cuda.h"
#include "kernels/coded_linear/linear_operands.cuh"
#include "kernels/coded_linear/linear_products.cuh"
#include "kernels/coded_linear/linear_result.cuh"
#include "kernels/core/async_copy.cuh"
#include "kernels/core/block_cluster.cuh"
#include "kernels/core/cuda_math.cuh"
#include "kernels/core/early_launch.cuh"

namespace thinwire {
namespace {

constexpr int kWarps = kLinearWarps;
constexpr int kThreads = 32 * kWarps;
constexpr int kAddThreads = 128;
// Floats of a token's 32 rows in shared memory; four more let a warp write without conflicts.
constexpr int kRowStride = 36;
constexpr int kMostSharedBytes = 227 << 10;  // of a block, where there are clusters

template <int kCount, int kFirst = 0, typename F>
__device__ inline void ForEach(F&& f) {
  if constexpr (kFirst < kCount) {
    f(std::integral_constant<int, kFirst>());
    ForEach<kCount, kFirst + 1>(f);
  }
}

// What a lane knows of its chunk.
template <int kSteps>
struct Chunk {
  int32_t offset[kSteps];  // bytes from a panel's first code
  int32_t part[kSteps];
  bool ends[kSteps];  // a part; the chunk's last step does
};

// A warp's queue of kDepth places. A place has its chunk of the pair's codes, step after step, in a
// step the blocks of one panel, then those of the other, in pieces of 16 bytes; where a chunk has
// one part, then the rows' scales, and their zeros.
template <int kBits, bool kOnePart>
struct Queue {
  using B = Block<kBits>;
  static constexpr int kSteps = kChunkColumns / (kStepBlocks * B::kColumns);
  static constexpr int kStepPieces = kStepBlocks * B::kBytes / 16;  // of a panel
  static constexpr int kCopies = kSteps * 2 * kStepPieces / 32;     // by each lane
  static constexpr int kCodeBytes = kCopies * 512;
  static constexpr int kPlaceBytes = kCodeBytes + (kOnePart ? 96 : 0);
  static constexpr int kDepth = kBits == 8 ? 2 : kBits == 4 ? 3 : 4;
  static constexpr int kWarpBytes = kDepth * kPlaceBytes;

  // Where a piece lies: blocks of 64 bytes two apart would meet in a bank.
  __device__ static int PlaceOf(int piece) {
    return B::kBytes == 64 ? piece ^ (piece >> 3 & 1) << 1 : piece;
  }
};

// Adds up what the blocks of a cluster keep, [num_pairs, num_tokens, 32] from shared address `kept`
// of each, of pairs of panels first_pair + i * stride. All threads of the cluster call it; they may
// write to kept again after.
__device__ inline void AddCluster(const CodedLinearCall& call, uint32_t kept, int num_pairs,
                                  int first_pair, int stride, int first_token, int num_tokens) {
  SyncCluster();
  const int fours = num_pairs * num_tokens * 8;
  const int first = static_cast<int>(RankInCluster()) * kThreads + static_cast<int>(threadIdx.x);
  for (int i = first; i < fours; i += call.splits * kThreads) {
    float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll 4
    for (int s = 0; s < call.splits; ++s) {
      const float4 partial = LoadFromRank(kept + 16 * i, s);
      sum.x += partial.x;
      sum.y += partial.y;
      sum.z += partial.z;
      sum.w += partial.w;
    }
    const int token = first_token + i / 8 % num_tokens;
    const int o = 32 * (first_pair + i / 8 / num_tokens * stride) + i % 8 * 4;
    const float values[4] = {sum.x, sum.y, sum.z, sum.w};
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      if (o + k < call.out_features) StoreResult(call, token, o + k, values[k]);
    }
  }
  SyncCluster();
}

template <int kBits, typename T, int kTiles, bool kOnePart>
__global__ void __launch_bounds__(kThreads, 1) FewTokens(const CodedLinearCall call) {
  using P = Products<kBits, T>;
  using B = Block<kBits>;
  constexpr int kSteps = kChunkColumns / (kStepBlocks * B::kColumns);
  constexpr int kTokens = 8 * kTiles;
  extern __shared__ __align__(16) unsigned char memory[];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int g = lane / 4, t = lane % 4, quarter = g % 4;
  const int first_token = blockIdx.z * kTokens;
  const int num_rows_of_x = call.num_tokens * call.planes;
  const int tokens_here = min(kTokens, num_rows_of_x - first_token);
  // Slots of a block take a pair each.
  const int slots = kWarps / call.warps_each;
  const int slot = warp / call.warps_each;
  const int in_slot = warp % call.warps_each;
  const int first_step = (static_cast<int>(blockIdx.y) * call.chunks_each + in_slot) * kSteps;
  const bool idle = in_slot >= call.chunks_each || first_step >= call.num_steps;

  // The warps' queues, then two sets of sums, then the sums that a block of a cluster keeps.
  using Q = Queue<kBits, kOnePart>;
  constexpr int kDepth = Q::kDepth;
  const unsigned char* const queue = memory + warp * Q::kWarpBytes;
  float* const sums = reinterpret_cast<float*>(memory + kWarps * Q::kWarpBytes);
  constexpr int kWarpSums = kTokens * kRowStride;
  float* const kept = sums + 2 * kWarps * kWarpSums;

  Chunk<kSteps> chunk;
#pragma unroll
  for (int s = 0; s < kSteps; ++s) {
    const int step = min(first_step + s, call.num_steps - 1);
    chunk.offset[s] = call.steps[step].block * B::kBytes;
    chunk.part[s] = call.steps[step].part;
    chunk.ends[s] =
        s == kSteps - 1 || step + 1 >= call.num_steps || call.steps[step + 1].part != chunk.part[s];
  }
  const LinearPart info = call.parts[chunk.part[0]];

  const int num_pairs = (call.num_panels + 1) / 2;
  const auto panel_of = [&](int pair, int panel) {
    return static_cast<int64_t>(min(2 * pair + panel, call.num_panels - 1));
  };
  // A warp copies what lies together in memory at a time: 128 bytes or more.
  int copy_offsets[Q::kCopies];
  bool copies_second[Q::kCopies];  // panel
#pragma unroll
  for (int i = 0; i < Q::kCopies; ++i) {
    const int piece = 32 * i + lane, of_step = piece / Q::kStepPieces;
    copies_second[i] = of_step % 2 != 0;
    int offset = 0;
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
      if (of_step / 2 == s) offset = chunk.offset[s];
    }
    copy_offsets[i] = offset + piece % Q::kStepPieces * 16;
  }
  const auto fetch = [&](int pair, int place) {
    const int64_t panel_bytes = static_cast<int64_t>(call.num_blocks) * B::kBytes;
    const uint8_t* const first = call.codes + panel_of(pair, 0) * panel_bytes;
    const uint8_t* const second = call.codes + panel_of(pair, 1) * panel_bytes;
    const uint32_t to = SharedAddress(queue + place * Q::kPlaceBytes);
#pragma unroll
    for (int i = 0; i < Q::kCopies; ++i) {
      CopyAsync16(to + 16 * Q::PlaceOf(32 * i + lane),
                  (copies_second[i] ? second : first) + copy_offsets[i]);
    }
    if (kOnePart && lane < 6) {  // of a panel 32 bytes of scales, 16 of zeros
      const int64_t rows =
          (panel_of(pair, lane < 4 ? lane / 2 : lane - 4) * call.num_groups + info.group) * 16;
      const void* const from = lane < 4
                                   ? static_cast<const void*>(call.scales + rows + lane % 2 * 8)
                                   : call.zeros + rows;
      CopyAsync16(to + Q::kCodeBytes + 16 * lane, from);
    }
  };
  // Scales and zeros of this lane's rows.
  struct Part {
    uint2 scales;
    uint32_t zeros;
  };
  // Where a chunk has several parts, those of its steps, fetched a pair ahead.
  Part ahead[kOnePart ? 1 : kSteps] = {};
  const auto fetch_parts = [&](int pair) {
    if constexpr (!kOnePart) {
#pragma unroll
      for (int s = 0; s < kSteps; ++s) {
        const int64_t at = (panel_of(min(pair, num_pairs - 1), g / 4) * call.num_groups +
                            call.parts[chunk.part[s]].group) *
                               16 +
                           4 * quarter;
        ahead[s] = {__ldg(reinterpret_cast<const uint2*>(call.scales + at)),
                    __ldg(reinterpret_cast<const unsigned int*>(call.zeros + at))};
      }
    }
  };
  const auto finish = [&](const Part& part, float factor, auto& c, auto& x_sums, auto&& add) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float2 pair = UnpackPair<__half>(i < 2 ? part.scales.x : part.scales.y);
      const float scale = (i % 2 == 0 ? pair.x : pair.y) * factor;
      const int zero = static_cast<int>(part.zeros >> (8 * i) & 255u);
#pragma unroll
      for (int n = 0; n < kTiles; ++n) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          add(i, n, e, scale * P::Value(c[i / 2][n][i % 2 * 2 + e], x_sums[n][e], zero));
        }
      }
    }
  };

  const int stride = gridDim.x * slots;
  const int first_pair = blockIdx.x * slots + slot;
  if (idle) {
    for (int i = lane; i < kWarpSums; i += 32) {
      sums[warp * kWarpSums + i] = 0.0f;
      sums[(kWarps + warp) * kWarpSums + i] = 0.0f;
    }
  }
  typename P::Sum x_sums[kTiles][4] = {};
  uint32_t x[kTiles][kSteps][P::kProducts][2];
  if (!idle) {
#pragma unroll
    for (int d = 0; d < kDepth; ++d) {
      if (first_pair + d * stride < num_pairs) fetch(first_pair + d * stride, d);
      CommitCopies();
    }
    fetch_parts(first_pair);
  }
  // Weights stay as they are; x and what results are written to may be in use until here.
  WaitForPrevious();
  LetNextStart();  // wherever a block has ended
  if (!idle) {
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
      const int64_t words = call.x_stride * static_cast<int64_t>(sizeof(T)) / 4;
#pragma unroll
      for (int n = 0; n < kTiles; ++n) {
        const int token = first_token + 8 * n + g;
        const bool there = token < num_rows_of_x && first_step + s < call.num_steps;
        uint32_t loaded[P::kXWords];
        LoadX(
            static_cast<const uint32_t*>(call.x) + (there ? token * words : 0) +
                (there ? (static_cast<int64_t>(first_step + s) * kStepBlocks + t) * P::kXWords : 0),
            there, loaded);
#pragma unroll
        for (int l = 0; l < P::kProducts; ++l) {
          P::X(loaded, l, x[n][s][l][0], x[n][s][l][1]);
          if (kOnePart) P::AddUp(x_sums[n], x[n][s][l][0], x[n][s][l][1]);
        }
      }
    }
  }

  int place = 0, parity = 0, num_kept = 0;
  for (int base = blockIdx.x * slots; base < num_pairs; base += stride) {
    const int pair = base + slot;
    float* const set = sums + parity * (kWarps * kWarpSums);
    if (!idle && pair < num_pairs) {
      WaitForCopies<kDepth - 1>();
      __syncwarp();  // all lanes' copies are there
      const unsigned char* const here = queue + place * Q::kPlaceBytes;
      B blocks[kSteps];
#pragma unroll
      for (int s = 0; s < kSteps; ++s) {
        const int first = (2 * s + g / 4) * Q::kStepPieces + t * (B::kBytes / 16);
#pragma unroll
        for (int i = 0; i < B::kPieces; ++i) {
          blocks[s].pieces[i] =
              reinterpret_cast<const uint4*>(here)[Q::PlaceOf(first + B::PieceAt(i, quarter) / 16)];
        }
        blocks[s].Prepare(quarter);
      }
      Part part = {};
      if constexpr (kOnePart) {
        part = {*reinterpret_cast<const uint2*>(here + Q::kCodeBytes + 8 * g),
                *reinterpret_cast<const uint32_t*>(here + Q::kCodeBytes + 64 + 4 * g)};
      }
      __syncwarp();  // and taken
      if (pair + kDepth * stride < num_pairs) fetch(pair + kDepth * stride, place);
      CommitCopies();
      place = place + 1 == kDepth ? 0 : place + 1;

      float y[4][kTiles][2] = {};
      if constexpr (kOnePart) {
        typename P::Sum c[2][kTiles][4] = {};
        Multiply<P, 0, kSteps>(blocks, x, c);
        finish(part, info.factor, c, x_sums,
               [&](int i, int n, int e, float value) { y[i][n][e] = value; });
      } else {
        typename P::Sum c[2][kTiles][4] = {}, sums_of_x[kTiles][4] = {};
        ForEach<kSteps>([&](auto at) {
          constexpr int s = decltype(at)::value;
          Multiply<P, s, s + 1>(blocks, x, c);
#pragma unroll
          for (int n = 0; n < kTiles; ++n) {
#pragma unroll
            for (int l = 0; l < P::kProducts; ++l) {
              P::AddUp(sums_of_x[n], x[n][s][l][0], x[n][s][l][1]);
            }
          }
          // Integers are exact until their part ends.
          if (P::kIntegers && !chunk.ends[s]) return;
          finish(ahead[s], call.parts[chunk.part[s]].factor, c, sums_of_x,
                 [&](int i, int n, int e, float value) { y[i][n][e] += value; });
#pragma unroll
          for (int n = 0; n < kTiles; ++n) {
#pragma unroll
            for (int i = 0; i < 4; ++i) c[0][n][i] = c[1][n][i] = sums_of_x[n][i] = 0;
          }
        });
        fetch_parts(pair + stride);
      }
#pragma unroll
      for (int n = 0; n < kTiles; ++n) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const int token = 8 * n + 2 * t + e;
          if (token >= tokens_here) continue;
          *reinterpret_cast<float4*>(&set[warp * kWarpSums + token * kRowStride + 4 * g]) =
              make_float4(y[0][n][e], y[1][n][e], y[2][n][e], y[3][n][e]);
        }
      }
    }
    __syncthreads();
    // What is read here is written again after the next barrier but one.
    for (int i = threadIdx.x; i < slots * tokens_here * 32; i += kThreads) {
      const int row = i % 32, token = i / 32 % tokens_here, of_slot = i / 32 / tokens_here;
      const int o = 32 * (base + of_slot) + row;
      const float* from = set + of_slot * call.warps_each * kWarpSums + token * kRowStride + row;
      float sum = 0.0f;
#pragma unroll 4
      for (int w = 0; w < call.chunks_each; ++w) sum += from[w * kWarpSums];
      if (call.kept_pairs > 0) {
        kept[(num_kept * tokens_here + token) * 32 + row] = sum;
      } else if (call.partials != nullptr) {
        if (o < 16 * call.num_panels) {
          call.partials[(static_cast<int64_t>(blockIdx.y) * num_rows_of_x + first_token + token) *
                            (16 * call.num_panels) +
                        o] = sum;
        }
      } else if (o < call.out_features) {
        StoreResult(call, first_token + token, o, sum);
      }
    }
    parity ^= 1;
    // All blocks of a cluster go through the same pairs.
    if (call.kept_pairs > 0 && (++num_kept == call.kept_pairs || base + stride >= num_pairs)) {
      AddCluster(call, SharedAddress(kept), num_kept, base - (num_kept - 1) * stride, stride,
                 first_token, tokens_here);
      num_kept = 0;
    }
  }
}

// Adds the blocks' partial results in order, and the planes of a value; a thread has four rows.
__global__ void __launch_bounds__(kAddThreads) AddPartials(const CodedLinearCall call) {
  LetNextStart();  // to fetch weights
  const int o = 4 * (static_cast<int>(blockIdx.x) * kAddThreads + static_cast<int>(threadIdx.x));
  const int token = blockIdx.y;
  WaitForPrevious();
  if (o >= call.out_features) return;
  const int64_t row = 16 * call.num_panels;
  const int64_t set = static_cast<int64_t>(call.num_tokens) * call.planes * row;
  float values[4] = {};
  for (int p = 0; p < call.planes; ++p) {
    const float* from = call.partials + (static_cast<int64_t>(token) * call.planes + p) * row + o;
    float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    constexpr int kAtATime = 8;  // on their way
    for (int first = 0; first < call.splits; first += kAtATime) {
      float4 partials[kAtATime];
#pragma unroll
      for (int s = 0; s < kAtATime; ++s) {
        if (first + s >= call.splits) break;
        partials[s] = *reinterpret_cast<const float4*>(from + (first + s) * set);
      }
#pragma unroll
      for (int s = 0; s < kAtATime; ++s) {
        if (first + s >= call.splits) break;
        sum.x += partials[s].x;
        sum.y += partials[s].y;
        sum.z += partials[s].z;
        sum.w += partials[s].w;
      }
    }
    values[0] += sum.x;
    values[1] += sum.y;
    values[2] += sum.z;
    values[3] += sum.w;
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if (o + i < call.out_features) StoreResult(call, token, o + i, values[i]);
  }
}

// Shared memory but for what blocks of a cluster keep.
template <int kBits, int kTiles, bool kOnePart>
constexpr int SharedBytes() {
  return kWarps * Queue<kBits, kOnePart>::kWarpBytes + 2 * kWarps * 8 * kTiles * kRowStride * 4;
}

template <int kBits, typename T, int kTiles, bool kOnePart>
cudaError_t Launch(CodedLinearCall call, cudaStream_t stream) {
  const auto kernel = FewTokens<kBits, T, kTiles, kOnePart>;
  const int slots = kWarps / call.warps_each;
  const int pairs = (call.num_panels + 1) / 2;
  const int rows_of_x = call.num_tokens * call.planes;
  const int at_a_time =
      call.clusters > 0 ? call.clusters : call.num_blocks_of_threads / call.splits;
  const dim3 grid(std::max(1, std::min((pairs + slots - 1) / slots, at_a_time)), call.splits,
                  (rows_of_x + 8 * kTiles - 1) / (8 * kTiles));
  int bytes = SharedBytes<kBits, kTiles, kOnePart>();
  if (call.clusters > 0) {
    // In as few rounds as shared memory lets them, of about as many pairs.
    const int pair_bytes = std::min(8 * kTiles, rows_of_x) * 32 * 4;
    const int most = (kMostSharedBytes - bytes) / pair_bytes;
    const int each = (pairs + static_cast<int>(grid.x) - 1) / static_cast<int>(grid.x);
    const int rounds = (each + most - 1) / most;
    call.kept_pairs = (each + rounds - 1) / rounds;
    bytes += call.kept_pairs * pair_bytes;
  }
  cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  if (error != cudaSuccess) return error;
  LaunchShape shape = {grid, kThreads, static_cast<size_t>(bytes), stream};
  if (call.clusters > 0) shape.cluster = dim3(1, grid.y);
  error = LaunchKernel(shape, call.early_launches, kernel, call);
  if (error != cudaSuccess || call.partials == nullptr) return error;
  const int rows_each = 4 * kAddThreads;
  const dim3 adders((call.out_features + rows_each - 1) / rows_each, call.num_tokens);
  return LaunchKernel({adders, kAddThreads, 0, stream}, call.early_launches, AddPartials, call);
}

template <int kBits, typename T>
cudaError_t LaunchTokens(const CodedLinearCall& call, cudaStream_t stream) {
  constexpr int kSteps = kChunkColumns / (kStepBlocks * Block<kBits>::kColumns);
  const bool one_part = call.steps_per_part > 0 && call.steps_per_part % kSteps == 0;
  if (call.num_tokens * call.planes <= 8) {
    return one_part ? Launch<kBits, T, 1, true>(call, stream)
                    : Launch<kBits, T, 1, false>(call, stream);
  }
  return one_part ? Launch<kBits, T, 2, true>(call, stream)
                  : Launch<kBits, T, 2, false>(call, stream);
}

template <typename T>
cudaError_t LaunchBits(const CodedLinearCall& call, cudaStream_t stream) {
  if (call.bits == 3) return LaunchTokens<3, T>(call, stream);
  if (call.bits == 4) return LaunchTokens<4, T>(call, stream);
  return LaunchTokens<8, T>(call, stream);
}

}  // namespace

bool FewTokensCanStartEarly() { return CanStartEarly(AddPartials); }

int MostLinearClusters(int size) {
  // All these kernels have a multiprocessor for each block; so one speaks for them.
  const auto kernel = FewTokens<4, __half, 1, true>;
  constexpr int kBytes = SharedBytes<4, 1, true>();
  if (!CanStartEarly(kernel)) return 0;
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim.x = attribute.val.clusterDim.z = 1;
  attribute.val.clusterDim.y = static_cast<unsigned int>(size);
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(1, size);
  config.blockDim = dim3(kThreads);
  config.dynamicSmemBytes = kBytes;
  config.attrs = &attribute;
  config.numAttrs = 1;
  int count = 0;
  if (cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes) !=
          cudaSuccess ||
      cudaOccupancyMaxActiveClusters(&count, kernel, &config) != cudaSuccess) {
    cudaGetLastError();  // not of the call that asks
    return 0;
  }
  return count;
}

cudaError_t LaunchFloatLinear(const CodedLinearCall& call, cudaStream_t stream) {
  return call.x_dtype == DType::kF16 ? LaunchBits<__half>(call, stream)
                                     : LaunchBits<__nv_bfloat16>(call, stream);
}

cudaError_t LaunchIntegerLinear(const CodedLinearCall& call, cudaStream_t stream) {
  return LaunchBits<uint8_t>(call, stream);
}

}  // namespace thinwire
