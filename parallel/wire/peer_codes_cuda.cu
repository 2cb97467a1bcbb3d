// Groups travel in tiles of 64, encoded by a block at a time: codes one after another, then scale
// bytes. Blocks of equal number on all ranks talk to each other.
//
// A block goes through its tiles in rounds. In a round it encodes one tile into shared memory,
// meets, pushes it to the others in whole lines, and decodes the tile that it pushed kLag rounds
// ago together with the others' (which have pushed theirs by then, if they are as fast). So the
// links carry one tile while the multiprocessors work on others, with no barrier of the whole GPU.
// What is pushed in a round is signalled after the next round's barrier, by when all threads of the
// block have pushed; peer_memory.cuh has the order of memory. Progress: what a round waits for was
// signalled by the other rank kLag - 1 >= 1 rounds before it can wait for this one.
#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "kernels/core/cuda_status.h"
#include "kernels/group_codes/group_lanes.cuh"
#include "parallel/comm/peer_memory.cuh"
#include "parallel/wire/peer_codes.h"

namespace thinwire {
namespace {

constexpr int kLag = 2;
constexpr int kStages = kLag + 2;  // tiles in shared memory: encoded, pushed, waiting, decoded
constexpr int kPollingWarp = kGroupThreads / 32 - 1;  // another than signals, which wait, too

template <int kBits, int kSteps>
struct Tile {
  static constexpr int kGroupSize = 16 * kSteps;
  static constexpr int kGroupBytes = 2 * kBits * kSteps;
  static constexpr int kCodeBytes = kGroupsPerBlock * kGroupBytes;
  static constexpr int kBytes = kCodeBytes + kGroupsPerBlock;
  static constexpr int kVectors = kBytes / 16;
  static_assert(kCodeBytes % 16 == 0 && kBytes % 16 == 0 && kGroupBytes % 4 == 0);

