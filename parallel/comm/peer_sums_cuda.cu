#include <algorithm>

#include "kernels/core/cuda_status.h"
#include "kernels/core/vectors.cuh"
#include "parallel/comm/peer_memory.cuh"
#include "parallel/comm/peer_sums_cuda.h"

namespace thinwire {
namespace {

constexpr int kThreads = 256;
constexpr int kBlocksPerMultiprocessor = 2;

// 8 bytes of values.
template <typename T>
struct Item {
  static constexpr int kCount = 8 / static_cast<int>(sizeof(T));
  union {
    T values[kCount];
    uint32_t words[2];
  };
  __device__ __forceinline__ Item() : words{0, 0} {}
};

template <typename T>
__device__ __forceinline__ Item<T> LoadItem(const T* from, int64_t count, bool aligned) {
  Item<T> item;
  if (aligned && count >= Item<T>::kCount) {
    const uint2 words = *reinterpret_cast<const uint2*>(from);
    item.words[0] = words.x;
    item.words[1] = words.y;
    return item;
  }
#pragma unroll
  for (int e = 0; e < Item<T>::kCount; ++e) {
    if (e < count) item.values[e] = from[e];
  }
  return item;
}

template <typename T>
__device__ __forceinline__ void StoreItem(const Item<T>& item, int64_t count, bool aligned, T* to) {
  if (aligned && count >= Item<T>::kCount) {
    *reinterpret_cast<uint2*>(to) = {item.words[0], item.words[1]};
    return;
  }
#pragma unroll
  for (int e = 0; e < Item<T>::kCount; ++e) {
    if (e < count) to[e] = item.values[e];
  }
}

template <typename T>
__device__ __forceinline__ void AddPart(bool first, const T* part, int count, float* sums) {
#pragma unroll
  for (int e = 0; e < count; ++e) sums[e] = first ? AsFloat(part[e]) : sums[e] + AsFloat(part[e]);
}

// Through mailboxes: twice the bytes, but no fence, and nobody waits for more than its own values.
// A thread has at most kItems of them.
constexpr int kItems = 4;

template <typename T>
__global__ void __launch_bounds__(kThreads, kBlocksPerMultiprocessor)
    SumMarked(const __grid_constant__ PeerView v, T* inout, int64_t n, bool aligned) {
  constexpr int kCount = Item<T>::kCount;
  const uint64_t epoch = CurrentEpoch(v);
  const uint32_t mark = MarkOf(epoch);
  const int64_t num_items = (n + kCount - 1) / kCount;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  Item<T> mine[kItems];
#pragma unroll
  for (int k = 0; k < kItems; ++k) {
    const int64_t i = first + k * stride;
    if (i < num_items) mine[k] = LoadItem(inout + i * kCount, n - i * kCount, aligned);
  }
  for (int hop = 1; hop < v.size; ++hop) {
    const int to = v.rank + hop < v.size ? v.rank + hop : v.rank + hop - v.size;
    std::byte* const box = MailboxOf(v, to, v.rank, epoch);
#pragma unroll
    for (int k = 0; k < kItems; ++k) {
      const int64_t i = first + k * stride;
      if (i < num_items) Post(box + 16 * i, mine[k].words[0], mine[k].words[1], mark);
    }
  }
  bool heard = true;
#pragma unroll
  for (int k = 0; k < kItems; ++k) {
    const int64_t i = first + k * stride;
    if (i >= num_items) break;
    float sums[kCount];
    for (int r = 0; r < v.size; ++r) {
      Item<T> part = mine[k];
      if (r != v.rank) {
        const std::byte* const at = MailboxOf(v, v.rank, r, epoch) + 16 * i;
        heard = heard && WaitFor(v, r, [&] { return Fetch(at, mark, part.words); });
      }
      AddPart(r == 0, part.values, kCount, sums);
    }
    Item<T> sum;
#pragma unroll
    for (int e = 0; e < kCount; ++e) sum.values[e] = FromFloat<T>(sums[e]);
    if (heard) StoreItem(sum, n - i * kCount, aligned, inout + i * kCount);
  }
  EndEpoch(v, epoch);
}

// Through rooms: a block sends tiles and signals each, and adds up those that it sent kLag tiles
// ago, which the others have sent by then. Whole vectors only.
constexpr int kVectors = 4;  // of a thread in a tile
constexpr int64_t kTileVectors = kVectors * kThreads;
constexpr int kLag = 2;

template <typename T>
__device__ __forceinline__ Pack<T, kElementsPerVector<T>> LoadVector(const T* from, bool aligned) {
  if (aligned) return LoadPack<kElementsPerVector<T>>(from);
  Pack<T, kElementsPerVector<T>> pack;
#pragma unroll
  for (int e = 0; e < kElementsPerVector<T>; ++e) pack.values[e] = from[e];
  return pack;
}

template <typename T>
__device__ __forceinline__ void StoreVector(const Pack<T, kElementsPerVector<T>>& pack,
                                            bool aligned, T* to) {
  if (aligned) return StorePack(pack, to);
#pragma unroll
  for (int e = 0; e < kElementsPerVector<T>; ++e) to[e] = pack.values[e];
}

template <typename T>
__global__ void __launch_bounds__(kThreads, kBlocksPerMultiprocessor)
    SumSignalled(const __grid_constant__ PeerView v, T* inout, int64_t num_vectors, bool aligned) {
  constexpr int kCount = kElementsPerVector<T>;
  const uint64_t epoch = CurrentEpoch(v);
  const int64_t num_tiles = (num_vectors + kTileVectors - 1) / kTileVectors;
  const int64_t rounds = (num_tiles - blockIdx.x + gridDim.x - 1) / gridDim.x;
  for (int64_t round = 0; round < rounds + kLag; ++round) {
    const int64_t sent = (round * gridDim.x + blockIdx.x) * kTileVectors + threadIdx.x;
    if (round < rounds) {
      Pack<T, kCount> mine[kVectors];
#pragma unroll
      for (int k = 0; k < kVectors; ++k) {
        const int64_t i = sent + k * kThreads;
        if (i < num_vectors) mine[k] = LoadVector(inout + i * kCount, aligned);
      }
      for (int hop = 1; hop < v.size; ++hop) {
        const int to = v.rank + hop < v.size ? v.rank + hop : v.rank + hop - v.size;
        auto* const room = reinterpret_cast<T*>(RoomOf(v, to, v.rank, epoch));
#pragma unroll
        for (int k = 0; k < kVectors; ++k) {
          const int64_t i = sent + k * kThreads;
          if (i < num_vectors) StorePack(mine[k], room + i * kCount);
        }
      }
    }
    bool heard = true;
    const int from = static_cast<int>(threadIdx.x) - (kThreads - 32);
    if (round >= kLag && from >= 0 && from < v.size && from != v.rank) {
      const uint64_t* const signal = SignalOf(v, v.rank, from, blockIdx.x);
      const uint64_t wanted = (epoch << 16) + static_cast<uint64_t>(round - kLag + 1);
      heard = WaitFor(v, from, [&] { return ReadSignal(signal) >= wanted; });
    }
    if (__syncthreads_and(heard) == 0) break;
    if (round < rounds && static_cast<int>(threadIdx.x) < v.size &&
        static_cast<int>(threadIdx.x) != v.rank) {
      Signal(SignalOf(v, static_cast<int>(threadIdx.x), v.rank, blockIdx.x),
             (epoch << 16) + static_cast<uint64_t>(round + 1));
    }
    if (round < kLag) continue;
    const int64_t added = sent - kLag * static_cast<int64_t>(gridDim.x) * kTileVectors;
#pragma unroll
    for (int k = 0; k < kVectors; ++k) {
      const int64_t i = added + k * kThreads;
      if (i >= num_vectors) break;
      float sums[kCount];
      for (int r = 0; r < v.size; ++r) {
        const Pack<T, kCount> part =
            r == v.rank ? LoadVector(inout + i * kCount, aligned)
                        : LoadPack<kCount>(reinterpret_cast<const T*>(RoomOf(v, v.rank, r, epoch)) +
                                           i * kCount);
        AddPart(r == 0, part.values, kCount, sums);
      }
      Pack<T, kCount> sum;
#pragma unroll
      for (int e = 0; e < kCount; ++e) sum.values[e] = FromFloat<T>(sums[e]);
      StoreVector(sum, aligned, inout + i * kCount);
    }
  }
  EndEpoch(v, epoch);
}

// Of a message that goes by mailboxes: what fits, and where marks cost less than fences.
int64_t MostMarkedBytes(const PeerMemory& peers) {
  constexpr int64_t kMostThroughHost = int64_t{512} << 10;
  const int64_t threads =
      int64_t{kThreads} * kBlocksPerMultiprocessor * peers.num_multiprocessors();
  const int64_t fits = std::min(peers.mailbox_bytes() / 2, 8 * kItems * threads);
  return peers.through_host() ? std::min(fits, kMostThroughHost) : fits;
}

unsigned NumBlocks(const PeerMemory& peers, int64_t wanted) {
  const int64_t most = int64_t{kBlocksPerMultiprocessor} * peers.num_multiprocessors();
  return static_cast<unsigned>(std::min({wanted, most, int64_t{kMostPeerBlocks}}));
}

}  // namespace

int64_t MostPeerSumBytes(const PeerMemory& peers) {
  constexpr int64_t kMostForTwo = int64_t{32} << 20;
  constexpr int64_t kMostForTwoThroughHost = int64_t{1} << 20;
  constexpr int64_t kMostForMore = int64_t{256} << 10;
  if (peers.size() > 2) return std::min(kMostForMore, MostMarkedBytes(peers));
  return std::min(peers.through_host() ? kMostForTwoThroughHost : kMostForTwo, peers.room_bytes());
}

absl::Status SumThroughPeersCuda(PeerMemory& peers, TensorView inout, Stream& stream) {
  const cudaStream_t native = CudaStream(stream);
  const PeerView v = peers.view();
  const int64_t n = inout.num_elements();
  const int64_t bytes = inout.size_bytes();
  const auto address = reinterpret_cast<uintptr_t>(inout.raw());
  WithFloatType(inout.dtype(), [&](auto zero) {
    using T = decltype(zero);
    T* const data = inout.mutable_data<T>();
    // By what is the same on all ranks, which addresses need not be.
    if (bytes <= MostMarkedBytes(peers) || bytes % 16 != 0) {
      // In pieces, where what is too large does not consist of whole vectors.
      const int64_t most = MostMarkedBytes(peers) / 8 * 8 / static_cast<int64_t>(sizeof(T));
      for (int64_t begin = 0; begin < n; begin += most) {
        const int64_t count = std::min(most, n - begin);
        const int64_t items = (count + Item<T>::kCount - 1) / Item<T>::kCount;
        SumMarked<T><<<NumBlocks(peers, (items + kThreads - 1) / kThreads), kThreads, 0, native>>>(
            v, data + begin, count, address % 8 == 0);
      }
      return;
    }
    const int64_t vectors = bytes / 16;
    SumSignalled<T>
        <<<NumBlocks(peers, (vectors + kTileVectors - 1) / kTileVectors), kThreads, 0, native>>>(
            v, data, vectors, address % 16 == 0);
  });
  peers.CountSent((peers.size() - 1) * bytes);
  return CudaLaunchStatus("sum through peer memory", stream);
}

}  // namespace thinwire
