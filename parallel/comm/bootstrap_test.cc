// Runs alone and under mpirun: the environment decides what JoinJob joins.
#include "parallel/comm/bootstrap.h"

#include <cstdio>
#include <cstdlib>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/core/stream.h"
#include "parallel/comm/rank_test_main.h"

namespace thinwire {
namespace {

Bootstrap* job = nullptr;  // set by main

int ExpectedSize() {
  const char* size = std::getenv("OMPI_COMM_WORLD_SIZE");
  return size != nullptr ? std::atoi(size) : 1;
}

TEST(BootstrapTest, KnowsItsPlaceInTheJob) {
  EXPECT_EQ(job->size(), ExpectedSize());
  EXPECT_EQ(job->local_size(), ExpectedSize());
  EXPECT_EQ(job->local_rank(), job->rank());
  EXPECT_THAT(job->Description(),
              testing::AnyOf("single process", testing::MatchesRegex("mpi \\(.+ [0-9].*\\)")));
}

TEST(BootstrapTest, CommunicatorsConnectAllRanks) {
  ThreadPool pool(1);
  Stream stream = Stream::Cpu(&pool);
  for (int i = 0; i < 2; ++i) {
    std::unique_ptr<Communicator> comm = job->CreateHostCommunicator().value();
    EXPECT_EQ(comm->rank(), job->rank());
    EXPECT_EQ(comm->size(), job->size());
    int32_t count = 1;
    const TensorView view(&count, DType::kI32, {1});
    ASSERT_TRUE(comm->AllReduce(view, ReduceOp::kSum, stream).ok());
    EXPECT_EQ(count, job->size());
  }
}

TEST(BootstrapTest, AFailedCommunicatorDoesNotSpoilTheNext) {
  ThreadPool pool(1);
  Stream stream = Stream::Cpu(&pool);
  std::unique_ptr<Communicator> failed = job->CreateHostCommunicator().value();
  if (failed->rank() == 0) failed->Abort(absl::InternalError("on purpose"));
  EXPECT_EQ(failed->Barrier(stream).code(), absl::StatusCode::kUnavailable);
  std::unique_ptr<Communicator> next = job->CreateHostCommunicator().value();
  EXPECT_TRUE(next->Barrier(stream).ok());
}

TEST(BootstrapTest, AProcessJoinsMpiOnce) {
  if (job->Description() == "single process") return;
  EXPECT_EQ(JoinJob().status().code(), absl::StatusCode::kFailedPrecondition);
}

int Main() {
  absl::StatusOr<std::unique_ptr<Bootstrap>> joined = JoinJob();
  if (!joined.ok()) {
    std::fprintf(stderr, "%s\n", joined.status().ToString().c_str());
    return 1;
  }
  job = joined->get();
  return RunAllTestsAsRank(job->rank(), job->size());
}

}  // namespace
}  // namespace thinwire

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  return thinwire::Main();
}
