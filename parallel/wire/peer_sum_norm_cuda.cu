// A row is a cluster's, which has the threads of NormRows (kernels/norm) among its blocks: each
// sends what it has of this rank's part, marked, to the other ranks' mailboxes, waits for theirs,
// and adds up. Sums over the row cross the cluster's shared memory, in the order of NormRows.
#include <algorithm>

#include "absl/strings/str_cat.h"
#include "kernels/core/check.h"
#include "kernels/core/cuda_status.h"
#include "kernels/core/early_launch.cuh"
#include "kernels/core/vectors.cuh"
#include "kernels/norm/norm_internal.h"
#include "kernels/norm/norm_row.cuh"
#include "parallel/comm/peer_memory.cuh"
#include "parallel/wire/peer_sum_norm.h"

namespace thinwire {
namespace {

constexpr int kMostWarps = 16;  // of a row
constexpr int kMostClusterBlocks = 8;
constexpr int64_t kMostBytes = int64_t{1} << 20;
constexpr int64_t kMostBytesForMore = int64_t{256} << 10;  // than two ranks

template <typename T>
struct SumNormParams {
  T* x;
  int64_t x_stride;
  const T* part;
  int64_t part_stride;
  const float* weight;  // null for ones
  const float* bias;    // null for zeros
  T* out;
  int64_t out_stride;
  int num_rows;
  int hidden;
  int threads;         // of a row
  int cluster_blocks;  // of a row
  float epsilon;
  bool rms;
};

__device__ __forceinline__ void ArriveAtCluster() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.release;" ::: "memory");
#endif
}

__device__ __forceinline__ void WaitForCluster() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.wait.acquire;" ::: "memory");
#endif
}

// To the same place in the shared memory of block `rank` of the cluster.
__device__ __forceinline__ void StoreInCluster(float* at, unsigned rank, float value) {
#if __CUDA_ARCH__ >= 900
  const auto here = static_cast<uint32_t>(__cvta_generic_to_shared(at));
  uint32_t there;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(here), "r"(rank));
  asm volatile("st.shared::cluster.f32 [%0], %1;" ::"r"(there), "f"(value) : "memory");
#endif
}

template <typename T, int kVectors>
__global__ void __launch_bounds__(MostRowThreads(kVectors))
    SumNormRows(const __grid_constant__ PeerView v, const __grid_constant__ SumNormParams<T> p) {
  constexpr int kCount = kElementsPerVector<T>;
  __shared__ float partial[2][kMostWarps];
  const unsigned blocks = static_cast<unsigned>(p.cluster_blocks);
  const bool clustered = blocks > 1;
  if (clustered) ArriveAtCluster();  // that all have begun
  const int64_t row = blockIdx.x / blocks;
  const int thread = static_cast<int>(blockIdx.x % blocks * blockDim.x + threadIdx.x);
  const int num_vectors = p.hidden / kCount;
  const auto vector_at = [&](int i) {
    return thread < p.threads ? thread + i * p.threads : num_vectors;
  };
  Pack<float, kCount> weight[kVectors], bias[kVectors];
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
#pragma unroll
    for (int e = 0; e < kCount; ++e) {
      weight[i].values[e] = 1.0f;
      bias[i].values[e] = 0.0f;
    }
    if (vector_at(i) >= num_vectors) continue;
    if (p.weight != nullptr) weight[i] = LoadPack<kCount>(p.weight + vector_at(i) * kCount);
    if (p.bias != nullptr) bias[i] = LoadPack<kCount>(p.bias + vector_at(i) * kCount);
  }
  WaitForPrevious();
  LetNextStart();  // to fetch weights while ranks wait for each other

  const uint64_t epoch = CurrentEpoch(v);
  const uint32_t mark = MarkOf(epoch);
  uint4 mine[kVectors], x[kVectors];
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
    if (vector_at(i) >= num_vectors) continue;
    const int64_t at = static_cast<int64_t>(vector_at(i)) * kCount;
    mine[i] = *reinterpret_cast<const uint4*>(p.part + row * p.part_stride + at);
    x[i] = *reinterpret_cast<const uint4*>(p.x + row * p.x_stride + at);
  }
  // In a mailbox: the first 8 bytes of all vectors of a row, then the second.
  const auto place = [&](std::byte* box, int i, int half) {
    return box + 16 * ((2 * row + half) * num_vectors + vector_at(i));
  };
  for (int hop = 1; hop < v.size; ++hop) {
    const int to = v.rank + hop < v.size ? v.rank + hop : v.rank + hop - v.size;
    std::byte* const box = MailboxOf(v, to, v.rank, epoch);
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      if (vector_at(i) >= num_vectors) continue;
      Post(place(box, i, 0), mine[i].x, mine[i].y, mark);
      Post(place(box, i, 1), mine[i].z, mine[i].w, mark);
    }
  }
  float sums[kVectors][kCount];
  for (int r = 0; r < v.size; ++r) {
    uint4 part[kVectors];
#pragma unroll
    for (int i = 0; i < kVectors; ++i) part[i] = mine[i];
    if (r != v.rank) {
      std::byte* const box = MailboxOf(v, v.rank, r, epoch);
      WaitFor(v, r, [&] {
        bool all = true;
#pragma unroll
        for (int i = 0; i < kVectors; ++i) {
          if (vector_at(i) >= num_vectors) continue;
          uint32_t low[2], high[2];
          const bool has_low = Fetch(place(box, i, 0), mark, low);
          const bool has_high = Fetch(place(box, i, 1), mark, high);
          part[i] = {low[0], low[1], high[0], high[1]};
          all = all && has_low && has_high;
        }
        return all;
      });
    }
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
#pragma unroll
      for (int e = 0; e < kCount; ++e) {
        const float value = Element<T>(part[i], e);
        sums[i][e] = r == 0 ? value : sums[i][e] + value;
      }
    }
  }

  float total = 0.0f;
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
    if (vector_at(i) >= num_vectors) continue;
    Pack<T, kCount> sum;
