// Messages between two ranks of every Communicator, beside collectives.
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

TEST_P(CommunicatorConformanceTest, MessagesArriveInOrderForEachPair) {
  Run([](Communicator& comm, Stream& stream) {
    constexpr int kMessages = 50;
    const auto send_all = [&](int peer) {
      for (int i = 0; i < kMessages; ++i) {
        const Tensor tensor = Upload(Values<float>(comm.rank(), 1000 * peer + i, i * 40), stream);
        ASSERT_TRUE(IsOk(Outcome(comm.Send(tensor.view(), peer, stream), comm, stream)));
      }
    };
    const auto receive_all = [&](int peer) {
      for (int i = 0; i < kMessages; ++i) {
        Tensor tensor = Upload(std::vector<float>(i * 40), stream);
        ASSERT_TRUE(IsOk(comm.Recv(tensor.mutable_view(), peer, stream)));
        ASSERT_TRUE(SameBits(Download<float>(tensor, stream),
                             Values<float>(peer, 1000 * comm.rank() + i, i * 40)));
      }
    };
    if (SendsAreBuffered(comm)) {
      for (int peer = 0; peer < comm.size(); ++peer) {
        if (peer != comm.rank()) send_all(peer);
      }
      for (int peer = comm.size() - 1; peer >= 0; --peer) {
        if (peer != comm.rank()) receive_all(peer);
      }
      return;
    }
    // One pair after another, in the order that all ranks know.
    for (int low = 0; low < comm.size(); ++low) {
      for (int high = low + 1; high < comm.size(); ++high) {
        if (comm.rank() == low) {
          send_all(high);
          receive_all(high);
        } else if (comm.rank() == high) {
          receive_all(low);
          send_all(low);
        }
      }
    }
  });
}

TEST_P(CommunicatorConformanceTest, SendsDoNotWaitForTheReceiver) {
  Run([](Communicator& comm, Stream& stream) {
    if (comm.size() == 1 || !SendsAreBuffered(comm)) return;
    constexpr int kMessages = 10;
    constexpr int64_t kElements = 1 << 18;  // 1 MiB
    const int next = (comm.rank() + 1) % comm.size();
    const int previous = (comm.rank() + comm.size() - 1) % comm.size();
    for (int i = 0; i < kMessages; ++i) {
      // Each tensor dies before its message is received: the sender has to keep a copy.
      const Tensor tensor = Upload(std::vector<int32_t>(kElements, 100 * comm.rank() + i), stream);
      ASSERT_TRUE(IsOk(comm.Send(tensor.view(), next, stream)));
      ASSERT_TRUE(IsOk(comm.Send(tensor.view(), previous, stream)));
    }
    Tensor tensor = Upload(std::vector<int32_t>(kElements), stream);
    for (int i = 0; i < kMessages; ++i) {
      for (const int peer : {previous, next}) {
        ASSERT_TRUE(IsOk(comm.Recv(tensor.mutable_view(), peer, stream)));
        ASSERT_TRUE(SameBits(Download<int32_t>(tensor, stream),
                             std::vector<int32_t>(kElements, 100 * peer + i)));
      }
    }
  });
}

TEST_P(CommunicatorConformanceTest, MessagesOutliveTheSendersCommunicator) {
  Run([](Communicator& comm, Stream& stream) {
    if (!SendsAreBuffered(comm)) return;
    for (int peer = 1; comm.rank() == 0 && peer < comm.size(); ++peer) {
      const Tensor tensor = Upload(Values<float>(peer, 0, 300000), stream);
      ASSERT_TRUE(IsOk(comm.Send(tensor.view(), peer, stream)));
    }
    if (comm.rank() == 0) return;
    Tensor tensor = Upload(std::vector<float>(300000), stream);
    ASSERT_TRUE(IsOk(comm.Recv(tensor.mutable_view(), 0, stream)));
    EXPECT_TRUE(SameBits(Download<float>(tensor, stream), Values<float>(comm.rank(), 0, 300000)));
  });
}

TEST_P(CommunicatorConformanceTest, ReceivesDoNotTakeWhatCollectivesSent) {
  Run([](Communicator& comm, Stream& stream) {
    if (comm.size() == 1 || !SendsAreBuffered(comm)) return;
    Tensor message = Upload(Values<float>(comm.rank(), 0, 10), stream);
    if (comm.rank() == 0) {
      ASSERT_TRUE(IsOk(comm.Send(message.view(), 1, stream)));
    }
    Tensor reduced = Upload(Values<float>(comm.rank(), 0, 10), stream);
    ASSERT_TRUE(IsOk(comm.AllReduce(reduced.mutable_view(), ReduceOp::kSum, stream)));
    if (comm.rank() == 1) {
      ASSERT_TRUE(IsOk(comm.Recv(message.mutable_view(), 0, stream)));
    }
    EXPECT_TRUE(SameBits(Download<float>(reduced, stream),
                         Reduced<float>(ReduceOp::kSum, comm.size(), 0, 10)));
    if (comm.rank() == 1) {
      EXPECT_TRUE(SameBits(Download<float>(message, stream), Values<float>(0, 0, 10)));
    }
  });
}

