// Groups travel in tiles of 64, encoded by a block at a time: codes one after another, then scale
// bytes. Blocks of equal number on all ranks talk to each other.
//
// A block goes through its tiles in rounds. In a round it encodes some into shared memory, meets,
// pushes them to the others in whole lines, and decodes those that it pushed kLag rounds ago
// together with the others' (which have pushed theirs by then, if they are as fast). So the links
// carry some tiles while the multiprocessors work on others, with no barrier of the whole GPU. What
// is pushed in a round is signalled after the next round's barrier, by when all threads of the
// block have pushed; peer_memory.cuh has the order of memory. Progress: a round waits, before its
// barrier, for signals that the other rank gives in rounds before this one.
#include <algorithm>

#include "absl/strings/str_cat.h"
#include "kernels/core/cuda_status.h"
#include "parallel/wire/peer_codes.cuh"

namespace thinwire {
namespace {

constexpr int kLag = 2;
constexpr int kStages = kLag + 2;  // rounds in shared memory: encoded, pushed, waiting, decoded

template <int kBits, int kSteps>
struct Tile {
  static constexpr int kThreads = kSteps == 4 ? 2 : 4;  // of a group
  static constexpr int kBlock = kThreads * kGroupsPerBlock;
  static constexpr int kPollingWarp = kBlock / 32 - 1;  // another than signals, which wait, too
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

// Tiles of a round: what a round costs, such as the wait of its signal for what was pushed
// before to arrive, is paid once for all. As many as static shared memory holds.
template <int kBits, int kSteps>
inline constexpr int kTiles = std::min(4, 46 * 1024 / (kStages * Tile<kBits, kSteps>::kBytes));

// Rounds in which owners are sent tiles of their own, one in turn.
struct Turn {
  int turn = 0;
  int index = 0;  // of the tile among the block's

