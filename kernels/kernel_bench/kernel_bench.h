// What operators take on a device, beside what it can do at most: for `thinwire bench kernels`.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "kernels/core/stream.h"

namespace thinwire {

struct KernelTiming {
  std::string kernel;      // one of KernelNames()
  std::string shape;       // "16 x 4096 x 4096"
  double us = 0.0;         // median of a call
  int64_t bytes = 0;       // each input read once, each output written once
  int64_t operations = 0;  // a multiply-add counts two; 0: none but what bytes need
};

struct DeviceLimits {
  double byte_rate = 0.0;  // bytes/s; CPU: read by all threads; GPU: read and written by a copy
  double operation_rate = 0.0;  // flop/s; CPU: sgemm's; GPU: that of fp16 products
};

struct KernelBenchOptions {
  int64_t width = 4096;  // features of inputs and outputs, heads of 128 channels together
  double seconds = 0.3;  // about, for each timing
  // What operands outgrow; 0: 256 MiB on the CPU, three times the second-level cache of a GPU.
  int64_t cache_bytes = 0;
};

// "copy", "norm", "linear" and so on.
std::vector<std::string> KernelNames();

absl::StatusOr<DeviceLimits> MeasureDeviceLimits(Stream& stream);

// Times the kernel `name` at one token and more, on the stream's device, and passes each timing on.
// Calls take sets of operands in turn, 256 at most, that no cache holds together. InvalidArgument
// for a name that is not in KernelNames() or a width that is no multiple of 128 in 128 to 65536;
// errors of the operators and of `each`.
absl::Status TimeKernel(absl::string_view name, const KernelBenchOptions& options, Stream& stream,
                        absl::FunctionRef<absl::Status(const KernelTiming&)> each);

}  // namespace thinwire
