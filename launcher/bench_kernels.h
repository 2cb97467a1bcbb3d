// thinwire bench kernels: operators beside the limits of the device that they run on.
#pragma once

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "kernels/kernel_bench/kernel_bench.h"
#include "launcher/job.h"

namespace CLI {
class App;
}

namespace thinwire {

class BenchKernels {
 public:
  void AddTo(CLI::App& app);
  absl::Status Run(Job& job);

 private:
  std::vector<std::string> kernels_ = KernelNames();
  std::string device_ = "cpu";
  KernelBenchOptions options_;
  int threads_ = 0;
  bool json_ = false;
};

}  // namespace thinwire
