#include "parallel/comm/mpi_communicator.h"

#include <cstdio>
#include <cstring>

#include "parallel/comm/communicator_conformance.h"
#include "parallel/comm/mpi_job.h"
#include "parallel/comm/rank_test_main.h"

namespace thinwire {
namespace {

// Small enough that the larger messages of the tests travel in pieces, large enough that pieces
// are.
constexpr int64_t kPieceBytes = 1000003;

Communicator* all_ranks = nullptr;  // set by main; tests split their communicators from it

}  // namespace

namespace conformance {

void RunOnRanks(int /*size*/, Body body) {
  std::unique_ptr<Communicator> comm = all_ranks->Split(0, 0).value();
  ThreadPool pool(1);
  Stream stream = Stream::Cpu(&pool);
  body(*comm, stream);
  if (testing::Test::HasFailure()) comm->Abort(absl::InternalError("a test failed"));
}

void CopyBytes(void* to, const void* from, int64_t bytes, Stream&) { std::memcpy(to, from, bytes); }

INSTANTIATE_TEST_SUITE_P(Mpi, CommunicatorConformanceTest, testing::Values(0));

}  // namespace conformance

namespace {

TEST(MpiCommunicatorTest, MessagesOfWholePiecesAreToldApart) {
  for (const int64_t sent : {kPieceBytes, 2 * kPieceBytes, 2 * kPieceBytes + 1}) {
    for (const int64_t expected : {kPieceBytes, 2 * kPieceBytes}) {
      conformance::RunOnRanks(0, [&](Communicator& comm, Stream& stream) {
        if (comm.rank() > 1 || comm.size() == 1) return;
        Tensor tensor =
            Tensor::Allocate(DType::kU8, {comm.rank() == 0 ? sent : expected}, Device::Cpu())
                .value();
        if (comm.rank() == 0) {
          std::memset(tensor.mutable_view().mutable_raw(), 7, sent);
          EXPECT_TRUE(comm.Send(tensor.view(), 1, stream).ok());
          return;
        }
        const absl::Status status = comm.Recv(tensor.mutable_view(), 0, stream);
        if (sent == expected) {
          ASSERT_TRUE(status.ok()) << status;
          EXPECT_EQ(tensor.view().data<uint8_t>()[expected - 1], 7);
        } else {
          EXPECT_EQ(status.code(), absl::StatusCode::kInternal) << status;
        }
      });
    }
  }
}

TEST(MpiCommunicatorTest, CommunicatorsOfSeveralThreadsDoNotDisturbEachOther) {
  conformance::RunOnRanks(0, [&](Communicator& comm, Stream&) {
    constexpr int kThreads = 3;
    std::vector<std::unique_ptr<Communicator>> splits;
    for (int t = 0; t < kThreads; ++t) splits.push_back(comm.Split(0, 0).value());
    std::vector<std::thread> threads;
    for (int t = 0; t < kThreads; ++t) {
      threads.emplace_back([&, t] {
        ThreadPool pool(1);
        Stream stream = Stream::Cpu(&pool);
        for (int i = 0; i < 50; ++i) {
          Tensor tensor = conformance::Upload(std::vector<int64_t>(100 + i, t), stream);
          ASSERT_TRUE(conformance::IsOk(
              splits[t]->AllReduce(tensor.mutable_view(), ReduceOp::kSum, stream)));
          ASSERT_EQ(tensor.view().data<int64_t>()[99], t * comm.size());
          ASSERT_TRUE(splits[t]->Split(0, 0).ok());
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
  });
}

int Main() {
  absl::StatusOr<std::unique_ptr<MpiJob>> job = MpiJob::Join();
  if (!job.ok()) {
    std::fprintf(stderr, "%s\n", job.status().ToString().c_str());
    return 1;
  }
  const std::unique_ptr<Communicator> all = CreateMpiCommunicator(**job, kPieceBytes);
  all->set_timeout(absl::Minutes(1));
  all_ranks = all.get();
  return RunAllTestsAsRank((*job)->rank(), (*job)->size());
}

}  // namespace
}  // namespace thinwire

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  return thinwire::Main();
}
