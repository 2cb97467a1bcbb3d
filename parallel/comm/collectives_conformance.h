// Collectives and splits of every Communicator.
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

TEST_P(CommunicatorConformanceTest, AllReduceSumsInRankOrderAndRoundsOnce) {
  AllReduce<float>(ReduceOp::kSum, Counts());
  AllReduce<Half>(ReduceOp::kSum, Counts());
  AllReduce<BFloat16>(ReduceOp::kSum, Counts());
  AllReduce<int32_t>(ReduceOp::kSum, Counts());
  AllReduce<int64_t>(ReduceOp::kSum, Counts());
}

TEST_P(CommunicatorConformanceTest, AllReduceTakesTheMaximum) {
  AllReduce<float>(ReduceOp::kMax, Counts());
  AllReduce<Half>(ReduceOp::kMax, Counts());
  AllReduce<BFloat16>(ReduceOp::kMax, Counts());
  AllReduce<int32_t>(ReduceOp::kMax, Counts());
  AllReduce<int64_t>(ReduceOp::kMax, Counts());
}

TEST_P(CommunicatorConformanceTest, AllReduceOfMegabytes) {
  AllReduce<float>(ReduceOp::kSum, {(1 << 20) + 7});
  AllReduce<Half>(ReduceOp::kSum, {(1 << 20) + 7});
}

TEST_P(CommunicatorConformanceTest, ReduceScatterReducesThisRanksPart) {
  ReduceScatter<float>(ReduceOp::kSum);
  ReduceScatter<Half>(ReduceOp::kSum);
  ReduceScatter<BFloat16>(ReduceOp::kMax);
  ReduceScatter<int32_t>(ReduceOp::kSum);
  ReduceScatter<int64_t>(ReduceOp::kMax);
}

TEST_P(CommunicatorConformanceTest, AllGatherFillsInAndOutOfPlace) {
  AllGather<float>();
  AllGather<Half>();
  AllGather<uint8_t>();
  AllGather<int64_t>();
}

TEST_P(CommunicatorConformanceTest, BroadcastReachesEveryRankFromEveryRoot) {
  Run([](Communicator& comm, Stream& stream) {
    for (int root = 0; root < comm.size(); ++root) {
      for (const int64_t n : Counts()) {
        Tensor tensor = Upload(Values<int8_t>(comm.rank(), 0, n), stream);
        ASSERT_TRUE(IsOk(comm.Broadcast(tensor.mutable_view(), root, stream)));
        ASSERT_TRUE(SameBits(Download<int8_t>(tensor, stream), Values<int8_t>(root, 0, n)));
      }
    }
  });
}

TEST_P(CommunicatorConformanceTest, SplitByParityGroupsEveryOtherRank) {
  Run([](Communicator& comm, Stream& stream) {
    std::unique_ptr<Communicator> half = comm.Split(comm.rank() % 2, comm.rank()).value();
    EXPECT_EQ(half->rank(), comm.rank() / 2);
    EXPECT_EQ(half->size(), (comm.size() + 1 - comm.rank() % 2) / 2);
    EXPECT_EQ(half->timeout(), comm.timeout());
    int64_t expected = 0;
    for (int r = comm.rank() % 2; r < comm.size(); r += 2) expected += 1 << r;
    Tensor tensor = Upload(std::vector<int64_t>(3, 1 << comm.rank()), stream);
    ASSERT_TRUE(IsOk(half->AllReduce(tensor.mutable_view(), ReduceOp::kSum, stream)));
    EXPECT_EQ(Download<int64_t>(tensor, stream), std::vector<int64_t>(3, expected));
    ASSERT_TRUE(IsOk(comm.Barrier(stream)));
  });
}

TEST_P(CommunicatorConformanceTest, SplitOrdersByKeyAndThenByRank) {
  Run([](Communicator& comm, Stream& stream) {
    std::unique_ptr<Communicator> reversed = comm.Split(5, -comm.rank()).value();
    EXPECT_EQ(reversed->rank(), comm.size() - 1 - comm.rank());
    std::unique_ptr<Communicator> same = comm.Split(0, 7).value();
    EXPECT_EQ(same->rank(), comm.rank());

    const Tensor in = Upload(std::vector<int32_t>{comm.rank()}, stream);
    Tensor out = Upload(std::vector<int32_t>(comm.size()), stream);
    ASSERT_TRUE(IsOk(reversed->AllGather(in.view(), out.mutable_view(), stream)));
    const std::vector<int32_t> ranks = Download<int32_t>(out, stream);
    for (int r = 0; r < comm.size(); ++r) EXPECT_EQ(ranks[r], comm.size() - 1 - r);
  });
}

TEST_P(CommunicatorConformanceTest, ANegativeColorTakesPartAndGetsNothing) {
  Run([](Communicator& comm, Stream& stream) {
    std::unique_ptr<Communicator> others = comm.Split(comm.rank() == 0 ? -1 : 1, 0).value();
    EXPECT_EQ(others == nullptr, comm.rank() == 0);
    if (others != nullptr) {
      EXPECT_EQ(others->size(), comm.size() - 1);
      EXPECT_TRUE(IsOk(others->Barrier(stream)));
    }
  });
}

TEST_P(CommunicatorConformanceTest, BytesSentFollowTheWireCost) {
  Run([](Communicator& comm, Stream& stream) {
    const int p = comm.size();
    int64_t before = comm.bytes_sent();
    const auto sent = [&] { return comm.bytes_sent() - std::exchange(before, comm.bytes_sent()); };
    for (const int64_t n : Counts()) {
      Tensor one = Upload(std::vector<float>(n), stream);
      Tensor all = Upload(std::vector<float>(p * n), stream);
      ASSERT_TRUE(IsOk(comm.AllReduce(one.mutable_view(), ReduceOp::kSum, stream)));
      const int64_t reduced = sent();
      if (comm.Supports(Device::Cpu())) {
        EXPECT_EQ(reduced, HostAllReduceBytesSent(DType::kF32, n, comm.rank(), p));
      }
      if (n % p == 0) {
        EXPECT_THAT(reduced, testing::AnyOf(2 * (p - 1) * (n / p) * 4, (p - 1) * n * 4));
      }
      ASSERT_TRUE(IsOk(comm.AllGather(one.view(), all.mutable_view(), stream)));
      EXPECT_EQ(sent(), (p - 1) * n * 4);
      ASSERT_TRUE(IsOk(comm.ReduceScatter(all.view(), one.mutable_view(), ReduceOp::kSum, stream)));
      EXPECT_EQ(sent(), (p - 1) * n * 4);
      ASSERT_TRUE(IsOk(comm.Broadcast(one.mutable_view(), 0, stream)));
      EXPECT_EQ(sent(), comm.rank() == 0 ? (p - 1) * n * 4 : 0);
      ASSERT_TRUE(IsOk(comm.Barrier(stream)));
      EXPECT_EQ(sent(), 0);
      if (p == 1) continue;
      if (comm.rank() == 0) {
        ASSERT_TRUE(IsOk(comm.Send(one.view(), 1, stream)));
      }
      if (comm.rank() == 1) {
        ASSERT_TRUE(IsOk(comm.Recv(one.mutable_view(), 0, stream)));
      }
      EXPECT_EQ(sent(), comm.rank() == 0 ? n * 4 : 0);
    }
  });
}

}  // namespace thinwire::conformance
