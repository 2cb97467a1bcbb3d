// What the parts of the conformance suite share: ranks, values, and how to compare them. A
// backend's test defines RunOnRanks and CopyBytes.
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

}  // namespace thinwire::conformance
