// Latency and bandwidth of the collectives: under mpirun between its processes, alone between two
// threads.
//   mpirun -np 2 comm_bench
// Times are those of rank 0. algbw is bytes / median; busbw scales it by what a rank has to move at
// least (2 (p-1)/p of an all-reduce, (p-1)/p of an all-gather's output), so that it compares with
// links.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <thread>
#include <vector>

#include "absl/functional/function_ref.h"
#include "kernels/core/status_macros.h"
#include "kernels/core/stream.h"
#include "kernels/core/tensor.h"
#include "parallel/comm/bootstrap.h"
#include "parallel/comm/local_communicator.h"

namespace thinwire {
namespace {

constexpr int64_t kSizes[] = {8, 256, 2048, 16384, 65536, 1 << 20, 16 << 20};

// Times `operation`, prints a line on rank 0. `scale`: busbw / algbw. `parts`: operations that one
// call of `operation` stands for.
absl::Status Report(const char* name, Communicator& comm, Stream& stream, int64_t bytes,
                    double scale, int parts, absl::FunctionRef<absl::Status()> operation) {
  const int repetitions = bytes <= 65536 ? 5000 : bytes <= (1 << 20) ? 500 : 50;
  std::vector<double> microseconds;
  for (int i = -repetitions / 10; i < repetitions; ++i) {  // the first tenth warms up
    const auto start = std::chrono::steady_clock::now();
    TW_RETURN_IF_ERROR(operation());
    const std::chrono::duration<double, std::micro> elapsed =
        std::chrono::steady_clock::now() - start;
    if (i >= 0) microseconds.push_back(elapsed.count() / parts);
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

absl::Status Measure(Communicator& comm) {
  const double p = comm.size();
  ThreadPool pool(1);
  Stream stream = Stream::Cpu(&pool);
  TW_ASSIGN_OR_RETURN(Tensor tensor,
                      Tensor::Allocate(DType::kU8, {kSizes[std::size(kSizes) - 1]}, Device::Cpu()));
  void* const data = tensor.mutable_view().mutable_raw();
  std::memset(data, 0, tensor.size_bytes());
  if (comm.rank() == 0) {
    std::printf("%-16s %10s %10s %10s %8s %8s\n", "operation", "bytes", "median us", "p99 us",
                "algbw", "busbw GB/s");
  }
  for (const DType dtype : {DType::kF32, DType::kF16}) {
    for (const int64_t bytes : kSizes) {
      const TensorView view(data, dtype, {bytes / DTypeBytes(dtype, 1)});
      TW_RETURN_IF_ERROR(Report(dtype == DType::kF32 ? "all-reduce fp32" : "all-reduce fp16", comm,
                                stream, bytes, 2 * (p - 1) / p, 1,
                                [&] { return comm.AllReduce(view, ReduceOp::kSum, stream); }));
    }
  }
  for (const int64_t bytes : kSizes) {
    const int64_t part = bytes / comm.size();
    const TensorView out(data, DType::kU8, {part * comm.size()});
    const TensorView in = out.Rows(comm.rank() * part, part);
    TW_RETURN_IF_ERROR(Report("all-gather", comm, stream, bytes, (p - 1) / p, 1,
                              [&] { return comm.AllGather(in, out, stream); }));
  }
  for (const int64_t bytes : kSizes) {
    const TensorView view(data, DType::kU8, {bytes});
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
  std::thread thread([&] { other = Measure(*communicators[1]); });
  absl::Status status = Measure(*communicators[0]);
  thread.join();
  status.Update(other);
  return status;
}

absl::Status Run() {
  TW_ASSIGN_OR_RETURN(const std::unique_ptr<Bootstrap> job, JoinJob());
  if (job->rank() == 0) {
    std::printf("%s, %d ranks\n", job->size() > 1 ? job->Description().c_str() : "threads",
                std::max(2, job->size()));
  }
  if (job->size() == 1) return MeasureThreads();
  TW_ASSIGN_OR_RETURN(const std::unique_ptr<Communicator> comm, job->CreateHostCommunicator());
  return Measure(*comm);
}

}  // namespace
}  // namespace thinwire

int main() {
  const absl::Status status = thinwire::Run();
  if (!status.ok()) std::fprintf(stderr, "%s\n", status.ToString().c_str());
  return status.ok() ? 0 : 1;
}
