// Two ranks with a GPU each, under mpirun: what goes through peer memory has the bits of what goes
// through NCCL.
#include <random>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "kernels/convert/convert.h"
#include "kernels/core/copy.h"
#include "kernels/core/tensor.h"
#include "parallel/comm/bootstrap.h"
#include "parallel/comm/gpu_rank_test_main.h"
#include "parallel/comm/nccl_communicator.h"
#include "parallel/wire/captured_calls.h"
#include "parallel/wire/wire.h"

namespace thinwire {
namespace {

Bootstrap* job = nullptr;           // set by main
Communicator* all_ranks = nullptr;  // set by main; tests split their communicators from it

// Under a sanitizer NCCL alone takes half a minute to begin.
constexpr absl::Duration kTimeout = absl::Minutes(3);

std::unique_ptr<Communicator> MakeComm(bool uses_peer_memory, absl::Duration timeout) {
  std::unique_ptr<Communicator> control = all_ranks->Split(0, 0).value();
  control->set_timeout(timeout);
  return CreateNcclCommunicator(std::move(control), Device::Cuda(job->local_rank()),
                                {.uses_peer_memory = uses_peer_memory})
      .value();
}

class PeerCodesTest : public testing::Test {
 protected:
  PeerCodesTest() {
    const absl::StatusOr<PeerMemory*> peers = fast_->Peers();
    EXPECT_TRUE(peers.ok()) << peers.status();
    EXPECT_EQ(plain_->Peers().status().code(), absl::StatusCode::kFailedPrecondition);
  }

  int rank() const { return fast_->rank(); }

  // Rows of all kinds, others on each rank: normal with outliers, tiny, zero, huge, not finite.
  Tensor Rows(DType dtype, int64_t rows, int64_t width, uint32_t seed) {
    std::minstd_rand random(seed * 2 + static_cast<uint32_t>(rank()) + 1);
    std::normal_distribution<float> normal;
    std::vector<float> values(rows * width);
    for (int64_t i = 0; i < rows * width; ++i) {
      values[i] = normal(random) * (i % 61 == 0 ? 20.0f : 1.0f);
      const int64_t row = i / width;
      if (row % 32 == 17) values[i] = 0.0f;
      if (row % 32 == 18) values[i] *= 1e-30f;
      if (row % 32 == 19) values[i] *= 1e30f;
      if (row % 32 == 20 && i % 997 == 0) values[i] /= 0.0f;
    }
    Tensor here = Tensor::Allocate(dtype, {rows, width}, Device::Cpu()).value();
    Tensor there = Tensor::Allocate(dtype, {rows, width}, stream_.device()).value();
    Stream host = Stream::Cpu(&pool_);
    const ConstTensorView view(values.data(), DType::kF32, {rows, width});
    EXPECT_TRUE(Convert(view, here.mutable_view(), host).ok());
    EXPECT_TRUE(Copy(here.view(), there.mutable_view(), stream_).ok());
    EXPECT_TRUE(stream_.Synchronize().ok());
    return there;
  }

  Tensor CopyOf(const Tensor& from) {
    const ConstTensorView view = from.view();
    Tensor to =
        Tensor::Allocate(view.dtype(), {view.dim(0), view.dim(1)}, stream_.device()).value();
    EXPECT_TRUE(Copy(view, to.mutable_view(), stream_).ok());
    return to;
  }

  std::vector<uint8_t> BytesOf(ConstTensorView view) {
    std::vector<uint8_t> bytes(view.size_bytes());
    const int64_t n = view.size_bytes();
    EXPECT_TRUE(Copy(ConstTensorView(view.raw(), DType::kU8, {n}, view.device()),
                     TensorView(bytes.data(), DType::kU8, {n}), stream_)
                    .ok());
    EXPECT_TRUE(stream_.Synchronize().ok());
    return bytes;
  }

  // The same calls on both wires, compared bit by bit on the rows that this rank keeps.
  void ExpectSame(const WireOptions& options, DType dtype, int64_t rows, int64_t width,
                  uint32_t seed) {
    SCOPED_TRACE(absl::StrCat(WireStrategyName(options.strategy), " ", DTypeName(dtype), " ", rows,
                              " x ", width));
    Ledger ledgers[2];
    Tensor results[2];
    const Tensor x = Rows(dtype, rows, width, seed);
    for (int i = 0; i < 2; ++i) {
      Communicator* const comm = i == 0 ? plain_.get() : fast_.get();
      Wire wire(comm, comm, options, &ledgers[i]);
      results[i] = CopyOf(x);
      const TensorView y = results[i].mutable_view();
      const int repeats = 1 + static_cast<int>(seed % 2);  // both parities
      for (int k = 0; k < repeats; ++k) {
        ASSERT_TRUE(wire.Reduce(Site::kMlpOut, y, stream_).ok());
        if (wire.keeps_all_rows(rows)) continue;
        const Range own = wire.OwnRows(rows);
        if (k == 0 && own.size() > 0) sums_[i] = BytesOf(y.Rows(own.begin, own.size()));
        ASSERT_TRUE(wire.Share(Site::kMlpOut, Wire::ShareAs::kCodes, y, stream_).ok());
      }
      ASSERT_TRUE(comm->Wait(stream_).ok());
    }
    EXPECT_EQ(sums_[0], sums_[1]);
    EXPECT_TRUE(BytesOf(results[0].view()) == BytesOf(results[1].view()));
    EXPECT_EQ(ledgers[0].Total().payload_bytes, ledgers[1].Total().payload_bytes);
    EXPECT_EQ(ledgers[0].Total().logical_bytes, ledgers[1].Total().logical_bytes);
  }