  __device__ __forceinline__ void Next(int turns) {
    if (++turn == turns) {
      turn = 0;
      ++index;
    }
  }
};

// Blocks of a multiprocessor.
template <int kSteps>
inline constexpr int kResident = kSteps == 8 ? 2 : 4;

template <PeerExchange kExchange, int kBits, int kSteps, typename T>
__global__ void __launch_bounds__(Tile<kBits, kSteps>::kBlock, kResident<kSteps>)
    Exchange(const __grid_constant__ ExchangeJob<T> job) {
  using TileOf = Tile<kBits, kSteps>;
  __shared__ LaneTables tables;
  constexpr int kThreads = TileOf::kThreads;
  constexpr int kRoundTiles = kTiles<kBits, kSteps>;
  __shared__ uint4 stages[kStages][kRoundTiles][TileOf::kVectors];
  FillLaneTables<kBits>(tables);
  const PeerView& v = job.peers;
  const uint64_t epoch = CurrentEpoch(v);
  const int me = v.rank;
  const int thread = static_cast<int>(threadIdx.x);
  const int lane = thread % kThreads;
  const int slot = thread / kThreads;  // of a tile's groups
  const int block = static_cast<int>(blockIdx.x);
  const int blocks = static_cast<int>(gridDim.x);
  constexpr bool to_owners = kExchange == PeerExchange::kSumToOwners;
  constexpr bool shares = kExchange == PeerExchange::kShare;
  const int turns = to_owners ? v.size - 1 : 1;  // else all are sent the same
  const auto peer_of = [&](int turn) {
    return me + 1 + turn < v.size ? me + 1 + turn : me + 1 + turn - v.size;
  };
  // The first tile of the block's round; the others are `blocks` further each.
  const auto tile_at = [&](int index) { return index * kRoundTiles * blocks + block; };
  const auto has_tile = [&](int of, int tile) {
    return tile * kGroupsPerBlock < job.num_groups[of];
  };
  int most_groups = 0;
  for (int r = 0; r < v.size; ++r) most_groups = max(most_groups, job.num_groups[r]);
  const auto rounds_of = [&](int groups) {
    const int tiles = (groups + kGroupsPerBlock - 1) / kGroupsPerBlock;
    const int step = kRoundTiles * blocks;
    return tiles > block ? (tiles - block + step - 1) / step : 0;
  };
  const int own_rounds = rounds_of(job.num_groups[me]);
  const int rounds = rounds_of(most_groups) * turns;
  // This thread's values of a tile's group, its last again where there are fewer.
  const auto values_at = [&](int of, int tile) {
    const int group = min(tile * kGroupsPerBlock + slot, job.num_groups[of] - 1);
    return job.rows + (job.first_group[of] + group) * TileOf::kGroupSize + 16 / kThreads * lane;
  };

  // Rooms of this rank's memory follow each other.
  const auto* const rooms = reinterpret_cast<const uint8_t*>(RoomOf(v, me, me == 0 ? 1 : 0, epoch));
  Turn sending;
  Turn signalling;
  Turn receiving;
  int stage = 0;       // of this round's tiles
  int past_stage = 0;  // of what was encoded kLag rounds ago
  for (int round = 0; round < rounds + kLag; ++round) {
    const int to = peer_of(sending.turn);
    const int sent_block = to_owners ? to : me;
    const int sent_tile = tile_at(sending.index);
    const bool sends = round < rounds && has_tile(sent_block, sent_tile);
    if (sends) {
#pragma unroll 1
      for (int i = 0; i < kRoundTiles; ++i) {
        if (!has_tile(sent_block, sent_tile + i * blocks)) break;
        const GroupCode<kSteps, kThreads> coded = EncodeGroup<kBits, kSteps, kThreads>(
            tables, lane, values_at(sent_block, sent_tile + i * blocks), job.norm, true);
        auto* const bytes = reinterpret_cast<uint8_t*>(stages[stage][i]);
        StoreCodes<kBits, kSteps, true, kThreads>(lane, coded.words, true,
                                                  bytes + slot * TileOf::kGroupBytes);
        if (lane == 0) bytes[TileOf::kCodeBytes + slot] = coded.scale;
      }
    }
    // Of what this block receives: what was pushed kLag rounds ago, once all turns have been.
    const bool receives = round >= kLag && receiving.turn == turns - 1;
    const int tile = tile_at(receiving.index);
    bool heard = true;
    const int from = thread - 32 * TileOf::kPollingWarp;
    if (receives && from >= 0 && from < v.size && from != me &&
        has_tile(to_owners ? me : from, tile)) {
      const uint64_t* const signal = SignalOf(v, me, from, blockIdx.x);
      const uint64_t wanted = (epoch << 16) + static_cast<uint64_t>(receiving.index + 1);
      heard = WaitFor(v, from, [&] { return ReadSignal(signal) >= wanted; });
    }
    if (__syncthreads_and(heard) == 0) break;

    // What was pushed up to the round before.
    if (round > 0 && round <= rounds && thread < v.size && thread != me) {
      const int pushed = signalling.index;
      const bool due = to_owners
                           ? thread == peer_of(signalling.turn) && has_tile(thread, tile_at(pushed))
                           : pushed < own_rounds;
      if (due) {
        Signal(SignalOf(v, thread, me, blockIdx.x),
               (epoch << 16) + static_cast<uint64_t>(pushed + 1));
      }
    }
    if (sends) {
      for (int hop = 0; hop < (to_owners ? 1 : v.size - 1); ++hop) {
        const int peer = to + hop < v.size ? to + hop : to + hop - v.size;
        std::byte* const room = RoomOf(v, peer, me, epoch);
#pragma unroll 1
        for (int i = 0; i < kRoundTiles; ++i) {
          const int sent = sent_tile + i * blocks;
          const int filled = job.num_groups[sent_block] - sent * kGroupsPerBlock;
          auto* const at = reinterpret_cast<uint4*>(room + int64_t{sent} * TileOf::kBytes);
#pragma unroll
          for (int first = 0; first < TileOf::kVectors; first += TileOf::kBlock) {
            const int j = first + thread;
            if (j < TileOf::kVectors && TileOf::FirstGroupOf(j) < filled) {
              at[j] = stages[stage][i][j];
            }
          }
        }
      }
    }
#pragma unroll 1
    for (int i = 0; receives && i < kRoundTiles; ++i) {
      const int got = tile + i * blocks;
      // The codes of the tile as rank r has sent them.
      const auto add = [&](int r, Values<kSteps, kThreads>& u, bool is_first) {
        const uint8_t* bytes = reinterpret_cast<const uint8_t*>(stages[past_stage][i]);
        if (r != me) {
          bytes = rooms + (r - (r > me ? 1 : 0)) * v.room_bytes + int64_t{got} * TileOf::kBytes;
        }
        uint32_t codes[kWords<kSteps, kThreads>];
        LoadCodes<kBits, kSteps, true, kThreads>(lane, bytes + slot * TileOf::kGroupBytes, codes);
        const int scale = bytes[TileOf::kCodeBytes + slot];
        if (is_first) {
          AddLevels<kBits, true>(tables, scale, codes, u);
        } else {
          AddLevels<kBits>(tables, scale, codes, u);
        }
      };
      for (int r = shares ? 0 : me; r < (shares ? v.size : me + 1); ++r) {
        if (!has_tile(r, got)) continue;
        Values<kSteps, kThreads> u = {};
        if constexpr (shares) {
          add(r, u, true);
        } else {
          const int first = to_owners && me == 0 ? 1 : 0;
          for (int part = first; part < v.size; ++part) {
            if (part != me || !to_owners) add(part, u, part == first);
          }
        }
        Rotate(lane, u);
        if (got * kGroupsPerBlock + slot < job.num_groups[r]) {
          StoreValues(u, job.norm, to_owners, true, values_at(r, got));
        }
      }
    }
    sending.Next(turns);
    stage = stage + 1 < kStages ? stage + 1 : 0;
    if (round > 0) signalling.Next(turns);
    if (round >= kLag) {
      receiving.Next(turns);
      past_stage = past_stage + 1 < kStages ? past_stage + 1 : 0;
    }
  }
  MeetWithoutMessages<kExchange>(job, epoch);
  EndEpoch(v, epoch);
}

void LaunchSignalledExchange(const PeerMemory& peers, PeerExchange exchange, const RowCodec& codec,
                             TensorView rows, absl::Span<const int64_t> offsets, Stream& stream) {
  const cudaStream_t native = CudaStream(stream);
  DispatchExchange(
      exchange, codec, rows, [&]<PeerExchange kExchange, int kBits, int kSteps, typename T>() {
        using TileOf = Tile<kBits, kSteps>;
        const int64_t fit = peers.room_bytes() / TileOf::kBytes * kGroupsPerBlock;
        const int64_t most_blocks =
            std::min<int64_t>(kResident<kSteps> * peers.num_multiprocessors(), kMostPeerBlocks);
        LaunchInPieces<T>(peers, exchange, rows, TileOf::kGroupSize, offsets, fit,
                          [&](const ExchangeJob<T>& job, int64_t groups) {
                            const int64_t tiles = (groups + kGroupsPerBlock - 1) / kGroupsPerBlock;
                            Exchange<kExchange, kBits, kSteps, T>
                                <<<static_cast<unsigned>(std::min(tiles, most_blocks)),
                                   TileOf::kBlock, 0, native>>>(job);
                          });
      });
}

}  // namespace

bool PeersExchange(const RowCodec& codec, const ConstTensorView& rows) {
  return codec.kind == RowCodec::Kind::kCodes && IsFloat(rows.dtype()) && rows.contiguous() &&
         rows.device().kind == DeviceKind::kCuda && ExchangedGroupSize(codec.bits, rows.dim(1)) > 0;
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
  if (peers.through_host()) {
    LaunchMarkedExchange(peers, exchange, codec, rows, offsets, stream);
  } else {
    LaunchSignalledExchange(peers, exchange, codec, rows, offsets, stream);
  }
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
