#include "parallel/plan/mesh.h"

#include "absl/strings/str_cat.h"

namespace thinwire {

absl::StatusOr<Mesh> Mesh::Create(int tp_size, int pp_size, int world_size) {
  if (tp_size < 1 || pp_size < 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("--tp ", tp_size, " --pp ", pp_size, ": expected sizes of at least 1"));
  }
  const int64_t wanted = static_cast<int64_t>(tp_size) * pp_size;
  if (wanted != world_size) {
    return absl::InvalidArgumentError(absl::StrCat(
        "--tp ", tp_size, " --pp ", pp_size, " needs ", wanted, wanted == 1 ? " rank" : " ranks",
        ", found ", world_size, "; start it with: mpirun -np ", wanted, " thinwire ..."));
  }
  return Mesh{tp_size, pp_size};
}

}  // namespace thinwire