TEST_P(CommunicatorConformanceTest, ExchangeDeliversADifferentNumberOfElementsToEveryRank) {
  Run([](Communicator& comm, Stream& stream) {
    const int p = comm.size();
    // Rank a sends b (a + 1) elements to b: nothing to rank 0.
    std::vector<Tensor> sent(p), received(p);
    std::vector<ConstTensorView> out(p);
    std::vector<TensorView> in(p);
    for (int r = 0; r < p; ++r) {
      const int64_t to = r * (comm.rank() + 1);
      const int64_t from = comm.rank() * (r + 1);
      if (to > 0) {
        sent[r] = Upload(Values<float>(comm.rank(), r, to), stream);
        out[r] = sent[r].view();
      }
      if (from > 0) {
        received[r] = Upload(std::vector<float>(from), stream);
        in[r] = received[r].mutable_view();
      }
    }
    const int64_t sent_before = comm.bytes_sent();
    ASSERT_TRUE(IsOk(comm.Exchange(out, in, stream)));
    int64_t expected_bytes = 0;
    for (int r = 0; r < p; ++r) {
      if (r == comm.rank()) continue;
      expected_bytes += 4 * r * (comm.rank() + 1);
      if (in[r].num_elements() == 0) continue;
      EXPECT_TRUE(SameBits(Download<float>(received[r], stream),
                           Values<float>(r, comm.rank(), comm.rank() * (r + 1))));
    }
    EXPECT_EQ(comm.bytes_sent() - sent_before, expected_bytes);
    EXPECT_EQ(comm.Exchange({}, {}, stream).code(), absl::StatusCode::kInvalidArgument);
    ASSERT_TRUE(IsOk(comm.Barrier(stream)));
  });
}

TEST_P(CommunicatorConformanceTest, SplitsOfSplitsDoNotMixMessages) {
  Run([](Communicator& comm, Stream& stream) {
    std::unique_ptr<Communicator> a = comm.Split(0, 0).value();
    std::unique_ptr<Communicator> b = a->Split(comm.rank() < 2 ? 0 : 1, 0).value();
    std::unique_ptr<Communicator> c = a->Split(0, 0).value();
    Communicator* const all[] = {&comm, a.get(), c.get()};
    // Sent first through `comm`, received last where messages are kept.
    for (int i = 0; i < 3; ++i) {
      const Tensor tensor = Upload(std::vector<int32_t>{i}, stream);
      if (comm.rank() == 0 && comm.size() > 1) {
        ASSERT_TRUE(IsOk(Outcome(all[i]->Send(tensor.view(), 1, stream), *all[i], stream)));
      }
    }
    for (int turn = 0; turn < 3; ++turn) {
      const int i = SendsAreBuffered(comm) ? 2 - turn : turn;
      Tensor tensor = Upload(std::vector<int32_t>{-1}, stream);
      if (comm.rank() != 1) continue;
      ASSERT_TRUE(IsOk(all[i]->Recv(tensor.mutable_view(), 0, stream)));
      EXPECT_EQ(Download<int32_t>(tensor, stream)[0], i);
    }
    EXPECT_TRUE(IsOk(b->Barrier(stream)));
  });
}

TEST_P(CommunicatorConformanceTest, MixedTrafficKeepsItsBits) {
  Run([](Communicator& comm, Stream& stream) {
    std::unique_ptr<Communicator> child = comm.Split(0, -comm.rank()).value();
    const int next = (comm.rank() + 1) % comm.size();
    const int previous = (comm.rank() + comm.size() - 1) % comm.size();
    for (int round = 0; round < 60; ++round) {
      const auto n = static_cast<int64_t>(Hash(round) % 9000);
      Tensor sum = Upload(Values<Half>(comm.rank(), round, n), stream);
      Tensor message = Upload(Values<float>(comm.rank(), round, n), stream);
      if (comm.size() > 1 && SendsAreBuffered(comm)) {
        ASSERT_TRUE(IsOk(comm.Send(message.view(), next, stream)));
      }
      ASSERT_TRUE(IsOk(comm.AllReduce(sum.mutable_view(), ReduceOp::kSum, stream)));
      ASSERT_TRUE(SameBits(Download<Half>(sum, stream),
                           Reduced<Half>(ReduceOp::kSum, comm.size(), round, n)));
      Tensor token = Upload(std::vector<int32_t>{comm.rank() + round}, stream);
      ASSERT_TRUE(IsOk(child->Broadcast(token.mutable_view(), round % comm.size(), stream)));
      ASSERT_EQ(Download<int32_t>(token, stream)[0], comm.size() - 1 - round % comm.size() + round);
      if (comm.size() == 1 || !SendsAreBuffered(comm)) continue;
      ASSERT_TRUE(IsOk(comm.Recv(message.mutable_view(), previous, stream)));
      ASSERT_TRUE(SameBits(Download<float>(message, stream), Values<float>(previous, round, n)));
    }
  });
}

}  // namespace thinwire::conformance
