// The MPI part of JoinJob: mpi_bootstrap.cc, or no_mpi_bootstrap.cc in a build without MPI.
#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "parallel/comm/bootstrap.h"

namespace thinwire {

absl::StatusOr<std::unique_ptr<Bootstrap>> JoinMpiJob();

}  // namespace thinwire
