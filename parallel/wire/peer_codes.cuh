// What the kernels of peer_codes.h share.
#pragma once

#include <algorithm>
#include <cmath>
#include <type_traits>

#include "absl/types/span.h"
#include "kernels/core/tensor_view.h"
#include "kernels/group_codes/group_lanes.cuh"
#include "parallel/comm/peer_memory.cuh"
#include "parallel/wire/peer_codes.h"

namespace thinwire {
namespace {

// Of a kernel. Group i of rank r's block of rows is group first_group[r] + i of `rows`.
template <typename T>
struct ExchangeJob {
  PeerView peers;
  T* rows;
  int64_t first_group[kMostPeerRanks];
  int32_t num_groups[kMostPeerRanks];
  float norm;
};

inline int64_t ExchangedGroupSize(int bits, int64_t width) {
  return width % 128 == 0 && bits == 8 ? 128 : width % 64 == 0 ? 64 : 0;
}

// Calls launch.operator()<exchange, bits, size of a group / 16, type of the rows>().
template <typename Launch>
void DispatchExchange(PeerExchange exchange, const RowCodec& codec, const ConstTensorView& rows,
                      const Launch& launch) {
  WithFloatType(rows.dtype(), [&](auto zero) {
    using T = decltype(zero);
    WithBits(codec.bits, [&](auto bits) {
      constexpr int kBits = decltype(bits)::value;
      const auto with_size = [&](auto steps) {
        constexpr int kSteps = decltype(steps)::value;
        switch (exchange) {
          case PeerExchange::kSumAll:
            return launch.template operator()<PeerExchange::kSumAll, kBits, kSteps, T>();
          case PeerExchange::kSumToOwners:
            return launch.template operator()<PeerExchange::kSumToOwners, kBits, kSteps, T>();
          case PeerExchange::kShare:
            return launch.template operator()<PeerExchange::kShare, kBits, kSteps, T>();
        }
      };
      if constexpr (kBits == 8) {
        if (ExchangedGroupSize(kBits, rows.dim(1)) == 128) {
          return with_size(std::integral_constant<int, 8>());
        }
      }
      with_size(std::integral_constant<int, 4>());
    });
  });
}

// Calls launch(job, groups of its largest block of rows) for kernels that have at most `most`
// groups of every block of rows.
template <typename T, typename Launch>
void LaunchInPieces(const PeerMemory& peers, PeerExchange exchange, TensorView rows,
                    int64_t group_size, absl::Span<const int64_t> offsets, int64_t most,
                    const Launch& launch) {
  const int64_t groups_per_row = rows.dim(1) / group_size;
  const bool sums_all = exchange == PeerExchange::kSumAll;
  ExchangeJob<T> job = {};
  job.peers = peers.view();
  job.rows = rows.mutable_data<T>();
  job.norm = static_cast<float>(1.0 / std::sqrt(static_cast<double>(group_size)));
  const auto begin_of = [&](int r) { return sums_all ? 0 : offsets[r] * groups_per_row; };
  const auto end_of = [&](int r) {
    return (sums_all ? rows.dim(0) : offsets[r + 1]) * groups_per_row;
  };
  int64_t largest = 0;
  for (int r = 0; r < peers.size(); ++r) largest = std::max(largest, end_of(r) - begin_of(r));
  for (int64_t begin = 0; begin < largest; begin += most) {
    const int64_t count = std::min(most, largest - begin);
    for (int r = 0; r < peers.size(); ++r) {
      job.first_group[r] = begin_of(r) + begin;
      job.num_groups[r] =
          static_cast<int32_t>(std::clamp<int64_t>(end_of(r) - job.first_group[r], 0, count));
    }
    launch(job, count);
  }
}

// Every kernel waits for all ranks (peer_memory.h), also where it has nothing for some or nothing
// of them. Block 0 has a part of what there is.
template <PeerExchange kExchange, typename T>
__device__ __forceinline__ void MeetWithoutMessages(const ExchangeJob<T>& job, uint64_t epoch) {
  const PeerView& v = job.peers;
  const int thread = static_cast<int>(threadIdx.x);
  constexpr bool to_owners = kExchange == PeerExchange::kSumToOwners;
  if (blockIdx.x != 0 || thread >= v.size || thread == v.rank) return;
  const uint64_t any = (epoch << 16) + 1;
  if (job.num_groups[to_owners ? thread : v.rank] == 0) {
    Signal(SignalOf(v, thread, v.rank, 0), any);
  }
  if (job.num_groups[to_owners ? v.rank : thread] == 0) {
    const uint64_t* const signal = SignalOf(v, v.rank, thread, 0);
    (void)WaitFor(v, thread, [&] { return ReadSignal(signal) >= any; });
  }
}

}  // namespace
}  // namespace thinwire
