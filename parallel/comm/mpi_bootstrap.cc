#include "parallel/comm/mpi_bootstrap.h"

#include <mpi.h>

#include <cstdio>
#include <cstdlib>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/core/status_macros.h"
#include "parallel/comm/mpi_communicator.h"
#include "parallel/comm/mpi_job.h"

namespace thinwire {
namespace {

class MpiBootstrap final : public Bootstrap {
 public:
  explicit MpiBootstrap(std::unique_ptr<MpiJob> job)
      : job_(std::move(job)), all_(CreateMpiCommunicator(*job_)) {}

  int rank() const override { return job_->rank(); }
  int size() const override { return job_->size(); }
  int local_rank() const override { return job_->local_rank(); }
  int local_size() const override { return job_->local_size(); }
  std::string Description() const override { return absl::StrCat("mpi (", job_->library(), ")"); }

  absl::StatusOr<std::unique_ptr<Communicator>> CreateHostCommunicator() override {
    return all_->Split(0, rank());
  }

  void Abort(int exit_code) override {
    std::fflush(nullptr);
    MPI_Abort(MPI_COMM_WORLD, exit_code);
    std::_Exit(exit_code);
  }

 private:
  const std::unique_ptr<MpiJob> job_;
  const std::unique_ptr<Communicator> all_;  // never handed out, so that it stays usable
};

}  // namespace

absl::StatusOr<std::unique_ptr<Bootstrap>> JoinMpiJob() {
  TW_ASSIGN_OR_RETURN(std::unique_ptr<MpiJob> job, MpiJob::Join());
  return std::make_unique<MpiBootstrap>(std::move(job));
}

}  // namespace thinwire
