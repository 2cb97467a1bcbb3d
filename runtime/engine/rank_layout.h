// How the ranks of a job are dealt out: one mesh, or a mesh that computes prompts and, behind its
// ranks, one that decodes.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "parallel/plan/mesh.h"

namespace thinwire {

class RankLayout {
 public:
  static RankLayout OneMesh(const Mesh& mesh) { return RankLayout({mesh}); }

  // Both groups have `pp_size` stages; the ranks of a stage are tensor-parallel. InvalidArgument,
  // naming flags and numbers, unless both have ranks that pp_size divides and their sum is
  // world_size.
  static absl::StatusOr<RankLayout> PrefillAndDecode(int prefill_ranks, int decode_ranks,
                                                     int pp_size, int world_size);

  int num_groups() const { return static_cast<int>(meshes_.size()); }
  bool split() const { return num_groups() > 1; }
  const Mesh& mesh(int group) const { return meshes_[group]; }
  int world_size() const { return FirstRank(num_groups()); }

  // The job's rank of rank 0 of a group.
  int FirstRank(int group) const;
  int GroupOf(int rank) const;
  int RankInGroup(int rank) const { return rank - FirstRank(GroupOf(rank)); }

  // "tp 2 x pp 1"; "prefill tp 2 x pp 1, decode tp 1 x pp 1".
  std::string Description() const;

 private:
  explicit RankLayout(std::vector<Mesh> meshes) : meshes_(std::move(meshes)) {}

  std::vector<Mesh> meshes_;
};

// Of a split job: "prefill", "decode".
absl::string_view GroupName(int group);

}  // namespace thinwire
