// The HTTP listener of a server: OpenAI's API, probes, metrics, a status page.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "runtime/server/serving_core.h"

namespace thinwire {

struct HttpOptions {
  std::string address;  // HOST:PORT; port 0: any free one
  bool openai = true;   // /v1; without, only probes, metrics and the status page
  std::string tls_cert, tls_key, tls_client_ca;  // files in PEM form; empty: no TLS
  size_t max_body_bytes = 16 << 20;
  int num_threads = 512;  // connections that are served at the same time; more wait
  bool vllm_metrics = false;
  std::function<void(absl::string_view message)> warn;  // tells people; empty: nobody; any thread
};

// GET /livez (200 as long as the process lives), /readyz (200 when it takes requests, else 503),
// /metrics, /version, /status (JSON), / (a page that shows it), /v1/models; POST /v1/completions,
// /v1/chat/completions.
class HttpServer {
 public:
  // Unavailable: the address cannot be bound. `core` is borrowed.
  static absl::StatusOr<std::unique_ptr<HttpServer>> Start(const HttpOptions& options,
                                                           ServingCore* core);
  ~HttpServer();

  const std::string& address() const;  // HOST:PORT, as bound

  // Takes no new connections and returns when what is being answered is done; hangs up on those who
  // have not read it by `until`.
  void Stop(absl::Time until);

 private:
  struct Impl;
  explicit HttpServer(std::unique_ptr<Impl> impl);

  std::unique_ptr<Impl> impl_;
};

}  // namespace thinwire
