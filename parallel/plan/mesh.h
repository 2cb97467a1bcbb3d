// The grid of ranks: pipeline stages of tensor-parallel groups.
#pragma once

#include "absl/status/statusor.h"

namespace thinwire {

// rank = pp_rank * tp_size + tp_rank: the ranks of a tensor-parallel group, which talk most, are
// neighbours, so that launchers place them on one host.
struct Mesh {
  int tp_size = 1;
  int pp_size = 1;

  // InvalidArgument unless tp, pp >= 1 and tp * pp == world_size; the message says which ranks to
  // start.
  static absl::StatusOr<Mesh> Create(int tp_size, int pp_size, int world_size);

  int world_size() const { return tp_size * pp_size; }
  int tp_rank(int rank) const { return rank % tp_size; }
  int pp_rank(int rank) const { return rank / tp_size; }
  int RankOf(int pp_rank, int tp_rank) const { return pp_rank * tp_size + tp_rank; }
};

}  // namespace thinwire