#pragma unroll
    for (int e = 0; e < kCount; ++e) sum.values[e] = FromFloat<T>(sums[i][e]);
    x[i] = Sum<T>(x[i], *reinterpret_cast<const uint4*>(&sum));
    *reinterpret_cast<uint4*>(p.x + row * p.x_stride +
                              static_cast<int64_t>(vector_at(i)) * kCount) = x[i];
#pragma unroll
    for (int e = 0; e < kCount; ++e) total += Element<T>(x[i], e);
  }
  const int warps = p.threads / 32;
  const int lane = static_cast<int>(threadIdx.x % 32);
  if (clustered) WaitForCluster();
  const auto sum_of_row = [&](float value, float* sums_of_warps) {
    value = ReduceWarp(value, SumOf());
    if (warps == 1) return value;
    if (thread < p.threads) {
      if (!clustered) {
        if (lane == 0) sums_of_warps[thread / 32] = value;
      } else if (lane < static_cast<int>(blocks)) {
        StoreInCluster(sums_of_warps + thread / 32, static_cast<unsigned>(lane), value);
      }
    }
    if (clustered) {
      ArriveAtCluster();
      WaitForCluster();
    } else {
      __syncthreads();
    }
    return ReduceWarp(lane < warps ? sums_of_warps[lane] : 0.0f, SumOf());
  };
  const float n = static_cast<float>(p.hidden);
  const float mean = p.rms ? 0.0f : sum_of_row(total, partial[0]) / n;
  float squares = 0.0f;
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
    if (vector_at(i) >= num_vectors) continue;
#pragma unroll
    for (int e = 0; e < kCount; ++e) {
      const float centered = Element<T>(x[i], e) - mean;
      squares = fmaf(centered, centered, squares);
    }
  }
  const float scale = 1.0f / sqrtf(sum_of_row(squares, partial[1]) / n + p.epsilon);
  // All threads of the row have read the epoch: they have met, or are of one warp.
  if (thread == 0) EndEpochOfOne(v, epoch, static_cast<unsigned>(p.num_rows));
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
    if (vector_at(i) >= num_vectors) continue;
    Pack<T, kCount> out;
#pragma unroll
    for (int e = 0; e < kCount; ++e) {
      out.values[e] = FromFloat<T>(
          fmaf((Element<T>(x[i], e) - mean) * scale, weight[i].values[e], bias[i].values[e]));
    }
    StorePack(out, p.out + row * p.out_stride + static_cast<int64_t>(vector_at(i)) * kCount);
  }
}

