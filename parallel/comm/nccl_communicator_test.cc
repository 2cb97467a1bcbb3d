#include "parallel/comm/nccl_communicator.h"

#include <vector>

#include "kernels/core/copy.h"
#include "parallel/comm/bootstrap.h"
#include "parallel/comm/communicator_conformance.h"
#include "parallel/comm/gpu_rank_test_main.h"
#include "parallel/comm/rank_order_reduce.h"
#include "parallel/comm/rank_order_reduce_cuda.h"

namespace thinwire {
namespace {

Bootstrap* job = nullptr;           // set by main
Communicator* all_ranks = nullptr;  // set by main; tests split their communicators from it

// Ranks share GPUs where the environment has NCCL take them for ranks of several hosts, by an
// NCCL_HOSTID of each rank's own, NCCL_NET=Socket and NCCL_SOCKET_IFNAME=lo.
Device ThisGpu() { return Device::Cuda(job->local_rank() % NumCudaDevices()); }

}  // namespace

namespace conformance {

// `stripes` in place of a number of ranks: small parts, so that the suite's messages have several.
void RunOnRanks(int stripes, Body body) {
  absl::StatusOr<std::unique_ptr<Communicator>> comm = CreateNcclCommunicator(
      all_ranks->Split(0, 0).value(), ThisGpu(), {.stripes = stripes, .least_stripe_bytes = 256});
  ASSERT_TRUE(comm.ok()) << comm.status();
  ThreadPool pool(1);
  Stream stream = Stream::Cuda(ThisGpu(), &pool).value();
  body(**comm, stream);
  if (testing::Test::HasFailure()) (*comm)->Abort(absl::InternalError("a test failed"));
}

// The driver knows by itself which addresses are the GPU's.
void CopyBytes(void* to, const void* from, int64_t bytes, Stream& stream) {
  const absl::Status status =
      Copy(ConstTensorView(from, DType::kU8, {bytes}), TensorView(to, DType::kU8, {bytes}), stream);
  ASSERT_TRUE(status.ok()) << status;
  ASSERT_TRUE(stream.Synchronize().ok());
}

INSTANTIATE_TEST_SUITE_P(Nccl, CommunicatorConformanceTest, testing::Values(1, 3));

}  // namespace conformance

namespace {

TEST(NcclCommunicatorTest, MemoryOfOtherDevicesIsRefused) {
  conformance::RunOnRanks(1, [](Communicator& comm, Stream& stream) {
    std::vector<float> values(4);
    const TensorView on_host(values.data(), DType::kF32, {4});
    EXPECT_EQ(comm.AllReduce(on_host, ReduceOp::kSum, stream).code(),
              absl::StatusCode::kInvalidArgument);
    EXPECT_FALSE(comm.Supports(Device::Cpu()));
    EXPECT_TRUE(comm.Supports(ThisGpu()));
    EXPECT_TRUE(comm.Barrier(stream).ok());
  });
}

// What more than two ranks use, on one GPU.
template <typename T>
void ExpectReducedInRankOrder(ReduceOp op, int num_parts, int64_t n, int64_t offset) {
  ThreadPool pool(1);
  Stream stream = Stream::Cuda(ThisGpu(), &pool).value();
  std::vector<Tensor> parts;
  std::vector<const void*> data;
  for (int part = 0; part < num_parts; ++part) {
    parts.push_back(conformance::Upload(conformance::Values<T>(part, 0, n + offset), stream));
    data.push_back(parts.back().view().data<T>() + offset);
  }
  Tensor out = conformance::Upload(std::vector<T>(n), stream);
  ASSERT_TRUE(
      ReduceInRankOrderCuda(DTypeOf<T>(), op, data, n, out.mutable_view().mutable_raw(), stream)
          .ok());
  EXPECT_TRUE(conformance::SameBits(conformance::Download<T>(out, stream),
                                    conformance::Reduced<T>(op, num_parts, offset, n)));
}

TEST(RankOrderReduceCudaTest, GivesTheBitsOfTheDefinition) {
  for (const ReduceOp op : {ReduceOp::kSum, ReduceOp::kMax}) {
    for (const int num_parts : {1, 2, 3, 8}) {
      for (const int64_t n : {1, 7, 4096, 100003}) {
        for (const int64_t offset : {0, 1}) {
          ExpectReducedInRankOrder<float>(op, num_parts, n, offset);
          ExpectReducedInRankOrder<Half>(op, num_parts, n, offset);
          ExpectReducedInRankOrder<BFloat16>(op, num_parts, n, offset);
          ExpectReducedInRankOrder<int32_t>(op, num_parts, n, offset);
          ExpectReducedInRankOrder<int64_t>(op, num_parts, n, offset);
        }
      }
    }
  }
}

}  // namespace
}  // namespace thinwire

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  return thinwire::RunAllTestsOnGpus(absl::Minutes(1), &thinwire::job, &thinwire::all_ranks);
}
