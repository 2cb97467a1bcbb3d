// Two ranks with a GPU each, under mpirun: a sum and a norm through peer memory in one kernel have
// the bits of the two.
#include <memory>
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

std::unique_ptr<Communicator> MakeComm(bool uses_peer_memory) {
  std::unique_ptr<Communicator> control = all_ranks->Split(0, 0).value();
  control->set_timeout(absl::Seconds(30));
  return CreateNcclCommunicator(std::move(control), Device::Cuda(job->local_rank()),
                                {.uses_peer_memory = uses_peer_memory})
      .value();
}

struct Case {
  NormKind kind = NormKind::kRmsNorm;
  DType dtype = DType::kF16;
  int64_t rows = 1;
  int64_t width = 64;
  bool weights = true;
  bool in_place = false;  // out is x
};

class PeerSumNormTest : public testing::Test {
 protected:
  // What a norm with a sum reads and writes, on the GPU.
  struct Rows {
    Tensor parts, x, out, weight, bias;
  };

  Tensor There(const std::vector<float>& values, DType dtype, int64_t rows, int64_t width) {
    Stream host = Stream::Cpu(&pool_);
    Tensor here = Tensor::Allocate(dtype, {rows, width}, Device::Cpu()).value();
    Tensor there = Tensor::Allocate(dtype, {rows, width}, stream_.device()).value();
    const ConstTensorView view(values.data(), DType::kF32, {rows, width});
    EXPECT_TRUE(Convert(view, here.mutable_view(), host).ok());
    EXPECT_TRUE(Copy(here.view(), there.mutable_view(), stream_).ok());
    EXPECT_TRUE(stream_.Synchronize().ok());
    return there;
  }

  std::vector<float> Normal(int64_t count, uint32_t seed) {
    std::minstd_rand random(seed + 1);
    std::normal_distribution<float> normal;
    std::vector<float> values(count);
    for (int64_t i = 0; i < count; ++i) values[i] = normal(random) * (i % 61 == 0 ? 20.0f : 1.0f);
    return values;
  }

  // Parts are others on each rank, all else is the same.
  Rows MakeRows(const Case& c, uint32_t seed) {
    const int64_t n = c.rows * c.width;
    Rows rows;
    rows.parts = There(Normal(n, 7 * seed + 1 + static_cast<uint32_t>(fast_->rank())), c.dtype,
                       c.rows, c.width);
    rows.x = There(Normal(n, 7 * seed + 3), c.dtype, c.rows, c.width);
    rows.out = There(std::vector<float>(n, -7.0f), c.dtype, c.rows, c.width);
    rows.weight = There(Normal(c.width, 7 * seed + 4), DType::kF32, 1, c.width);
    rows.bias = There(Normal(c.width, 7 * seed + 5), DType::kF32, 1, c.width);
    return rows;
  }

  absl::Status Run(Wire& wire, const Case& c, Rows& rows) {
    const auto channels = [&](const Tensor& tensor) {
      return ConstTensorView(tensor.view().raw(), DType::kF32, {c.width}, stream_.device());
    };
    NormArgs norm = {.kind = c.kind, .x = rows.x.mutable_view()};
    norm.out = c.in_place ? norm.x : rows.out.mutable_view();
    if (c.weights) norm.weight = channels(rows.weight);
    if (c.weights && c.kind == NormKind::kLayerNorm) norm.bias = channels(rows.bias);
    return wire.ReduceAndNorm(Site::kMlpOut, rows.parts.mutable_view(), norm, stream_);
  }

  std::vector<uint8_t> BytesOf(const Tensor& tensor) {
    const int64_t n = tensor.view().size_bytes();
    std::vector<uint8_t> bytes(n);
    EXPECT_TRUE(Copy(ConstTensorView(tensor.view().raw(), DType::kU8, {n}, stream_.device()),
                     TensorView(bytes.data(), DType::kU8, {n}), stream_)
                    .ok());
    EXPECT_TRUE(stream_.Synchronize().ok());
    return bytes;
  }

  void ExpectSame(const Case& c, uint32_t seed) {
    SCOPED_TRACE(absl::StrCat(DTypeName(c.dtype), " ", c.rows, " x ", c.width,
                              c.kind == NormKind::kRmsNorm ? " rms" : " layer",
                              c.in_place ? ", in place" : ""));
    Ledger ledgers[2];
    Rows rows[2];
    for (int i = 0; i < 2; ++i) {
      Communicator* const comm = i == 0 ? plain_.get() : fast_.get();
      Wire wire(comm, comm, WireOptions(), &ledgers[i]);
      rows[i] = MakeRows(c, seed);
      // Both parities, and a residual that goes on.
      for (uint32_t k = 0; k <= seed % 3; ++k) {
        const absl::Status status = Run(wire, c, rows[i]);
        ASSERT_TRUE(status.ok()) << status;
        rows[i].parts = MakeRows(c, seed + 100 * k).parts;
      }
      ASSERT_TRUE(comm->Wait(stream_).ok());
    }
    EXPECT_TRUE(BytesOf(rows[0].x) == BytesOf(rows[1].x)) << "residual";
    EXPECT_TRUE(BytesOf(rows[0].out) == BytesOf(rows[1].out)) << "norm";
    EXPECT_EQ(ledgers[0].Total().payload_bytes, ledgers[1].Total().payload_bytes);
    EXPECT_EQ(ledgers[0].Total().logical_bytes, ledgers[1].Total().logical_bytes);
    EXPECT_EQ(ledgers[0].Total().calls, ledgers[1].Total().calls);
  }

