#include "launcher/gpu_findings.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <fstream>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/string_view.h"
#include "kernels/core/device_properties.h"
#include "kernels/core/status_macros.h"
#include "kernels/core/tensor.h"
#include "parallel/comm/nccl_communicator.h"
#include "runtime/engine/gpu_placement.h"

namespace thinwire {
namespace {

constexpr absl::Duration kConnectTimeout = absl::Minutes(1);

Device GpuOf(Job& job) {
  return Device::Cuda(job.bootstrap().local_rank() % std::max(1, NumCudaDevices()));
}

template <size_t N>
void CopyText(absl::string_view text, char (&to)[N]) {
  const size_t length = std::min(text.size(), N - 1);
  std::memcpy(to, text.data(), length);
  to[length] = '\0';
}

// The first number with dots in the driver's file; "" where there is none.
std::string DriverVersion() {
  std::ifstream file("/proc/driver/nvidia/version");
  std::string word;
  while (file >> word) {
    if (std::count(word.begin(), word.end(), '.') >= 1 && word[0] >= '0' && word[0] <= '9') {
      return word;
    }
  }
  return "";
}

absl::Status Describe(Device gpu, GpuFindings& findings) {
  TW_ASSIGN_OR_RETURN(const DeviceProperties properties, GetDeviceProperties(gpu));
  CopyText(properties.name, findings.name);
  CopyText(properties.bus_id, findings.bus_id);
  CopyText(DriverVersion(), findings.driver);
  findings.index = gpu.index;
  findings.count = NumCudaDevices();
  findings.driver_cuda = properties.driver_cuda_version;
  findings.runtime_cuda = properties.runtime_cuda_version;
  findings.memory_bytes = properties.memory_bytes;
  findings.free_bytes = properties.free_memory_bytes;
  for (int other = 0; other < findings.count; ++other) {
    if (other == gpu.index) continue;
    TW_ASSIGN_OR_RETURN(const bool can, CanAccessPeer(gpu, Device::Cuda(other)));
    findings.peers += can ? 1 : 0;
  }
  return absl::OkStatus();
}

// Median seconds of an all-reduce of `num_floats` fp32.
absl::StatusOr<double> TimeAllReduce(Communicator& ranks, int64_t num_floats, int repeats,
                                     Stream& stream) {
  TW_ASSIGN_OR_RETURN(Tensor data, Tensor::Allocate(DType::kF32, {num_floats}, stream.device()));
  std::vector<double> seconds;
  for (int i = -2; i < repeats; ++i) {  // the first ones make connections
    TW_RETURN_IF_ERROR(ranks.Barrier(stream));
    const auto start = std::chrono::steady_clock::now();
    TW_RETURN_IF_ERROR(ranks.AllReduce(data.mutable_view(), ReduceOp::kSum, stream));
    TW_RETURN_IF_ERROR(ranks.Wait(stream));
    if (i < 0) continue;
    seconds.push_back(
        std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }
  std::sort(seconds.begin(), seconds.end());
  return seconds[seconds.size() / 2];
}

}  // namespace

GpuFindings LookAtGpu(Job& job) {
  GpuFindings findings;
  const absl::Status status = Describe(GpuOf(job), findings);
  if (!status.ok()) CopyText(status.message(), findings.problem);
  return findings;
}

absl::StatusOr<GpuLinkFindings> MeasureGpuLinks(Job& job) {
  ThreadPool pool(1);
  Stream host = Stream::Cpu(&pool);
  const Device gpu = GpuOf(job);
  TW_RETURN_IF_ERROR(CheckGpusDistinct(gpu, job.world(), host));
  TW_ASSIGN_OR_RETURN(std::unique_ptr<Communicator> control, job.world().Split(0, job.rank()));
  control->set_timeout(kConnectTimeout);
  TW_ASSIGN_OR_RETURN(const std::unique_ptr<Communicator> ranks,
                      CreateNcclCommunicator(std::move(control), gpu));
  TW_ASSIGN_OR_RETURN(Stream stream, Stream::Cuda(gpu, &pool));
  GpuLinkFindings link;
  TW_ASSIGN_OR_RETURN(const double small, TimeAllReduce(*ranks, 2048, 100, stream));
  TW_ASSIGN_OR_RETURN(const double large, TimeAllReduce(*ranks, 16 << 20, 10, stream));
  link.small_us = small * 1e6;
  link.large_rate = (64 << 20) / large;
  return link;
}

}  // namespace thinwire
