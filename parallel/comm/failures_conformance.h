// What every Communicator does when a rank fails, is missing, or calls with wrong arguments.
// A part of communicator_conformance.h, which backends' tests include.
#pragma once

#include <cstdint>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "parallel/comm/conformance_testing.h"

namespace thinwire::conformance {

TEST_P(CommunicatorConformanceTest, AMessageOfAnotherSizeIsAnInternalError) {
  for (const int64_t expected : {3, 5, 300000}) {
    for (const int64_t sent : {4, 200000}) {
      Run([&](Communicator& comm, Stream& stream) {
        if (comm.size() == 1) return;
        Tensor tensor = Upload(std::vector<float>(comm.rank() == 0 ? sent : expected), stream);
        if (comm.rank() == 0) {
          const absl::Status sent_status = comm.Send(tensor.view(), 1, stream);
          // Where messages are not kept, the receiver may have failed before Send returns.
          if (SendsAreBuffered(comm)) {
            EXPECT_TRUE(IsOk(sent_status));
          }
        } else if (comm.rank() == 1) {
          EXPECT_EQ(comm.Recv(tensor.mutable_view(), 0, stream).code(),
                    absl::StatusCode::kInternal);
        }
        // The others learn of it.
        if (comm.rank() != 1) {
          EXPECT_EQ(comm.Barrier(stream).code(), absl::StatusCode::kUnavailable);
        }
        ExpectFailedForGood(comm, stream);
      });
    }
  }
}

TEST_P(CommunicatorConformanceTest, BarrierWaitsForEveryRank) {
  Run([](Communicator& comm, Stream& stream) {
    ASSERT_TRUE(IsOk(comm.Barrier(stream)));
    ASSERT_TRUE(IsOk(comm.Barrier(stream)));
    if (comm.size() == 1) return;
    if (comm.rank() == comm.size() - 1) {
      // Away from the barrier until the others give up, which ends this wait.
      Tensor never = Upload(std::vector<float>(1), stream);
      EXPECT_EQ(comm.Recv(never.mutable_view(), 0, stream).code(), absl::StatusCode::kUnavailable);
    } else {
      comm.set_timeout(absl::Milliseconds(100));
      EXPECT_TRUE(IsTimeoutOrUnavailable(comm.Barrier(stream)));
    }
    ExpectFailedForGood(comm, stream);
  });
}

TEST_P(CommunicatorConformanceTest, AnAbsentPeerEndsTheWaitForGood) {
  for (const int64_t n : {10, 500000}) {
    Run([&](Communicator& comm, Stream& stream) {
      if (comm.size() == 1) return;
      Tensor tensor = Upload(std::vector<float>(n), stream);
      if (comm.rank() == 0) {
        EXPECT_EQ(comm.Recv(tensor.mutable_view(), 1, stream).code(),
                  absl::StatusCode::kUnavailable);
      } else {
        comm.set_timeout(absl::Milliseconds(100));
        const absl::Status status =
            Outcome(comm.AllReduce(tensor.mutable_view(), ReduceOp::kSum, stream), comm, stream);
        EXPECT_TRUE(IsTimeoutOrUnavailable(status)) << status;
      }
      ExpectFailedForGood(comm, stream);
    });
  }
}

TEST_P(CommunicatorConformanceTest, AbortReachesWaitingAndLaterCallsOfAllRanks) {
  Run([](Communicator& comm, Stream& stream) {
    Tensor tensor = Upload(std::vector<float>(10), stream);
    if (comm.rank() == 0) {
      comm.Abort(absl::ResourceExhaustedError("the dog ate the weights"));
      comm.Abort(absl::InternalError("a later cause"));
    } else {
      const absl::Status status = comm.Recv(tensor.mutable_view(), 0, stream);
      EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
      EXPECT_THAT(std::string(status.message()), testing::HasSubstr("the dog ate the weights"));
      EXPECT_THAT(std::string(status.message()), testing::HasSubstr("rank 0"));
    }
    EXPECT_EQ(comm.Barrier(stream).code(), absl::StatusCode::kUnavailable);
    EXPECT_THAT(std::string(comm.Barrier(stream).message()), testing::HasSubstr("the dog ate"));
    ExpectFailedForGood(comm, stream);
  });
}

TEST_P(CommunicatorConformanceTest, AbortFromAnotherThreadEndsTheCallOfThisRank) {
  Run([](Communicator& comm, Stream& stream) {
    if (comm.size() == 1) return;
    std::thread watchdog;
    if (comm.rank() == 0) {
      watchdog = std::thread([&] { comm.Abort(absl::CancelledError("watchdog")); });
    }
    // Rank 1 sends nothing, so rank 0 waits for it in vain; the others wait for rank 0.
    Tensor tensor = Upload(std::vector<float>(10), stream);
    const absl::Status status = comm.Recv(tensor.mutable_view(), comm.rank() == 0 ? 1 : 0, stream);
    EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
    EXPECT_THAT(std::string(status.message()), testing::HasSubstr("watchdog"));
    if (watchdog.joinable()) watchdog.join();
  });
}

TEST_P(CommunicatorConformanceTest, AbortEndsTheSplitsOfACommunicatorToo) {
  Run([](Communicator& comm, Stream& stream) {
    std::unique_ptr<Communicator> child = comm.Split(0, -comm.rank()).value();
    std::unique_ptr<Communicator> grandchild = child->Split(0, 0).value();
    // Not before all others have left Split, which an abort would end, too.
    Tensor left = Upload(std::vector<float>(1), stream);
    if (comm.rank() != 0) {
      EXPECT_TRUE(IsOk(comm.Send(left.view(), 0, stream)));
    } else {
      for (int r = 1; r < comm.size(); ++r) {
        EXPECT_TRUE(IsOk(comm.Recv(left.mutable_view(), r, stream)));
      }
      comm.Abort(absl::InternalError("all of it"));
    }
    absl::Status status;
    if (comm.size() == 1) {
      status = grandchild->Barrier(stream);
    } else {  // nobody sends
      Tensor tensor = Upload(std::vector<float>(10), stream);
      status = grandchild->Recv(tensor.mutable_view(), grandchild->rank() == 0 ? 1 : 0, stream);
    }
    EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
    EXPECT_THAT(std::string(status.message()), testing::HasSubstr("all of it"));
    ExpectFailedForGood(*grandchild, stream);
    ExpectFailedForGood(*child, stream);
    ExpectFailedForGood(comm, stream);
  });
}

TEST_P(CommunicatorConformanceTest, AbortOfASplitLeavesTheOriginalUsable) {
  Run([](Communicator& comm, Stream& stream) {
    std::unique_ptr<Communicator> child = comm.Split(0, 0).value();
    std::unique_ptr<Communicator> sibling = comm.Split(0, 0).value();
    if (comm.rank() == comm.size() - 1) child->Abort(absl::InternalError("only this"));
    EXPECT_EQ(child->Barrier(stream).code(), absl::StatusCode::kUnavailable);
    EXPECT_TRUE(IsOk(comm.Barrier(stream)));
    EXPECT_TRUE(IsOk(sibling->Barrier(stream)));
  });
}

TEST_P(CommunicatorConformanceTest, WrongArgumentsAreRefusedAndHarmless) {
  Run([](Communicator& comm, Stream& stream) {
    Tensor tensor = Upload(std::vector<float>(12), stream);
    Tensor bytes = Upload(std::vector<uint8_t>(12), stream);
    const TensorView view = tensor.mutable_view();
    const TensorView matrix(view.mutable_raw(), DType::kF32, {3, 4}, view.device());
    constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
    EXPECT_EQ(comm.AllReduce(matrix.Columns(0, 2), ReduceOp::kSum, stream).code(), kInvalid);
    EXPECT_EQ(comm.AllReduce(bytes.mutable_view(), ReduceOp::kSum, stream).code(), kInvalid);
    EXPECT_EQ(comm.AllGather(view, view.Rows(0, 11), stream).code(), kInvalid);
    EXPECT_EQ(comm.ReduceScatter(view, view.Rows(0, 5), ReduceOp::kSum, stream).code(), kInvalid);
    EXPECT_EQ(comm.Broadcast(view, comm.size(), stream).code(), kInvalid);
    EXPECT_EQ(comm.Send(view, comm.rank(), stream).code(), kInvalid);
    EXPECT_EQ(comm.Recv(view, -1, stream).code(), kInvalid);
    EXPECT_TRUE(IsOk(comm.Barrier(stream)));
  });
}

}  // namespace thinwire::conformance
