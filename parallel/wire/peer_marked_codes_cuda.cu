// Groups travel in units of 8, which a warp encodes, posts and decodes by itself: codes one after
// another, then scale bytes, 12 bytes at a time with a mark of 4 behind them. Each 16 bytes are
// moved at once (they are one scalar in PTX's memory model), so that whoever finds the mark of the
// running kernel has the bytes before it: nobody waits for a fence, which takes 8 to 30 us over a
// link that is busy, nor for a signal before the values.
#include <algorithm>

#include "kernels/core/cuda_status.h"
#include "parallel/wire/peer_codes.cuh"

namespace thinwire {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kUnitGroups = 32 / kLanes;
constexpr int kLag = 1;  // rounds between what a warp posts and what it waits for

template <int kBits, int kSteps>
struct Unit {
  static constexpr int kGroupSize = 16 * kSteps;
  static constexpr int kGroupBytes = 2 * kBits * kSteps;
  static constexpr int kCodeBytes = kUnitGroups * kGroupBytes;
  static constexpr int kVectors = (kCodeBytes + kUnitGroups + 11) / 12;
  static constexpr int kWords = 3 * kVectors;
  static constexpr int kBytes = 16 * kVectors;  // of a mailbox
  static constexpr int kEach = (kVectors + 31) / 32;
  static_assert(kGroupBytes % 4 == 0);
};

struct Marked {
  uint32_t words[3];
  uint32_t mark;
};

__device__ __forceinline__ void PostMarked(const Marked& marked, std::byte* to) {
  const uint64_t low = marked.words[0] | static_cast<uint64_t>(marked.words[1]) << 32;
  const uint64_t high = marked.words[2] | static_cast<uint64_t>(marked.mark) << 32;
  asm volatile(
      "{\n.reg .b128 whole;\nmov.b128 whole, {%1, %2};\n"
      "st.relaxed.sys.global.b128 [%0], whole;\n}" ::"l"(to),
      "l"(low), "l"(high)
      : "memory");
}

__device__ __forceinline__ Marked FetchMarked(const std::byte* from) {
  uint64_t low, high;
  asm volatile(
      "{\n.reg .b128 whole;\nld.relaxed.sys.global.b128 whole, [%2];\n"
      "mov.b128 {%0, %1}, whole;\n}"
      : "=l"(low), "=l"(high)
      : "l"(from)
      : "memory");
  return {
      {static_cast<uint32_t>(low), static_cast<uint32_t>(low >> 32), static_cast<uint32_t>(high)},
      static_cast<uint32_t>(high >> 32)};
}

template <PeerExchange kExchange, int kBits, int kSteps, typename T>
__global__ void __launch_bounds__(kThreads)
    ExchangeMarked(const __grid_constant__ ExchangeJob<T> job) {
  using UnitOf = Unit<kBits, kSteps>;
  __shared__ LaneTables tables;
  __shared__ uint32_t coded_units[kWarps][kLag + 1][UnitOf::kWords];
  __shared__ uint32_t fetched_units[kWarps][UnitOf::kWords];
  FillLaneTables<kBits>(tables);
  const PeerView& v = job.peers;
  const uint64_t epoch = CurrentEpoch(v);
  // Never 0, which fresh memory holds. What a place has held before was marked by an earlier epoch,
  // of which 2^32 - 1 would have to pass for its mark to come back.
  const auto mark = static_cast<uint32_t>(epoch % 0xffffffffu + 1);
  const int me = v.rank;
  const int thread = static_cast<int>(threadIdx.x) % 32;
  const int warp_of_block = static_cast<int>(threadIdx.x) / 32;
  const int lane = thread % kLanes;
  const int slot = thread / kLanes;  // of a unit's groups
  const int warp = static_cast<int>(blockIdx.x) * kWarps + warp_of_block;
  const int warps = static_cast<int>(gridDim.x) * kWarps;
  constexpr bool to_owners = kExchange == PeerExchange::kSumToOwners;
  constexpr bool shares = kExchange == PeerExchange::kShare;
  const auto unit_at = [&](int round) { return round * warps + warp; };
  const auto has_unit = [&](int of, int unit) { return unit * kUnitGroups < job.num_groups[of]; };
  int most_groups = 0;
  for (int r = 0; r < v.size; ++r) most_groups = max(most_groups, job.num_groups[r]);
  const int units = (most_groups + kUnitGroups - 1) / kUnitGroups;
  const int rounds = units > warp ? (units - warp + warps - 1) / warps : 0;
  // This thread's values of a unit's group, its last again where there are fewer.
  const auto values_at = [&](int of, int unit) {
    const int group = min(unit * kUnitGroups + slot, job.num_groups[of] - 1);
    return job.rows + (job.first_group[of] + group) * UnitOf::kGroupSize + 16 / kLanes * lane;
  };
  const auto encode = [&](int of, int unit, uint32_t* to) {
    const GroupCode<kSteps> coded =
        EncodeGroup<kBits, kSteps>(tables, lane, values_at(of, unit), job.norm, true);
    auto* const bytes = reinterpret_cast<uint8_t*>(to);
    __syncwarp();  // all have read what was there
    StoreCodes<kBits, kSteps, true>(lane, coded.words, true, bytes + slot * UnitOf::kGroupBytes);
    if (lane == 0) bytes[UnitOf::kCodeBytes + slot] = coded.scale;
    __syncwarp();
  };
  const auto post = [&](int to, int unit, const uint32_t* from) {
    std::byte* const box = MailboxOf(v, to, me, epoch) + int64_t{unit} * UnitOf::kBytes;
#pragma unroll
    for (int j = thread; j < UnitOf::kVectors; j += 32) {
      PostMarked({{from[3 * j], from[3 * j + 1], from[3 * j + 2]}, mark}, box + 16 * j);
    }
  };
  // Whether rank r has posted it.
  const auto fetch = [&](int r, int unit, uint32_t* to) {
    const std::byte* const box = MailboxOf(v, me, r, epoch) + int64_t{unit} * UnitOf::kBytes;
    Marked marked[UnitOf::kEach] = {};
    const bool heard = WaitFor(v, r, [&] {
      bool all = true;
#pragma unroll
      for (int e = 0; e < UnitOf::kEach; ++e) {
        const int j = 32 * e + thread;
        if (j < UnitOf::kVectors) marked[e] = FetchMarked(box + 16 * j);
      }
#pragma unroll
      for (int e = 0; e < UnitOf::kEach; ++e) {
        all = all && (32 * e + thread >= UnitOf::kVectors || marked[e].mark == mark);
      }
      return all;
    });
    __syncwarp();  // all have read what was there
#pragma unroll
    for (int e = 0; e < UnitOf::kEach; ++e) {
      const int j = 32 * e + thread;
      if (j >= UnitOf::kVectors) break;
#pragma unroll
      for (int w = 0; w < 3; ++w) to[3 * j + w] = marked[e].words[w];
    }
    __syncwarp();
    return __all_sync(0xffffffffu, heard) != 0;
  };

  bool heard = true;
  for (int round = 0; round < rounds + kLag && heard; ++round) {
    const int sent = unit_at(round);
    if (round < rounds) {
      uint32_t* const coded = coded_units[warp_of_block][round % (kLag + 1)];
      if (!to_owners && has_unit(me, sent)) encode(me, sent, coded);
      for (int hop = 1; hop < v.size; ++hop) {
        const int to = me + hop < v.size ? me + hop : me + hop - v.size;
        if (!has_unit(to_owners ? to : me, sent)) continue;
        if (to_owners) encode(to, sent, coded);
        post(to, sent, coded);
      }
    }
    if (round < kLag) continue;
    const int got = unit_at(round - kLag);
    // The codes of the unit as rank r has sent them.
    const auto add = [&](int r, Values<kSteps>& u, bool is_first) {
      const uint32_t* words = coded_units[warp_of_block][(round - kLag) % (kLag + 1)];
      if (r != me) {
        heard = heard && fetch(r, got, fetched_units[warp_of_block]);
        words = fetched_units[warp_of_block];
      }
      const auto* const bytes = reinterpret_cast<const uint8_t*>(words);
      uint32_t codes[kWords<kSteps>];
      LoadCodes<kBits, kSteps, true>(lane, bytes + slot * UnitOf::kGroupBytes, codes);
      const int scale = bytes[UnitOf::kCodeBytes + slot];
      if (is_first) {
        AddLevels<kBits, true>(tables, scale, codes, u);
      } else {
        AddLevels<kBits>(tables, scale, codes, u);
      }
    };
    for (int r = shares ? 0 : me; r < (shares ? v.size : me + 1); ++r) {
      if (!has_unit(r, got)) continue;
      Values<kSteps> u = {};
      if constexpr (shares) {
        add(r, u, true);
      } else {
        const int first = to_owners && me == 0 ? 1 : 0;
        for (int part = first; part < v.size; ++part) {
          if (part != me || !to_owners) add(part, u, part == first);
        }
      }
      Rotate(lane, u);
      if (got * kUnitGroups + slot < job.num_groups[r]) {
        StoreValues(u, job.norm, to_owners, true, values_at(r, got));
      }
    }
  }
  MeetWithoutMessages<kExchange>(job, epoch);
  EndEpoch(v, epoch);
}

}  // namespace

