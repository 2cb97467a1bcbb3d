#include "launcher/job.h"

#include <sched.h>

#include <algorithm>
#include <cstdlib>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "kernels/core/status_macros.h"
#include "kernels/core/stream.h"
#include "launcher/log.h"

namespace thinwire {
namespace {

constexpr absl::Duration kLeaveTimeout = absl::Seconds(30);
constexpr absl::Duration kGrace = absl::Seconds(2);
// Between one rank and the next, so that one of them says why.
constexpr absl::Duration kTurn = absl::Milliseconds(300);

}  // namespace

absl::StatusOr<Job> Job::Join() {
  Job job;
  TW_ASSIGN_OR_RETURN(job.bootstrap_, JoinJob());
  TW_ASSIGN_OR_RETURN(job.world_, job.bootstrap_->CreateHostCommunicator());
  return job;
}

int Job::NumThreads(int requested) const {
  if (requested > 0) return requested;
  const int num_processors = std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
  int share = std::max(1, num_processors / bootstrap_->local_size());
  // mpirun may have bound the rank to fewer.
  cpu_set_t allowed;
  if (sched_getaffinity(0, sizeof(allowed), &allowed) == 0) {
    share = std::min(share, std::max(1, CPU_COUNT(&allowed)));
  }
  return share;
}

int Job::Leave(int exit_code, const absl::Status& why) {
  if (size() > 1) {
    ThreadPool pool(1);
    Stream stream = Stream::Cpu(&pool);
    world_->set_timeout(kLeaveTimeout);
    const absl::Status met = world_->Barrier(stream);
    if (!met.ok()) {
      if (!leader()) {
        absl::SleepFor(kGrace + std::min(rank(), 8) * kTurn);
        PrintError(absl::StrCat("rank ", rank(), ": ", (why.ok() ? met : why).message()));
      } else if (why.ok()) {
        PrintError(met.message());
      }
      bootstrap_->Abort(exit_code == 0 ? 1 : exit_code);
    }
  }
  world_.reset();
  bootstrap_.reset();
  return exit_code;
}

int RankFromEnvironment() {
  for (const char* name : {"OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK", "SLURM_PROCID"}) {
    const char* value = std::getenv(name);
    if (value != nullptr) return std::atoi(value);
  }
  return 0;
}

}  // namespace thinwire
