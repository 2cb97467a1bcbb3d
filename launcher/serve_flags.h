// The flags of `thinwire serve` beside those of the engine.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/status.h"

namespace CLI {
class App;
}

namespace thinwire {

struct ServeFlags {
  std::string grpc = "127.0.0.1:50051";
  std::string admin = "127.0.0.1:50052";
  std::string http = "127.0.0.1:8080";
  std::string metrics;
  std::string model_name;
  std::string chat_template;
  std::string tls_cert, tls_key, tls_client_ca;
  std::string token_file, admin_token_file;
  std::string pid_file;
  std::string client_header;
  std::string metrics_compat = "none";
  bool insecure = false;
  bool log_requests = false;
  bool json = false;
  int64_t max_queued_requests = 1024;
  int64_t max_queued_tokens = int64_t{1} << 20;
  double rate_limit = 0.0;
  double rate_burst = 0.0;
  double max_wait_s = 30.0;
  double max_deadline_s = 3600.0;
  double drain_timeout_s = 45.0;
  double slow_reader_timeout_s = 30.0;
  int http_threads = 512;

  void AddTo(CLI::App& app);

  // InvalidArgument: flags that contradict each other, an address that is none, or one that
  // strangers reach while nothing protects it.
  absl::Status Check() const;
};

}  // namespace thinwire