void LaunchMarkedExchange(const PeerMemory& peers, PeerExchange exchange, const RowCodec& codec,
                          TensorView rows, absl::Span<const int64_t> offsets, Stream& stream) {
  const cudaStream_t native = CudaStream(stream);
  // More have more on its way than the link carries in both directions at once.
  const int64_t most_blocks = std::min<int64_t>(peers.num_multiprocessors(), kMostPeerBlocks);
  DispatchExchange(
      exchange, codec, rows, [&]<PeerExchange kExchange, int kBits, int kSteps, typename T>() {
        using UnitOf = Unit<kBits, kSteps>;
        const int64_t fit = peers.mailbox_bytes() / UnitOf::kBytes * kUnitGroups;
        LaunchInPieces<T>(peers, exchange, rows, UnitOf::kGroupSize, offsets, fit,
                          [&](const ExchangeJob<T>& job, int64_t groups) {
                            constexpr int64_t kBlockGroups = kWarps * kUnitGroups;
                            const int64_t blocks =
                                std::min((groups + kBlockGroups - 1) / kBlockGroups, most_blocks);
                            ExchangeMarked<kExchange, kBits, kSteps, T>
                                <<<static_cast<unsigned>(blocks), kThreads, 0, native>>>(job);
                          });
      });
}

}  // namespace thinwire
