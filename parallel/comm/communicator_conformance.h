// What every Communicator does, written once as value-parameterised tests. A backend's test
// includes this header, defines the functions below, and instantiates CommunicatorConformanceTest
// over group sizes.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/core/float16.h"
#include "kernels/core/stream.h"
#include "kernels/core/tensor.h"
#include "parallel/comm/communicator.h"
#include "parallel/comm/host_communicator.h"

namespace thinwire::conformance {

using Body = absl::FunctionRef<void(Communicator& comm, Stream& stream)>;

// Runs `body` once on each rank of a fresh communicator with `size` ranks and a timeout of one
// minute, and destroys the communicator. Backends whose ranks are processes ignore `size` and take
// their whole job.
void RunOnRanks(int size, Body body);

// Copies between any two of host memory and the memory of `stream`, and waits.
void CopyBytes(void* to, const void* from, int64_t bytes, Stream& stream);

template <typename T>
Tensor Upload(const std::vector<T>& values, Stream& stream) {
  const auto count = static_cast<int64_t>(values.size());
  Tensor tensor = Tensor::Allocate(DTypeOf<T>(), {count}, stream.device()).value();
  if (count > 0) {
    CopyBytes(tensor.mutable_view().mutable_raw(), values.data(), count * sizeof(T), stream);
  }
  return tensor;
}

template <typename T>
std::vector<T> Download(const Tensor& tensor, Stream& stream) {
  std::vector<T> values(tensor.view().num_elements());
  if (!values.empty()) {
    CopyBytes(values.data(), tensor.view().raw(), tensor.size_bytes(), stream);
  }
  return values;
}

inline uint64_t Hash(uint64_t x) {  // a bijection that mixes all bits
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

// Element i of rank r's input: magnitudes from 2^-8 to 2^8, so that sums depend on their order;
// integers of all sizes, so that sums wrap.
template <typename T>
T Value(int rank, int64_t i) {
  const uint64_t bits = Hash((static_cast<uint64_t>(rank) << 48) + i + 1);
  if constexpr (std::is_integral_v<T>) {
    return static_cast<T>(bits);
  } else {
    const uint32_t exponent = 119 + static_cast<uint32_t>(bits >> 32) % 17;
    const float value =
        std::bit_cast<float>((static_cast<uint32_t>(bits) & 0x807fffffu) | exponent << 23);
    if constexpr (std::is_same_v<T, Half>) return ToHalf(value);
    if constexpr (std::is_same_v<T, BFloat16>) return ToBFloat16(value);
    if constexpr (std::is_same_v<T, float>) return value;
  }
}

template <typename T>
std::vector<T> Values(int rank, int64_t begin, int64_t count) {
  std::vector<T> values(count);
  for (int64_t i = 0; i < count; ++i) values[i] = Value<T>(rank, begin + i);
  return values;
}

// Element i of the reduction over ranks [0, size): in rank order, in fp32, rounded once.
template <typename T>
T Reduced(ReduceOp op, int size, int64_t i) {
  if constexpr (std::is_integral_v<T>) {
    using Unsigned = std::make_unsigned_t<T>;
    T result = Value<T>(0, i);
    for (int r = 1; r < size; ++r) {
      const T value = Value<T>(r, i);
      result = op == ReduceOp::kMax
                   ? std::max(result, value)
                   : static_cast<T>(static_cast<Unsigned>(result) + static_cast<Unsigned>(value));
    }
    return result;
  } else {
    float result = ToFloat(Value<T>(0, i));
    for (int r = 1; r < size; ++r) {
      const float value = ToFloat(Value<T>(r, i));
      result = op == ReduceOp::kMax ? std::max(result, value) : result + value;
    }
    if constexpr (std::is_same_v<T, Half>) return ToHalf(result);
    if constexpr (std::is_same_v<T, BFloat16>) return ToBFloat16(result);
    if constexpr (std::is_same_v<T, float>) return result;
  }
}

template <typename T>
std::vector<T> Reduced(ReduceOp op, int size, int64_t begin, int64_t count) {
  std::vector<T> values(count);
  for (int64_t i = 0; i < count; ++i) values[i] = Reduced<T>(op, size, begin + i);
  return values;
}

template <typename T>
testing::AssertionResult SameBits(const std::vector<T>& actual, const std::vector<T>& expected) {
  if (actual.size() != expected.size()) {
    return testing::AssertionFailure() << actual.size() << " elements, not " << expected.size();
  }
  for (size_t i = 0; i < actual.size(); ++i) {
    if (std::memcmp(&actual[i], &expected[i], sizeof(T)) == 0) continue;
    const auto show = [](T value) {
      if constexpr (std::is_integral_v<T>)
        return absl::StrCat(value);
      else
        return absl::StrCat(ToFloat(value));
    };
    return testing::AssertionFailure() << "element " << i << " of " << actual.size() << " is "
                                       << show(actual[i]) << ", not " << show(expected[i]);
  }
  return testing::AssertionSuccess();
}

inline testing::AssertionResult IsOk(const absl::Status& status) {
  if (status.ok()) return testing::AssertionSuccess();
  return testing::AssertionFailure() << status.ToString();
}

// The communicator failed, as its header promises: now and for every later call.
inline void ExpectFailedForGood(Communicator& comm, Stream& stream) {
  Tensor tensor = Upload(std::vector<float>(4), stream);
  Tensor gathered = Upload(std::vector<float>(4 * comm.size()), stream);
  const absl::Status first = comm.Barrier(stream);
  EXPECT_FALSE(first.ok());
  EXPECT_EQ(comm.AllReduce(tensor.mutable_view(), ReduceOp::kSum, stream), first);
  EXPECT_EQ(comm.AllGather(tensor.view(), gathered.mutable_view(), stream), first);
  EXPECT_EQ(comm.Broadcast(tensor.mutable_view(), 0, stream), first);
  EXPECT_EQ(comm.Split(0, 0).status(), first);
  if (comm.size() > 1) {
    const int peer = (comm.rank() + 1) % comm.size();
    EXPECT_EQ(comm.Send(tensor.view(), peer, stream), first);
    EXPECT_EQ(comm.Recv(tensor.mutable_view(), peer, stream), first);
  }
}

// What became of a call: on a GPU it has only been enqueued when it returns.
inline absl::Status Outcome(const absl::Status& enqueued, Communicator& comm, Stream& stream) {
  return enqueued.ok() ? comm.Wait(stream) : enqueued;
}

// Whether Send keeps a copy and lets what follows go on: as communicator.h says, not on GPUs.
inline bool SendsAreBuffered(const Communicator& comm) { return comm.Supports(Device::Cpu()); }

inline bool IsTimeoutOrUnavailable(const absl::Status& status) {
  return status.code() == absl::StatusCode::kDeadlineExceeded ||
         status.code() == absl::StatusCode::kUnavailable;
}

// Primes, the sizes around a one-step all-reduce, nothing, and fewer elements than ranks.
inline const std::vector<int64_t>& Counts() {
  static const std::vector<int64_t> counts = {0,  1,    2,    3,    5,    7,    13,
                                              97, 1009, 4096, 4097, 8192, 8193, 20011};
  return counts;
}

class CommunicatorConformanceTest : public testing::TestWithParam<int> {
 protected:
  void Run(Body body) { RunOnRanks(GetParam(), body); }

  template <typename T>
  void AllReduce(ReduceOp op, const std::vector<int64_t>& counts) {
    Run([&](Communicator& comm, Stream& stream) {
      for (const int64_t n : counts) {
        Tensor tensor = Upload(Values<T>(comm.rank(), 0, n), stream);
        ASSERT_TRUE(IsOk(comm.AllReduce(tensor.mutable_view(), op, stream)));
        ASSERT_TRUE(SameBits(Download<T>(tensor, stream), Reduced<T>(op, comm.size(), 0, n)));
      }
    });
  }

  template <typename T>
  void ReduceScatter(ReduceOp op) {
    Run([&](Communicator& comm, Stream& stream) {
      for (const int64_t n : Counts()) {
        const Tensor in = Upload(Values<T>(comm.rank(), 0, comm.size() * n), stream);
        Tensor out = Upload(std::vector<T>(n), stream);
        ASSERT_TRUE(IsOk(comm.ReduceScatter(in.view(), out.mutable_view(), op, stream)));
        ASSERT_TRUE(
            SameBits(Download<T>(out, stream), Reduced<T>(op, comm.size(), comm.rank() * n, n)));
      }
    });
  }

  template <typename T>
  void AllGather() {
    Run([&](Communicator& comm, Stream& stream) {
      for (const int64_t n : Counts()) {
        std::vector<T> expected;
        for (int r = 0; r < comm.size(); ++r) {
          const std::vector<T> part = Values<T>(r, 0, n);
          expected.insert(expected.end(), part.begin(), part.end());
        }
        const Tensor in = Upload(Values<T>(comm.rank(), 0, n), stream);
        Tensor out = Upload(std::vector<T>(comm.size() * n), stream);
        ASSERT_TRUE(IsOk(comm.AllGather(in.view(), out.mutable_view(), stream)));
        ASSERT_TRUE(SameBits(Download<T>(out, stream), expected));

        std::vector<T> own(comm.size() * n);
        const std::vector<T> values = Values<T>(comm.rank(), 0, n);
        std::copy(values.begin(), values.end(), own.begin() + comm.rank() * n);
        Tensor inout = Upload(own, stream);
        const TensorView view = inout.mutable_view();
        ASSERT_TRUE(IsOk(comm.AllGather(view.Rows(comm.rank() * n, n), view, stream)));
        ASSERT_TRUE(SameBits(Download<T>(inout, stream), expected));
      }
    });
  }
};

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

TEST_P(CommunicatorConformanceTest, AMessageOfAnotherSizeIsAnInternalError) {
  for (const int64_t expected : {3, 5, 300000}) {
    for (const int64_t sent : {4, 200000}) {
      Run([&](Communicator& comm, Stream& stream) {
        if (comm.size() == 1) return;
        Tensor tensor = Upload(std::vector<float>(comm.rank() == 0 ? sent : expected), stream);
        if (comm.rank() == 0) {
          ASSERT_TRUE(IsOk(comm.Send(tensor.view(), 1, stream)));
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
    if (comm.rank() == 0) comm.Abort(absl::InternalError("all of it"));
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
