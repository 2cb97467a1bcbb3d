// What the end of half a layer takes on GPUs of one host: sum between ranks, addition and norm in
// one kernel, beside sum and norm alone and one after the other.
//   mpirun -np 2 peer_sum_norm_bench
// Microseconds a call on rank 0, the least of 10 runs of a graph of 100 calls.
#include <algorithm>
#include <cstdio>
#include <memory>
#include <utility>
#include <vector>

#include "absl/functional/function_ref.h"
#include "kernels/core/copy.h"
#include "kernels/core/status_macros.h"
#include "kernels/core/stream.h"
#include "kernels/core/tensor.h"
#include "kernels/norm/norm.h"
#include "parallel/comm/bootstrap.h"
#include "parallel/comm/nccl_communicator.h"
#include "parallel/wire/captured_calls.h"
#include "parallel/wire/wire.h"

namespace thinwire {
namespace {

constexpr int64_t kWidth = 8192;
constexpr int kCalls = 100;
constexpr int kRuns = 10;

absl::StatusOr<double> Time(absl::FunctionRef<absl::Status()> call, Communicator& comm,
                            Stream& stream) {
  const auto calls = [&]() -> absl::Status {
    for (int i = 0; i < kCalls; ++i) TW_RETURN_IF_ERROR(call());
    return absl::OkStatus();
  };
  TW_RETURN_IF_ERROR(calls());  // what grows once, grows
  TW_ASSIGN_OR_RETURN(CapturedCalls graph, CapturedCalls::Capture(calls, stream));
  TW_ASSIGN_OR_RETURN(double least, graph.Run(comm, stream));
  for (int i = 1; i < kRuns; ++i) {
    TW_ASSIGN_OR_RETURN(const double us, graph.Run(comm, stream));
    least = std::min(least, us);
  }
  return least / kCalls;
}

absl::StatusOr<Tensor> Zeros(DType dtype, int64_t rows, Stream& stream) {
  const std::vector<float> zeros(rows * kWidth);  // all bits 0 in any type
  TW_ASSIGN_OR_RETURN(Tensor tensor, Tensor::Allocate(dtype, {rows, kWidth}, stream.device()));
  TW_RETURN_IF_ERROR(
      Copy(ConstTensorView(zeros.data(), dtype, {rows, kWidth}), tensor.mutable_view(), stream));
  TW_RETURN_IF_ERROR(stream.Synchronize());
  return tensor;
}

absl::Status Measure(Communicator& comm, Stream& stream, int64_t num_rows) {
  TW_ASSIGN_OR_RETURN(Tensor parts, Zeros(DType::kF16, num_rows, stream));
  TW_ASSIGN_OR_RETURN(Tensor x, Zeros(DType::kF16, num_rows, stream));
  TW_ASSIGN_OR_RETURN(Tensor out, Zeros(DType::kF16, num_rows, stream));
  TW_ASSIGN_OR_RETURN(Tensor weight, Zeros(DType::kF32, 1, stream));
  const NormArgs norm = {
      .kind = NormKind::kRmsNorm,
      .x = x.mutable_view(),
      .weight = ConstTensorView(weight.view().raw(), DType::kF32, {kWidth}, stream.device()),
      .out = out.mutable_view()};
  NormArgs with_sum = norm;
  with_sum.delta = parts.view();
  Ledger ledger;
  Wire wire(&comm, &comm, WireOptions(), &ledger);
  const auto fused = [&] {
    return wire.ReduceAndNorm(Site::kMlpOut, parts.mutable_view(), norm, stream);
  };
  const auto sum = [&] { return wire.Reduce(Site::kMlpOut, parts.mutable_view(), stream); };
  const auto norm_alone = [&] { return Norm(with_sum, stream); };
  const auto both = [&]() -> absl::Status {
    TW_RETURN_IF_ERROR(sum());
    return norm_alone();
  };
  TW_ASSIGN_OR_RETURN(const double one_us, Time(fused, comm, stream));
  TW_ASSIGN_OR_RETURN(const double both_us, Time(both, comm, stream));
  TW_ASSIGN_OR_RETURN(const double sum_us, Time(sum, comm, stream));
  TW_ASSIGN_OR_RETURN(const double norm_us, Time(norm_alone, comm, stream));
  if (comm.rank() == 0) {
    std::printf("%5d %8.2f %8.2f %8.2f %12.2f\n", static_cast<int>(num_rows), sum_us, norm_us,
                both_us, one_us);
  }
  return absl::OkStatus();
}

absl::Status Main() {
  TW_ASSIGN_OR_RETURN(const std::unique_ptr<Bootstrap> job, JoinJob());
  TW_ASSIGN_OR_RETURN(std::unique_ptr<Communicator> control, job->CreateHostCommunicator());
  control->set_timeout(absl::Minutes(1));
  const Device device = Device::Cuda(job->local_rank());
  TW_ASSIGN_OR_RETURN(
      const std::unique_ptr<Communicator> comm,
      CreateNcclCommunicator(std::move(control), device, {.uses_peer_memory = true}));
  ThreadPool pool(1);
  TW_ASSIGN_OR_RETURN(Stream stream, Stream::Cuda(device, &pool));
  if (comm->rank() == 0) {
    std::printf("fp16 rows of %d, microseconds\n%5s %8s %8s %8s %12s\n", static_cast<int>(kWidth),
                "rows", "sum", "norm", "both", "one kernel");
  }
  for (const int64_t num_rows : {1, 2, 4, 8, 16, 32, 64}) {
    TW_RETURN_IF_ERROR(Measure(*comm, stream, num_rows));
  }
  return absl::OkStatus();
}

}  // namespace
}  // namespace thinwire

int main() {
  const absl::Status status = thinwire::Main();
  if (status.ok()) return 0;
  std::fprintf(stderr, "%s\n", status.ToString().c_str());
  return 1;
}
