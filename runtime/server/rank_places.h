// Where the ranks of a job are.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "parallel/comm/communicator.h"

namespace thinwire {

struct RankPlace {
  std::string host;
  int process_id = 0;
  std::string device;  // "cpu", "cuda:0"
};

// Collective: of all ranks, by rank. Names are cut after 100 bytes.
absl::StatusOr<std::vector<RankPlace>> GatherRankPlaces(absl::string_view device,
                                                        Communicator& world);

}  // namespace thinwire