  static WireOptions Options(WireStrategy::Kind kind, int bits) {
    WireOptions options;
    options.strategy = {kind, bits};
    options.norm_bits = bits;
    return options;
  }

  std::unique_ptr<Communicator> plain_ = MakeComm(false, kTimeout);
  std::unique_ptr<Communicator> fast_ = MakeComm(true, kTimeout);
  ThreadPool pool_{1};
  Stream stream_ = Stream::Cuda(Device::Cuda(job->local_rank()), &pool_).value();
  std::vector<uint8_t> sums_[2];
};

TEST_F(PeerCodesTest, HasTheBitsOfThePlainWay) {
  uint32_t seed = 0;
  for (const auto kind : {WireStrategy::Kind::kOneShot, WireStrategy::Kind::kTokenOwner}) {
    for (const int bits : {8, 6, 5, 4}) {
      for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
        for (const auto& [rows, width] : std::vector<std::pair<int64_t, int64_t>>{
                 {1, 64}, {1, 4096}, {3, 192}, {40, 8192}, {257, 1152}}) {
          ExpectSame(Options(kind, bits), dtype, rows, width, ++seed);
        }
      }
    }
  }
}

TEST_F(PeerCodesTest, MessagesLargerThanARoomGoInPieces) {
  // 4 MiB of bytes beyond the 32 MiB of a room of two ranks; three times the 12 MiB of a mailbox
  // through the host.
  ExpectSame(Options(WireStrategy::Kind::kOneShot, 8), DType::kF16, 4500, 8192, 1);
  ExpectSame(Options(WireStrategy::Kind::kTokenOwner, 8), DType::kF16, 9000, 8192, 2);
}

TEST_F(PeerCodesTest, RandomShapesAgreeAThousandTimes) {
  std::minstd_rand random(7);  // the same on both ranks
  constexpr WireStrategy::Kind kKinds[] = {
      WireStrategy::Kind::kTokenOwner, WireStrategy::Kind::kOneShot, WireStrategy::Kind::kOneShot,
      WireStrategy::Kind::kNative};
  for (int turn = 0; turn < 1000; ++turn) {
    const auto kind = kKinds[random() % 4];
    const int64_t rows = 1 + static_cast<int64_t>(random() % (turn % 50 == 0 ? 700 : 9));
    const int64_t width = 64 * (1 + static_cast<int64_t>(random() % 80));
    ExpectSame(Options(kind, turn % 2 == 0 ? 5 : 8), DType::kF16, rows, width, random() % 1000);
    if (HasFailure()) return;
  }
}

TEST_F(PeerCodesTest, PlainSumsHaveTheBitsOfNccl) {
  WireOptions options;
  for (const DType dtype : {DType::kF16, DType::kBF16, DType::kF32}) {
    for (const int64_t rows : {1, 2, 31, 1000, 5000}) {
      for (const int64_t width : {1, 7, 1024, 1031}) {
        ExpectSame(options, dtype, rows, width, static_cast<uint32_t>(rows + width));
      }
    }
  }
}

TEST_F(PeerCodesTest, GraphsAreReplayed) {
  for (const auto kind : {WireStrategy::Kind::kNative, WireStrategy::Kind::kOneShot,
                          WireStrategy::Kind::kTokenOwner}) {
    Ledger ledger;
    Wire wire(fast_.get(), fast_.get(), Options(kind, 5), &ledger);
    const Tensor x = Rows(DType::kF16, 16, 4096, 3);
    Tensor y = CopyOf(x);
    const auto call = [&]() -> absl::Status {
      TW_RETURN_IF_ERROR(Copy(x.view(), y.mutable_view(), stream_));
      for (int i = 0; i < 3; ++i) {
        TW_RETURN_IF_ERROR(wire.Reduce(Site::kMlpOut, y.mutable_view(), stream_));
        if (wire.keeps_all_rows(16)) continue;
        TW_RETURN_IF_ERROR(
            wire.Share(Site::kMlpOut, Wire::ShareAs::kCodes, y.mutable_view(), stream_));
      }
      return absl::OkStatus();
    };
    ASSERT_TRUE(call().ok());
    const std::vector<uint8_t> want = BytesOf(y.view());
    absl::StatusOr<CapturedCalls> graph = CapturedCalls::Capture(call, stream_);
    ASSERT_TRUE(graph.ok()) << graph.status();
    for (int turn = 0; turn < 101; ++turn) {
      ASSERT_TRUE(graph->Run(*fast_, stream_).ok());
      if (turn % 10 == 0) {
        ASSERT_TRUE(BytesOf(y.view()) == want) << "replay " << turn;
      }
    }
  }
}

TEST_F(PeerCodesTest, AnAbsentRankEndsTheWait) {
  const std::unique_ptr<Communicator> comm = MakeComm(true, kTimeout);
  ASSERT_TRUE(comm->Peers().ok());
  Tensor x = Rows(DType::kF16, 4, 4096, 1);
  if (rank() == 0) {
    comm->set_timeout(absl::Seconds(1));
    Ledger ledger;
    Wire wire(comm.get(), comm.get(), Options(WireStrategy::Kind::kOneShot, 5), &ledger);
    ASSERT_TRUE(wire.Reduce(Site::kMlpOut, x.mutable_view(), stream_).ok());
    EXPECT_EQ(comm->Wait(stream_).code(), absl::StatusCode::kDeadlineExceeded);
    EXPECT_TRUE(stream_.Synchronize().ok());
  } else {
    EXPECT_EQ(comm->Barrier(stream_).code(), absl::StatusCode::kUnavailable);
  }
}

}  // namespace
}  // namespace thinwire

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  return thinwire::RunAllTestsOnGpus(thinwire::kTimeout, &thinwire::job, &thinwire::all_ranks);
}
