// thinwire bench comm: the strategies of --wire side by side on this job's links.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kernels/core/dtype.h"
#include "kernels/core/stream.h"
#include "launcher/job.h"
#include "parallel/wire/strategy_timing.h"

namespace CLI {
class App;
}

namespace thinwire {

class BenchComm {
 public:
  void AddTo(CLI::App& app);
  absl::Status Run(Job& job);

 private:
  struct Way;
  // What a job on GPUs measures with: communicators that use peer memory and that do not.
  struct Gpus;
  // Medians to compare with, in us; 0: not measured.
  struct References {
    double nccl = 0.0;  // NCCL's all-reduce of fp16 by one communicator
    double fp16 = 0.0;  // strategy fp16 over the way that the strategies take
  };

  absl::StatusOr<Gpus> ConnectGpus(Job& job) const;
  // Times all ways for messages of `bytes`, taking turns, and writes a line of each.
  absl::Status Measure(Job& job, absl::Span<Way> ways, int64_t bytes, DType dtype, Stream& stream);
  absl::Status WriteLine(Job& job, const Way& way, int64_t num_rows, const StrategyTiming& timing,
                         const References& references) const;

  std::vector<std::string> strategies_ = {
      "native",      "fp16",           "one-shot-q8",    "one-shot-q6",    "one-shot-q5",
      "one-shot-q4", "token-owner-q8", "token-owner-q6", "token-owner-q5", "token-owner-q4"};
  std::string min_bytes_ = "16K";
  std::string max_bytes_ = "64M";
  std::string norm_codes_ = "auto";
  std::string dtype_ = "fp32";
  std::string device_ = "cpu";
  int64_t width_ = 4096;
  double seconds_ = 0.3;
  int threads_ = 0;
  int stripes_ = 0;
  bool json_ = false;
};

}  // namespace thinwire
