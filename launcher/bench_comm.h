// thinwire bench comm: the strategies of --wire side by side on this job's links.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "launcher/job.h"

namespace CLI {
class App;
}

namespace thinwire {

class BenchComm {
 public:
  void AddTo(CLI::App& app);
  absl::Status Run(Job& job);

 private:
  std::vector<std::string> strategies_ = {
      "native",      "fp16",           "one-shot-q8",    "one-shot-q6",    "one-shot-q5",
      "one-shot-q4", "token-owner-q8", "token-owner-q6", "token-owner-q5", "token-owner-q4"};
  std::string min_bytes_ = "16K";
  std::string max_bytes_ = "64M";
  std::string norm_codes_ = "auto";
  std::string dtype_ = "fp32";
  int64_t width_ = 4096;
  double seconds_ = 0.3;
  int threads_ = 0;
  bool json_ = false;
};

}  // namespace thinwire
