// Latency and bandwidth of the collectives: under mpirun between its processes, alone between two
// threads.
//   mpirun -np 2 comm_bench
//   mpirun -np 2 comm_bench cuda       through NCCL, each rank with the GPU of its local rank
// Times are those of rank 0. algbw is bytes / median; busbw scales it by what a rank has to move at
// least (2 (p-1)/p of an all-reduce, (p-1)/p of an all-gather's output), so that it compares with
// links. On GPUs, calls are enqueued 20 at a time, and a time is a twentieth.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <thread>
#include <utility>
#include <vector>

#include "absl/functional/function_ref.h"
#include "kernels/core/status_macros.h"
#include "kernels/core/stream.h"
#include "kernels/core/tensor.h"
#include "parallel/comm/bootstrap.h"
#include "parallel/comm/local_communicator.h"
#include "parallel/comm/nccl_communicator.h"

namespace thinwire {
namespace {

constexpr int64_t kSizes[] = {8, 256, 2048, 16384, 65536, 1 << 20, 16 << 20};

// Times `operation`, prints a line on rank 0. `scale`: busbw / algbw. `parts`: operations that one
// call of `operation` stands for.
absl::Status Report(const char* name, Communicator& comm, Stream& stream, int64_t bytes,
                    double scale, int parts, absl::FunctionRef<absl::Status()> operation) {
  const bool enqueued = stream.device().kind == DeviceKind::kCuda;
  const int calls = enqueued ? 20 : 1;
  const int repetitions = (bytes <= 65536 ? 5000 : bytes <= (1 << 20) ? 500 : 50) / calls + 10;
  std::vector<double> microseconds;
  for (int i = -repetitions / 10; i < repetitions; ++i) {  // the first tenth warms up
    const auto start = std::chrono::steady_clock::now();
    for (int call = 0; call < calls; ++call) TW_RETURN_IF_ERROR(operation());
    if (enqueued) TW_RETURN_IF_ERROR(comm.Wait(stream));
    const std::chrono::duration<double, std::micro> elapsed =
        std::chrono::steady_clock::now() - start;
    if (i >= 0) microseconds.push_back(elapsed.count() / (parts * calls));
  }
  std::sort(microseconds.begin(), microseconds.end());
  const double median = microseconds[microseconds.size() / 2];
  const double p99 = microseconds[microseconds.size() * 99 / 100];
  if (comm.rank() == 0) {
    const double algbw = static_cast<double>(bytes) / median / 1e3;
    std::printf("%-16s %10ld %10.2f %10.2f %8.3f %8.3f\n", name, static_cast<long>(bytes), median,
                p99, algbw, algbw * scale);
    std::fflush(stdout);
  }
  return comm.Barrier(stream);
}

absl::Status Measure(Communicator& comm, Device device) {
  const double p = comm.size();
  ThreadPool pool(1);
  Stream stream = Stream::Cpu(&pool);
  if (device.kind == DeviceKind::kCuda) {
    TW_ASSIGN_OR_RETURN(stream, Stream::Cuda(device, &pool));
  }
  TW_ASSIGN_OR_RETURN(Tensor tensor,
                      Tensor::Allocate(DType::kU8, {kSizes[std::size(kSizes) - 1]}, device));
  void* const data = tensor.mutable_view().mutable_raw();
  if (device.kind == DeviceKind::kCpu) std::memset(data, 0, tensor.size_bytes());
  if (comm.rank() == 0) {
    std::printf("%-16s %10s %10s %10s %8s %8s\n", "operation", "bytes", "median us", "p99 us",
                "algbw", "busbw GB/s");
  }
  for (const DType dtype : {DType::kF32, DType::kF16}) {
    for (const int64_t bytes : kSizes) {
      const TensorView view(data, dtype, {bytes / DTypeBytes(dtype, 1)}, device);
      TW_RETURN_IF_ERROR(Report(dtype == DType::kF32 ? "all-reduce fp32" : "all-reduce fp16", comm,
                                stream, bytes, 2 * (p - 1) / p, 1,
                                [&] { return comm.AllReduce(view, ReduceOp::kSum, stream); }));
    }
  }
  for (const int64_t bytes : kSizes) {
    const int64_t part = bytes / comm.size();
    const TensorView out(data, DType::kU8, {part * comm.size()}, device);
    const TensorView in = out.Rows(comm.rank() * part, part);
    TW_RETURN_IF_ERROR(Report("all-gather", comm, stream, bytes, (p - 1) / p, 1,
                              [&] { return comm.AllGather(in, out, stream); }));
  }
  for (const int64_t bytes : kSizes) {
    const TensorView view(data, DType::kU8, {bytes}, device);
    TW_RETURN_IF_ERROR(Report("send/recv", comm, stream, bytes, 1, 2, [&]() -> absl::Status {
      if (comm.rank() > 1 || comm.size() == 1) return absl::OkStatus();
      if (comm.rank() == 0) TW_RETURN_IF_ERROR(comm.Send(view, 1, stream));
      TW_RETURN_IF_ERROR(comm.Recv(view, 1 - comm.rank(), stream));
      if (comm.rank() == 1) TW_RETURN_IF_ERROR(comm.Send(view, 0, stream));
      return absl::OkStatus();
    }));
  }
  return absl::OkStatus();
}

absl::Status MeasureThreads() {
  std::vector<std::unique_ptr<Communicator>> communicators = CreateLocalCommunicators(2);
  absl::Status other;
  std::thread thread([&] { other = Measure(*communicators[1], Device::Cpu()); });
  absl::Status status = Measure(*communicators[0], Device::Cpu());
  thread.join();
  status.Update(other);
  return status;
}

absl::Status Run(bool cuda) {
  TW_ASSIGN_OR_RETURN(const std::unique_ptr<Bootstrap> job, JoinJob());
  if (job->rank() == 0) {
    std::printf("%s, %d ranks\n", job->size() > 1 ? job->Description().c_str() : "threads",
                std::max(2, job->size()));
  }
  if (job->size() == 1 && !cuda) return MeasureThreads();
  TW_ASSIGN_OR_RETURN(std::unique_ptr<Communicator> comm, job->CreateHostCommunicator());
  if (!cuda) return Measure(*comm, Device::Cpu());
  const Device device = Device::Cuda(job->local_rank());
  TW_ASSIGN_OR_RETURN(comm, CreateNcclCommunicator(std::move(comm), device));
  return Measure(*comm, device);
}

}  // namespace
}  // namespace thinwire

int main(int argc, char** argv) {
  const bool cuda = argc == 2 && std::strcmp(argv[1], "cuda") == 0;
  if (argc > 1 && !cuda) {
    std::fprintf(stderr, "usage: comm_bench [cuda]\n");
    return 2;
  }
  const absl::Status status = thinwire::Run(cuda);
  if (!status.ok()) std::fprintf(stderr, "%s\n", status.ToString().c_str());
  return status.ok() ? 0 : 1;
}
