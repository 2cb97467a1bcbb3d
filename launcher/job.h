// This process as a rank of the job: the launcher's side of parallel/comm.
#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "kernels/core/thread_pool.h"
#include "parallel/comm/bootstrap.h"
#include "parallel/comm/communicator.h"

namespace thinwire {

// Owns the membership in the job and the communicator of all ranks. Move-only.
class Job {
 public:
  static absl::StatusOr<Job> Join();

  int rank() const { return bootstrap_->rank(); }
  int size() const { return bootstrap_->size(); }
  bool leader() const { return rank() == 0; }
  Bootstrap& bootstrap() { return *bootstrap_; }
  Communicator& world() { return *world_; }

  // Threads for one rank: `requested`, or this rank's share of the processors that it may run on.
  int NumThreads(int requested) const;

  // Leaves the job in step with the other ranks. Where they cannot be met any more (a rank failed
  // alone, or hangs), ends all of them; ranks other than 0 give rank 0 a moment to say why before,
  // and say `why` themselves where it does not. Returns exit_code.
  int Leave(int exit_code, const absl::Status& why);

 private:
  Job() = default;

  std::unique_ptr<Bootstrap> bootstrap_;
  std::unique_ptr<Communicator> world_;
};

// The rank of this process as the launcher's environment variables tell it, before the job is
// joined.
int RankFromEnvironment();

}  // namespace thinwire
