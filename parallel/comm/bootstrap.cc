#include "parallel/comm/bootstrap.h"

#include <cstdio>
#include <cstdlib>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/core/status_macros.h"
#include "parallel/comm/local_communicator.h"
#include "parallel/comm/mpi_bootstrap.h"

namespace thinwire {
namespace {

class SingleProcess final : public Bootstrap {
 public:
  int rank() const override { return 0; }
  int size() const override { return 1; }
  int local_rank() const override { return 0; }
  int local_size() const override { return 1; }
  std::string Description() const override { return "single process"; }

  absl::StatusOr<std::unique_ptr<Communicator>> CreateHostCommunicator() override {
    return std::move(CreateLocalCommunicators(1)[0]);
  }

  void Abort(int exit_code) override {
    std::fflush(nullptr);
    std::_Exit(exit_code);
  }
};

}  // namespace

absl::StatusOr<std::unique_ptr<Bootstrap>> JoinJob() {
  // Set by Open MPI's mpirun; by PMIx servers (srun --mpi=pmix); by MPICH's mpirun and srun
  // --mpi=pmi2.
  for (const char* variable : {"OMPI_COMM_WORLD_SIZE", "PMIX_RANK", "PMI_RANK"}) {
    const char* value = std::getenv(variable);
    if (value == nullptr) continue;
    absl::StatusOr<std::unique_ptr<Bootstrap>> job = JoinMpiJob();
    if (job.ok()) return job;
    return Annotate(job.status(),
                    absl::StrCat("this process is a rank of a job (", variable, "=", value, ")"));
  }
  return std::make_unique<SingleProcess>();
}

}  // namespace thinwire
