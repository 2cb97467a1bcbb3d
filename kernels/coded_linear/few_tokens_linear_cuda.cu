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
constexpr int kAddThreads = 128;
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
  using Q = LinearQueue<kBits, kOnePart>;
  constexpr int kDepth = Q::kDepth;
  const unsigned char* const queue = memory + warp * Q::kWarpBytes;
  float* const sums = reinterpret_cast<float*>(memory + kWarps * Q::kWarpBytes);
  constexpr int kWarpSums = kTokens * 32;
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
  const int stride = gridDim.x * slots;
  const int first_pair = blockIdx.x * slots + slot;
  const auto panel_of = [&](int pair, int panel) {
    return static_cast<int64_t>(call.gated ? pair + panel * num_pairs
                                           : min(2 * pair + panel, call.num_panels - 1));
  };
  // A warp copies what lies together in memory at a time: 128 bytes or more. What it copies next
  // moves on by a stride of pairs; a last panel without a second is copied twice.
  const int panel_bytes = call.num_blocks * B::kBytes;
  // A pair's panels lie together, but for a gate's: these are the first and second half of all.
  const int apart = call.gated ? num_pairs : 1, pair_panels = call.gated ? 1 : 2;
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
    copy_offsets[i] =
        offset + piece % Q::kStepPieces * 16 + (copies_second[i] ? apart * panel_bytes : 0);
  }
  // All steps lie together; half of the lanes have the second panel.
  constexpr bool kOneOffset = kOnePart && Q::kStepPieces == 16;
  const uint8_t* next_codes = call.codes + int64_t{pair_panels} * first_pair * panel_bytes +
                              (kOneOffset ? copy_offsets[0] : 0);
  const int64_t codes_stride = int64_t{pair_panels} * stride * panel_bytes;
  // One part: lanes 0 to 3 copy 32 bytes of scales of each panel, lanes 4 and 5 16 of zeros.
  const bool scales_second = lane < 4 ? lane >= 2 : lane == 5;
  const int panel_scales = 16 * call.num_groups * (lane < 4 ? 2 : 1);  // bytes
  const uint8_t* next_scales = nullptr;
  const int64_t scales_stride = int64_t{pair_panels} * stride * panel_scales;
  if (kOnePart && lane < 6) {
    next_scales =
        (lane < 4 ? reinterpret_cast<const uint8_t*>(call.scales) + info.group * 32 + lane % 2 * 16
                  : call.zeros + info.group * 16) +
        (int64_t{pair_panels} * first_pair + (scales_second ? apart : 0)) * panel_scales;
  }
  const int lone_pair = call.num_panels % 2 != 0 ? num_pairs - 1 : num_pairs;
  const uint32_t queue_at = SharedAddress(queue), lane_at = queue_at + 16 * Q::PlaceOf(lane);
  const auto fetch = [&](int pair, int place) {
    const int codes_back = pair == lone_pair ? panel_bytes : 0;
#pragma unroll
    for (int i = 0; i < Q::kCopies; ++i) {
      const uint8_t* from =
          next_codes + (kOneOffset ? kStepBlocks * B::kBytes * i : copy_offsets[i]);
      CopyAsync16(lane_at + place * Q::kPlaceBytes + 512 * i,
                  from - (copies_second[kOneOffset ? 0 : i] ? codes_back : 0));
    }
    next_codes += codes_stride;
    if (kOnePart && lane < 6) {
      CopyAsync16(queue_at + place * Q::kPlaceBytes + Q::kCodeBytes + 16 * lane,
                  next_scales - (scales_second && pair == lone_pair ? panel_scales : 0));
      next_scales += scales_stride;
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
  // Wherever a block has ended; adders would crowd on the first multiprocessors that are free.
  if (call.partials == nullptr) LetNextStart();
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

  // Adds the warps' sums of the pairs from `base` on, and keeps or stores what comes out. In turn:
  // half of the warps add a round's sums before they multiply the next one's pair, half after, so
  // that one half multiplies while the other adds. What they read is written again a barrier later.
  const bool adds_late = (warp & 4) != 0;
  const int own_slot = warp / tokens_here, own_token = warp % tokens_here;  // divided once
  int num_kept = 0;
  const auto add_round = [&](int base, const float* set) {
    const auto add = [&](int of_slot, int token) {
      const int o = 32 * (base + of_slot) + lane;
      const float* from = set + of_slot * call.warps_each * kWarpSums + SumAt(token, lane);
      float sum = 0.0f;
      if (call.chunks_each == kWarps) {
        float values[kWarps];
#pragma unroll
        for (int w = 0; w < kWarps; ++w) values[w] = from[w * kWarpSums];
#pragma unroll
        for (int w = 0; w < kWarps; ++w) sum += values[w];
      } else {
#pragma unroll 4
        for (int w = 0; w < call.chunks_each; ++w) sum += from[w * kWarpSums];
      }
      if (call.kept_pairs > 0) {
        kept[(num_kept * tokens_here + token) * 32 + lane] = sum;
      } else if (call.partials != nullptr) {
        if (o < 16 * call.num_panels) {
          call.partials[(static_cast<int64_t>(blockIdx.y) * num_rows_of_x + first_token + token) *
                            (16 * call.num_panels) +
                        o] = sum;
        }
      } else if (call.gated) {
        const float up = __shfl_down_sync(0xffffffffu, sum, 16);
        const int pair = base + of_slot;
        if (lane < 16 && pair < num_pairs) {
          StoreGated(call, first_token + token, 16 * pair + lane, sum, up);
        }
      } else if (o < call.out_features) {
        StoreResult(call, first_token + token, o, sum);
      }
    };
    if (warp < slots * tokens_here) add(own_slot, own_token);
    for (int i = warp + kWarps; i < slots * tokens_here; i += kWarps) {
      add(i / tokens_here, i % tokens_here);
    }
    ++num_kept;
  };

  const int first_base = blockIdx.x * slots;
  int place = 0, parity = 0;
  for (int base = first_base;; base += stride) {
    const int pair = base + slot;
    float* const set = sums + parity * (kWarps * kWarpSums);
    const float* const previous = sums + (parity ^ 1) * (kWarps * kWarpSums);
    if (base > first_base && !adds_late) add_round(base - stride, previous);
    if (!idle && pair < num_pairs) {
      WaitForCopies<kDepth - 1>();
      __syncwarp();  // all lanes' copies are there
      const unsigned char* const here = queue + place * Q::kPlaceBytes;
      B blocks[kSteps];
      Q::Take(here, lane, blocks);
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
          if (n + 1 == kTiles && token >= tokens_here) continue;
          *reinterpret_cast<float4*>(&set[warp * kWarpSums + SumAt(token, 4 * g)]) =
              make_float4(y[0][n][e], y[1][n][e], y[2][n][e], y[3][n][e]);
        }
      }
    }
    if (base > first_base && adds_late) add_round(base - stride, previous);
    // All blocks of a cluster go through the same pairs.
    const bool ends = base >= num_pairs;
    if (call.kept_pairs > 0 && (num_kept == call.kept_pairs || (ends && num_kept > 0))) {
      AddCluster(call, SharedAddress(kept), num_kept, base - num_kept * stride, stride, first_token,
                 tokens_here);
      num_kept = 0;
    }
    if (ends) break;
    __syncthreads();
    parity ^= 1;
  }
}

__global__ void __launch_bounds__(kAddThreads) AddPartials(const CodedLinearCall call) {
  LetNextStart();  // to fetch weights
  WaitForPrevious();
  AddPartialSums(call, 4 * static_cast<int>(blockIdx.x * kAddThreads + threadIdx.x), blockIdx.y);
}

// Shared memory but for what blocks of a cluster keep.
template <int kBits, int kTiles, bool kOnePart>
constexpr int SharedBytes() {
  return kWarps * LinearQueue<kBits, kOnePart>::kWarpBytes + 2 * kWarps * 8 * kTiles * 32 * 4;
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
  const int results = call.gated ? call.out_features / 2 : call.out_features;
  const dim3 adders((results + rows_each - 1) / rows_each, call.num_tokens);
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
