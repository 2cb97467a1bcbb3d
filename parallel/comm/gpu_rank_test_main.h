// The main of tests whose ranks have a GPU each, under mpirun.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <memory>

#include "absl/time/time.h"
#include "gtest/gtest.h"
#include "kernels/core/device.h"
#include "parallel/comm/bootstrap.h"
#include "parallel/comm/communicator.h"
#include "parallel/comm/rank_test_main.h"

namespace thinwire {

// Joins the job, sets *job and *all, its ranks' hosts' communicator, whose waits take no longer
// than `timeout`, runs all tests and returns main's result: 77, skipped, where ranks of a host
// outnumber its GPUs, but where NCCL_HOSTID tells that they share them. InitGoogleTest comes first.
inline int RunAllTestsOnGpus(absl::Duration timeout, Bootstrap** job, Communicator** all) {
  const absl::StatusOr<std::unique_ptr<Bootstrap>> joined = JoinJob();
  if (!joined.ok()) {
    std::fprintf(stderr, "%s\n", joined.status().ToString().c_str());
    return 1;
  }
  *job = joined->get();
  const int gpus = NumCudaDevices();
  if (gpus == 0 || (gpus < (*job)->local_size() && std::getenv("NCCL_HOSTID") == nullptr)) {
    if ((*job)->rank() == 0) {
      std::printf("skipped: %d GPUs for %d ranks\n", gpus, (*job)->local_size());
    }
    return 77;
  }
  const std::unique_ptr<Communicator> hosts = (*job)->CreateHostCommunicator().value();
  hosts->set_timeout(timeout);
  *all = hosts.get();
  return RunAllTestsAsRank((*job)->rank(), (*job)->size());
}

}  // namespace thinwire