  std::unique_ptr<Communicator> plain_ = MakeComm(false);
  std::unique_ptr<Communicator> fast_ = MakeComm(true);
  ThreadPool pool_{1};
  Stream stream_ = Stream::Cuda(Device::Cuda(job->local_rank()), &pool_).value();
};

TEST_F(PeerSumNormTest, HasTheBitsOfTheSumAndTheNorm) {
  uint32_t seed = 0;
  for (const NormKind kind : {NormKind::kRmsNorm, NormKind::kLayerNorm}) {
    for (const DType dtype : {DType::kF16, DType::kBF16, DType::kF32}) {
      // Widths of one warp, of warps that no number of blocks divides, of 1 to 6 vectors a thread,
      // and ones that peer memory leaves to others.
      for (const int64_t width :
           {8, 64, 1152, 4096, 5120, 7168, 8192, 9216, 12288, 18432, 19456, 1031}) {
        for (const int64_t rows : {1, 2, 3, 16, 33, 132, 140}) {
          if (rows * width > 600000) continue;
          ExpectSame({kind, dtype, rows, width, seed % 4 != 0, seed % 5 == 0}, seed);
          if (HasFailure()) return;
          ++seed;
        }
      }
    }
  }
}

TEST_F(PeerSumNormTest, TakesTurnsWithOtherSums) {
  std::minstd_rand random(7);  // the same on both ranks
  Ledger ledgers[2];
  Wire plain(plain_.get(), plain_.get(), WireOptions(), &ledgers[0]);
  Wire fast(fast_.get(), fast_.get(), WireOptions(), &ledgers[1]);
  for (uint32_t turn = 0; turn < 300; ++turn) {
    const Case c = {.rows = 1 + static_cast<int64_t>(random() % 9),
                    .width = 8 * (1 + static_cast<int64_t>(random() % 1024))};
    Rows want = MakeRows(c, turn), got = MakeRows(c, turn);
    for (const bool is_fast : {false, true}) {
      Wire& wire = is_fast ? fast : plain;
      Rows& rows = is_fast ? got : want;
      if (turn % 2 == 0) {
        ASSERT_TRUE(wire.Reduce(Site::kMlpOut, rows.parts.mutable_view(), stream_).ok());
      }
      ASSERT_TRUE(Run(wire, c, rows).ok());
    }
    ASSERT_TRUE(BytesOf(want.x) == BytesOf(got.x)) << "turn " << turn;
    ASSERT_TRUE(BytesOf(want.out) == BytesOf(got.out)) << "turn " << turn;
  }
}

TEST_F(PeerSumNormTest, GraphsAreReplayed) {
  for (const int64_t num_rows : {1, 5}) {
    const Case c = {.rows = num_rows, .width = 8192};
    Ledger ledger;
    Wire wire(fast_.get(), fast_.get(), WireOptions(), &ledger);
    Rows rows = MakeRows(c, 3);
    const Tensor before = MakeRows(c, 3).x;
    const auto call = [&]() -> absl::Status {
      TW_RETURN_IF_ERROR(Copy(before.view(), rows.x.mutable_view(), stream_));
      for (int i = 0; i < 3; ++i) TW_RETURN_IF_ERROR(Run(wire, c, rows));
      return absl::OkStatus();
    };
    ASSERT_TRUE(call().ok());
    const std::vector<uint8_t> want = BytesOf(rows.out);
    absl::StatusOr<CapturedCalls> graph = CapturedCalls::Capture(call, stream_);
    ASSERT_TRUE(graph.ok()) << graph.status();
    for (int turn = 0; turn < 101; ++turn) {
      ASSERT_TRUE(graph->Run(*fast_, stream_).ok());
      if (turn % 10 != 0) continue;
      ASSERT_TRUE(BytesOf(rows.out) == want) << "replay " << turn;
    }
  }
}

}  // namespace
}  // namespace thinwire

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  return thinwire::RunAllTestsOnGpus(absl::Minutes(1), &thinwire::job, &thinwire::all_ranks);
}
