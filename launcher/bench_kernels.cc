#include "launcher/bench_kernels.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "kernels/core/device.h"
#include "kernels/core/status_macros.h"
#include "launcher/command.h"
#include "launcher/output.h"

namespace thinwire {

void BenchKernels::AddTo(CLI::App& app) {
  app.add_option("--kernels", kernels_, "Which ones, separated by commas")
      ->type_name("NAMES")
      ->delimiter(',')
      ->capture_default_str();
  app.add_option("--device", device_, "Where they run; cuda: the first GPU")
      ->check(CLI::IsMember({"cpu", "cuda"}))
      ->capture_default_str();
  app.add_option("--width", options_.width, "Features of inputs and outputs, a multiple of 128")
      ->type_name("N")
      ->capture_default_str();
  app.add_option("--seconds", options_.seconds, "For each timing")
      ->type_name("S")
      ->check(CLI::Range(0.0, 3600.0))
      ->capture_default_str();
  app.add_option("--threads", threads_, "Threads; 0: the host's processors")
      ->type_name("N")
      ->check(CLI::Range(0, 1024))
      ->capture_default_str();
  app.add_flag("--json", json_, "One JSON object per line, the limits first");
  app.footer(
      "Bytes: each operand read or written once; calls take operands in turn that no cache holds.\n"
      "A multiply-add counts as two operations. Limits are measured in the same run: on a CPU the\n"
      "rate of reading 256 MiB with all threads and that of sgemm, on a GPU the rate of a copy,\n"
      "bytes read and written, and that of fp16 products of 8192 x 8192 matrices.");
}

absl::Status BenchKernels::Run(Job& job) {
  if (job.size() > 1) {
    return UsageError(
        absl::InvalidArgumentError("bench kernels measures one process: expected one rank"));
  }
  const std::vector<std::string> names = KernelNames();
  for (const std::string& name : kernels_) {
    if (std::find(names.begin(), names.end(), name) == names.end()) {
      return UsageError(absl::InvalidArgumentError(
          absl::StrCat("--kernels ", name, ": expected one of ", absl::StrJoin(names, ", "))));
    }
  }
  if (options_.width < 128 || options_.width > 65536 || options_.width % 128 != 0) {
    return UsageError(absl::InvalidArgumentError(
        absl::StrCat("--width ", options_.width, ": expected a multiple of 128 in 128 to 65536")));
  }
  const Device device = device_ == "cuda" ? Device::Cuda(0) : Device::Cpu();
  TW_RETURN_IF_ERROR(UsageError(Annotate(CheckDeviceUsable(device), "--device cuda")));
  ThreadPool pool(job.NumThreads(threads_));
  Stream stream = Stream::Cpu(&pool);
  if (device.kind == DeviceKind::kCuda) {
    TW_ASSIGN_OR_RETURN(stream, Stream::Cuda(device, &pool));
  }
  TW_ASSIGN_OR_RETURN(const DeviceLimits limits, MeasureDeviceLimits(stream));
  if (json_) {
    const nlohmann::ordered_json line = {{"device", DeviceName(device)},
                                         {"byte_rate", limits.byte_rate},
                                         {"operation_rate", limits.operation_rate}};
    TW_RETURN_IF_ERROR(WriteOutput(line.dump() + "\n"));
  } else {
    TW_RETURN_IF_ERROR(WriteOutput(
        absl::StrFormat("%s: %.1f GB/s, %.0f Gop/s\n%-17s  %-22s  %10s  %9s  %6s  %9s  %6s\n",
                        DeviceName(device), limits.byte_rate * 1e-9, limits.operation_rate * 1e-9,
                        "kernel", "shape", "us", "GB/s", "of it", "Gop/s", "of it")));
  }
  for (const std::string& name : kernels_) {
    TW_RETURN_IF_ERROR(TimeKernel(name, options_, stream, [&](const KernelTiming& timing) {
      const double bytes = static_cast<double>(timing.bytes) / timing.us * 1e6;
      const double operations = static_cast<double>(timing.operations) / timing.us * 1e6;
      const double of_bytes = bytes / limits.byte_rate;
      const double of_operations = operations / limits.operation_rate;
      if (json_) {
        const nlohmann::ordered_json line = {{"kernel", timing.kernel},
                                             {"shape", timing.shape},
                                             {"us", timing.us},
                                             {"bytes", timing.bytes},
                                             {"operations", timing.operations},
                                             {"of_byte_rate", of_bytes},
                                             {"of_operation_rate", of_operations}};
        return WriteOutput(line.dump() + "\n");
      }
      return WriteOutput(absl::StrFormat("%-17s  %-22s  %10.1f  %9.1f  %6.3f  %9.1f  %6.3f\n",
                                         timing.kernel, timing.shape, timing.us, bytes * 1e-9,
                                         of_bytes, operations * 1e-9, of_operations));
    }));
  }
  return absl::OkStatus();
}

}  // namespace thinwire
