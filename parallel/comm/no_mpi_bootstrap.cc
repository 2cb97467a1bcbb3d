#include "parallel/comm/mpi_bootstrap.h"

namespace thinwire {

absl::StatusOr<std::unique_ptr<Bootstrap>> JoinMpiJob() {
  return absl::UnimplementedError(
      "this build has no MPI: configure it with -DTHINWIRE_MPI=ON to run more than one rank");
}

}  // namespace thinwire