  // The first group of which 16 bytes number i hold something.
  static __device__ __forceinline__ int FirstGroupOf(int i) {
    return i < kCodeBytes / 16 ? 16 * i / kGroupBytes : 16 * (i - kCodeBytes / 16);
  }
};

template <typename T>
struct Job {
  PeerView peers;
  PeerExchange exchange;
  T* rows;
  int64_t first_group[kMostPeerRanks];  // of rank r's block of rows, in `rows`
  int64_t num_groups[kMostPeerRanks];
  float norm;
};

__device__ __forceinline__ int64_t NumTiles(int64_t num_groups) {
  return (num_groups + kGroupsPerBlock - 1) / kGroupsPerBlock;
}

template <int kBits, int kSteps, typename T>
__global__ void __launch_bounds__(kGroupThreads, kSteps == 8 ? 2 : 4)
    Exchange(const __grid_constant__ Job<T> job) {
  using TileOf = Tile<kBits, kSteps>;
  __shared__ SharedTables tables;
  __shared__ uint4 stages[kStages][TileOf::kVectors];
  FillTables(tables);
  const PeerView& v = job.peers;
  const uint64_t epoch = CurrentEpoch(v);
  const int me = v.rank;
  const int thread = static_cast<int>(threadIdx.x);
  const int lane = thread % kLanes;
  const int slot = thread / kLanes;  // of a tile's groups
  const bool to_owners = job.exchange == PeerExchange::kSumToOwners;
  // Owners are sent tiles of their own, one in turn; else all are sent the same.
  const int turns = to_owners ? v.size - 1 : 1;
  const auto turn_to = [&](int64_t round) {
    const int to = me + 1 + static_cast<int>(round % turns);
    return to < v.size ? to : to - v.size;
  };
  const auto has_tile = [&](int block, int64_t tile) {
    return tile * kGroupsPerBlock < job.num_groups[block];
  };
  int64_t most_groups = 0;
  for (int r = 0; r < v.size; ++r) most_groups = max(most_groups, job.num_groups[r]);
  const int64_t tiles_here =
      max((NumTiles(most_groups) - blockIdx.x + gridDim.x - 1) / gridDim.x, int64_t{0});
  const int64_t rounds = tiles_here * turns;
  const auto tile_at = [&](int64_t index) { return index * gridDim.x + blockIdx.x; };
  // This thread's values of a tile's group, its last again where there are fewer.
  const auto values_at = [&](int block, int64_t tile) {
    const int64_t group = min(tile * kGroupsPerBlock + slot, job.num_groups[block] - 1);
    return job.rows + (job.first_group[block] + group) * TileOf::kGroupSize + 4 * lane;
  };

  for (int64_t round = 0; round < rounds + kLag; ++round) {
    const int to = turn_to(round);
    const int sent_block = to_owners ? to : me;
    const int64_t sent_tile = tile_at(round / turns);
    const bool sends = round < rounds && has_tile(sent_block, sent_tile);
    uint4* const stage = stages[round % kStages];
    if (sends) {
      const GroupCode<kSteps> coded = EncodeGroup<kBits, kSteps>(
          tables, lane, values_at(sent_block, sent_tile), job.norm, true);
      auto* const bytes = reinterpret_cast<uint8_t*>(stage);
      StoreCodes<kBits, kSteps, true>(lane, coded.words, true, bytes + slot * TileOf::kGroupBytes);
      if (lane == 0) bytes[TileOf::kCodeBytes + slot] = coded.scale;
    }
    // Of what this block receives: the tile of the round kLag ago, once all turns have had it.
    const int64_t past = round - kLag;
    const bool receives = past >= 0 && (past + 1) % turns == 0;
    const int64_t index = past / turns;
    const int64_t tile = tile_at(index);
    bool heard = true;
    const int from = thread - 32 * kPollingWarp;
    if (receives && from >= 0 && from < v.size && from != me &&
        has_tile(to_owners ? me : from, tile)) {
      const uint64_t* const signal = SignalOf(v, me, from, blockIdx.x);
      const uint64_t wanted = (epoch << 16) + static_cast<uint64_t>(index + 1);
      heard = WaitFor(v, from, [&] { return ReadSignal(signal) >= wanted; });
    }
    if (__syncthreads_and(heard) == 0) break;

    if (round > 0 && round <= rounds && thread < v.size && thread != me) {
      const int64_t pushed = round - 1;
      const bool did = to_owners
                           ? thread == turn_to(pushed) && has_tile(thread, tile_at(pushed / turns))
                           : has_tile(me, tile_at(pushed));
      if (did) {
        Signal(SignalOf(v, thread, me, blockIdx.x),
               (epoch << 16) + static_cast<uint64_t>(pushed / turns + 1));
      }
    }
    if (sends) {
      const int64_t filled = job.num_groups[sent_block] - sent_tile * kGroupsPerBlock;
      for (int hop = 0; hop < (to_owners ? 1 : v.size - 1); ++hop) {
        const int peer = to + hop < v.size ? to + hop : to + hop - v.size;
        auto* const room =
            reinterpret_cast<uint4*>(RoomOf(v, peer, me, epoch) + sent_tile * TileOf::kBytes);
        for (int i = thread; i < TileOf::kVectors; i += kGroupThreads) {
          if (TileOf::FirstGroupOf(i) < filled) room[i] = stage[i];
        }
      }
    }
    if (!receives) continue;
    // The codes of `block`'s tile, or of all's, as rank r has sent them.
    const auto add = [&](int r, Values<kSteps>& u) {
      const uint8_t* const bytes =
          r == me
              ? reinterpret_cast<const uint8_t*>(stages[past % kStages])
              : reinterpret_cast<const uint8_t*>(RoomOf(v, me, r, epoch)) + tile * TileOf::kBytes;
      uint32_t codes[kSteps];
      LoadCodes<kBits, kSteps, true>(lane, bytes + slot * TileOf::kGroupBytes, codes);
      AddLevels<kBits, kSteps>(tables, bytes[TileOf::kCodeBytes + slot], codes, u);
    };
    const bool shares = job.exchange == PeerExchange::kShare;
    for (int r = shares ? 0 : me; r < (shares ? v.size : me + 1); ++r) {
      if (!has_tile(r, tile)) continue;
      Values<kSteps> u = {};  // from 0 on, since a sum of -0 would be -0
      if (shares) {
        add(r, u);
      } else {
        for (int part = 0; part < v.size; ++part) {
          if (part != me || !to_owners) add(part, u);
        }
      }
      Rotate<kSteps>(lane, u);
      if (tile * kGroupsPerBlock + slot < job.num_groups[r]) {
        StoreValues<kSteps>(u, job.norm, to_owners, true, values_at(r, tile));
      }
    }
  }
  // Every kernel waits for all ranks (peer_memory.h), also where it has nothing for some or nothing
  // of them.
  if (blockIdx.x == 0 && thread < v.size && thread != me) {
    const uint64_t any = (epoch << 16) + 1;
    if (job.num_groups[to_owners ? thread : me] == 0) Signal(SignalOf(v, thread, me, 0), any);
    const uint64_t* const signal = SignalOf(v, me, thread, 0);
    (void)WaitFor(v, thread, [&] { return ReadSignal(signal) >= any; });
  }
  EndEpoch(v, epoch);
}

// Launches kernels of as many groups of every block as fit into a room.
template <int kBits, int kSteps, typename T>
void Launch(const PeerMemory& peers, PeerExchange exchange, TensorView rows,
            absl::Span<const int64_t> offsets, cudaStream_t stream) {
  using TileOf = Tile<kBits, kSteps>;
  const int64_t groups_per_row = rows.dim(1) / TileOf::kGroupSize;
  const bool sums_all = exchange == PeerExchange::kSumAll;
  Job<T> job = {};
  job.peers = peers.view();
  job.exchange = exchange;
  job.rows = rows.mutable_data<T>();
  job.norm = static_cast<float>(1.0 / std::sqrt(static_cast<double>(TileOf::kGroupSize)));
  const auto begin_of = [&](int r) { return sums_all ? 0 : offsets[r] * groups_per_row; };
  const auto end_of = [&](int r) {
    return (sums_all ? rows.dim(0) : offsets[r + 1]) * groups_per_row;
  };
  int64_t most = 0;
  for (int r = 0; r < peers.size(); ++r) most = std::max(most, end_of(r) - begin_of(r));
  const int64_t room = peers.room_bytes() / TileOf::kBytes * kGroupsPerBlock;
  constexpr int64_t kBlocksPerMultiprocessor = kSteps == 8 ? 2 : 4;
  const int64_t most_blocks =
      std::min<int64_t>(kBlocksPerMultiprocessor * peers.num_multiprocessors(), kMostPeerBlocks);
  for (int64_t begin = 0; begin < most; begin += room) {
    const int64_t count = std::min(room, most - begin);
    for (int r = 0; r < peers.size(); ++r) {
      job.first_group[r] = begin_of(r) + begin;
      job.num_groups[r] = std::clamp<int64_t>(end_of(r) - job.first_group[r], 0, count);
    }
    const int64_t tiles = (count + kGroupsPerBlock - 1) / kGroupsPerBlock;
    Exchange<kBits, kSteps, T>
        <<<static_cast<unsigned>(std::min(tiles, most_blocks)), kGroupThreads, 0, stream>>>(job);
  }
}

int64_t GroupSize(int bits, int64_t width) {
  return width % 128 == 0 && bits == 8 ? 128 : width % 64 == 0 ? 64 : 0;
}

}  // namespace

bool PeersExchange(const RowCodec& codec, const ConstTensorView& rows) {
  return codec.kind == RowCodec::Kind::kCodes && IsFloat(rows.dtype()) && rows.contiguous() &&
         rows.device().kind == DeviceKind::kCuda && GroupSize(codec.bits, rows.dim(1)) > 0;
}

absl::Status ExchangeThroughPeers(PeerMemory& peers, PeerExchange exchange, const RowCodec& codec,
                                  TensorView rows, absl::Span<const int64_t> offsets,
                                  Stream& stream) {
  TW_CHECK(PeersExchange(codec, rows));
  if (reinterpret_cast<uintptr_t>(rows.raw()) % 16 != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("rows for peer memory begin at multiples of 16 bytes: ", rows.DebugString()));
  }
  TW_RETURN_IF_ERROR(peers.status());
  const cudaStream_t native = CudaStream(stream);
  WithFloatType(rows.dtype(), [&](auto zero) {
    using T = decltype(zero);
    WithBits(codec.bits, [&](auto bits) {
      constexpr int kBits = decltype(bits)::value;
      if constexpr (kBits == 8) {
        if (GroupSize(kBits, rows.dim(1)) == 128) {
          return Launch<kBits, 8, T>(peers, exchange, rows, offsets, native);
        }
      }
      Launch<kBits, 4, T>(peers, exchange, rows, offsets, native);
    });
  });
  const int64_t row_bytes = codec.RowBytes(rows.dim(1), rows.dtype());
  const int me = peers.rank();
  const int64_t own_rows = offsets[me + 1] - offsets[me];
  const int64_t others = peers.size() - 1;
  switch (exchange) {
    case PeerExchange::kSumAll:
      peers.CountSent(others * rows.dim(0) * row_bytes);
      break;
    case PeerExchange::kSumToOwners:
      peers.CountSent((rows.dim(0) - own_rows) * row_bytes);
      break;
    case PeerExchange::kShare:
      peers.CountSent(others * own_rows * row_bytes);
      break;
  }
  return CudaLaunchStatus("exchange of codes through peer memory", stream);
}

}  // namespace thinwire
