// thinwire bench serve: load against an endpoint that speaks OpenAI's API.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "launcher/job.h"

namespace CLI {
class App;
}

namespace thinwire {

class BenchServe {
 public:
  void AddTo(CLI::App& app);
  // One process. Unavailable: no request was answered.
  absl::Status Run(Job& job);

 private:
  std::string url_ = "http://127.0.0.1:8080";
  std::string model_;
  int64_t num_requests_ = 200;
  int concurrency_ = 16;
  double rate_ = 0.0;  // requests a second; 0: closed loop
  int64_t prompt_tokens_ = 64;
  int64_t max_tokens_ = 64;
  int64_t vocab_ = 1000;
  uint64_t seed_ = 1;
  double timeout_s_ = 120.0;
  double goodput_ttft_ms_ = 0.0;
  double goodput_itl_ms_ = 0.0;
  bool json_ = false;
};

}  // namespace thinwire
