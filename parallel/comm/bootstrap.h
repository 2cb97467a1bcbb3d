// How ranks find each other: one process per rank under mpirun or srun, or one process alone.
#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "parallel/comm/communicator.h"

namespace thinwire {

// Owns the process's membership in the job (MPI_Init to MPI_Finalize). One per process; must
// outlive its communicators.
class Bootstrap {
 public:
  virtual ~Bootstrap() = default;

  virtual int rank() const = 0;        // in the job
  virtual int size() const = 0;        // ranks of the job
  virtual int local_rank() const = 0;  // among the ranks of this host
  virtual int local_size() const = 0;  // ranks on this host

  // "mpi (Open MPI 4.1.4)", "single process".
  virtual std::string Description() const = 0;

  // A communicator of all ranks for host memory. Collective.
  virtual absl::StatusOr<std::unique_ptr<Communicator>> CreateHostCommunicator() = 0;

  // Ends every rank of the job at once with `exit_code`: the last resort when ranks can no longer
  // agree.
  [[noreturn]] virtual void Abort(int exit_code) = 0;
};

// Joins the job that the environment describes. Started by mpirun or srun (OMPI_COMM_WORLD_SIZE,
// PMIX_RANK, PMI_RANK are looked at), that is MPI: Unimplemented when this build has no MPI.
// Otherwise a single process, without touching MPI.
absl::StatusOr<std::unique_ptr<Bootstrap>> JoinJob();

}  // namespace thinwire
