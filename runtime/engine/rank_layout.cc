#include "runtime/engine/rank_layout.h"

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "kernels/core/check.h"

namespace thinwire {

absl::string_view GroupName(int group) { return group == 0 ? "prefill" : "decode"; }

absl::StatusOr<RankLayout> RankLayout::PrefillAndDecode(int prefill_ranks, int decode_ranks,
                                                        int pp_size, int world_size) {
  const std::string flags =
      absl::StrCat("--prefill-ranks ", prefill_ranks, " --decode-ranks ", decode_ranks);
  if (prefill_ranks < 1 || decode_ranks < 1 || pp_size < 1) {
    return absl::InvalidArgumentError(
        absl::StrCat(flags, " --pp ", pp_size, ": expected numbers of at least 1"));
  }
  if (int64_t{prefill_ranks} + decode_ranks != world_size) {
    const int64_t wanted = int64_t{prefill_ranks} + decode_ranks;
    return absl::InvalidArgumentError(absl::StrCat(flags, " needs ", wanted, " ranks, found ",
                                                   world_size, "; start it with: mpirun -np ",
                                                   wanted, " thinwire ..."));
  }
  if (prefill_ranks % pp_size != 0 || decode_ranks % pp_size != 0) {
    return absl::InvalidArgumentError(absl::StrCat(
        flags, " --pp ", pp_size,
        ": both groups have so many stages; expected numbers of ranks that ", pp_size, " divides"));
  }
  return RankLayout(
      {Mesh{prefill_ranks / pp_size, pp_size}, Mesh{decode_ranks / pp_size, pp_size}});
}

int RankLayout::FirstRank(int group) const {
  int first = 0;
  for (int g = 0; g < group; ++g) first += meshes_[g].world_size();
  return first;
}

int RankLayout::GroupOf(int rank) const {
  TW_CHECK(rank >= 0 && rank < world_size());
  int group = 0;
  while (rank >= FirstRank(group + 1)) ++group;
  return group;
}

std::string RankLayout::Description() const {
  std::string text;
  for (int group = 0; group < num_groups(); ++group) {
    absl::StrAppend(&text, group == 0 ? "" : ", ", split() ? GroupName(group) : "",
                    split() ? " tp " : "tp ", mesh(group).tp_size, " x pp ", mesh(group).pp_size);
  }
  return text;
}

}  // namespace thinwire
