#include "parallel/comm/local_communicator.h"

#include <cstring>
#include <thread>

#include "parallel/comm/communicator_conformance.h"

namespace thinwire {
namespace conformance {

void RunOnRanks(int size, Body body) {
  std::vector<std::unique_ptr<Communicator>> communicators = CreateLocalCommunicators(size);
  std::vector<std::thread> threads;
  for (int rank = 0; rank < size; ++rank) {
    threads.emplace_back([&body, comm = std::move(communicators[rank])]() mutable {
      comm->set_timeout(absl::Minutes(1));
      ThreadPool pool(1);
      Stream stream = Stream::Cpu(&pool);
      body(*comm, stream);
      comm.reset();  // what other ranks still wait for will not come
    });
  }
  for (std::thread& thread : threads) thread.join();
}

void CopyBytes(void* to, const void* from, int64_t bytes, Stream&) { std::memcpy(to, from, bytes); }

INSTANTIATE_TEST_SUITE_P(Threads, CommunicatorConformanceTest, testing::Values(1, 2, 3, 4, 7),
                         testing::PrintToStringParamName());

}  // namespace conformance

namespace {

TEST(LocalCommunicatorTest, APeerThatLeavesEndsTheWaitAtOnce) {
  std::vector<std::unique_ptr<Communicator>> communicators = CreateLocalCommunicators(2);
  ThreadPool pool(1);
  Stream stream = Stream::Cpu(&pool);
  communicators[1].reset();
  const absl::Status status = communicators[0]->Barrier(stream);
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(status.message()), testing::HasSubstr("rank 1 left"));
}

TEST(LocalCommunicatorTest, ATimeoutNamesTheMissingRank) {
  std::vector<std::unique_ptr<Communicator>> communicators = CreateLocalCommunicators(3);
  ThreadPool pool(1);
  Stream stream = Stream::Cpu(&pool);
  communicators[2]->set_timeout(absl::Milliseconds(1));
  float value = 0;
  const TensorView view(&value, DType::kF32, {1});
  const absl::Status status = communicators[2]->Recv(view, 1, stream);
  EXPECT_EQ(status.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_THAT(std::string(status.message()), testing::HasSubstr("from rank 1"));
  const absl::Status seen = communicators[0]->Recv(view, 1, stream);
  EXPECT_EQ(seen.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(seen.message()), testing::HasSubstr("rank 2 failed"));
}

TEST(LocalCommunicatorTest, ASplitMadeAfterTheFailureIsFailedToo) {
  std::vector<std::unique_ptr<Communicator>> communicators = CreateLocalCommunicators(1);
  communicators[0]->Abort(absl::InternalError("over"));
  EXPECT_EQ(communicators[0]->Split(0, 0).status().code(), absl::StatusCode::kUnavailable);
}

}  // namespace
}  // namespace thinwire