// Blocks for each row: as many as fit the GPU once, so that a row's traffic has several
// multiprocessors.
int ClusterBlocks(const PeerMemory& peers, int64_t num_rows, int warps, bool clusters) {
  int blocks = 1;
  while (clusters && blocks < kMostClusterBlocks && 2 * blocks <= warps &&
         2 * blocks * num_rows <= peers.num_multiprocessors()) {
    blocks *= 2;
  }
  return blocks;
}

template <typename T, int kVectors>
cudaError_t Launch(const PeerMemory& peers, SumNormParams<T> p, cudaStream_t stream) {
  const auto kernel = SumNormRows<T, kVectors>;
  const bool early = CanStartEarly(kernel);  // on what has clusters, too
  const int warps = p.threads / 32;
  p.cluster_blocks = ClusterBlocks(peers, p.num_rows, warps, early);
  const int threads = (warps + p.cluster_blocks - 1) / p.cluster_blocks * 32;
  return LaunchKernel({.grid = dim3(static_cast<unsigned>(p.num_rows * p.cluster_blocks)),
                       .block = dim3(static_cast<unsigned>(threads)),
                       .stream = stream,
                       .cluster = static_cast<unsigned>(p.cluster_blocks)},
                      early, kernel, peers.view(), p);
}

template <typename T>
const T* DataOrNull(const ConstTensorView& view) {
  return view.empty() ? nullptr : view.data<T>();
}

}  // namespace

bool PeersSumAndNorm(const PeerMemory& peers, const NormArgs& norm) {
  const int64_t rows = norm.x.dim(0);
  const int64_t bytes = norm.x.num_elements() * DTypeBytes(norm.x.dtype(), 1);
  const int64_t row_bytes = DTypeBytes(norm.x.dtype(), norm.x.dim(1));
  return !peers.through_host() && norm.order.empty() && rows > 0 &&
         rows <= peers.num_multiprocessors() && row_bytes % 16 == 0 &&
         row_bytes / 16 <= kMostRowVectors && 2 * bytes <= peers.mailbox_bytes() &&
         bytes <= (peers.size() > 2 ? kMostBytesForMore : kMostBytes);
}

absl::Status SumAndNormThroughPeers(PeerMemory& peers, const NormArgs& norm, Stream& stream) {
  TW_CHECK(PeersSumAndNorm(peers, norm));
  TW_RETURN_IF_ERROR(CheckNormArgs(norm));
  for (const ConstTensorView& view :
       {ConstTensorView(norm.x), norm.delta, ConstTensorView(norm.out), norm.weight, norm.bias}) {
    if (!RowsAlign(view, 16)) {
      return absl::InvalidArgumentError(absl::StrCat(
          "a sum and a norm through peer memory: rows begin at multiples of 16 bytes, found ",
          view.DebugString()));
    }
  }
  TW_RETURN_IF_ERROR(peers.status());
  const cudaStream_t native = CudaStream(stream);
  const cudaError_t error = WithFloatType(norm.x.dtype(), [&](auto zero) {
    using T = decltype(zero);
    const int hidden = static_cast<int>(norm.x.dim(1));
    return WithRowShape(hidden / kElementsPerVector<T>, [&](auto vectors, int threads) {
      const SumNormParams<T> p = {.x = norm.x.mutable_data<T>(),
                                  .x_stride = norm.x.row_stride(),
                                  .part = norm.delta.data<T>(),
                                  .part_stride = norm.delta.row_stride(),
                                  .weight = DataOrNull<float>(norm.weight),
                                  .bias = DataOrNull<float>(norm.bias),
                                  .out = norm.out.mutable_data<T>(),
                                  .out_stride = norm.out.row_stride(),
                                  .num_rows = static_cast<int>(norm.x.dim(0)),
                                  .hidden = hidden,
                                  .threads = threads,
                                  .epsilon = norm.epsilon,
                                  .rms = norm.kind == NormKind::kRmsNorm};
      return Launch<T, decltype(vectors)::value>(peers, p, native);
    });
  });
  TW_RETURN_IF_CUDA_ERROR(error, stream.device());
  peers.CountSent((peers.size() - 1) * norm.delta.size_bytes());
  return absl::OkStatus();
}

}  // namespace thinwire
