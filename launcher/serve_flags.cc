#include "launcher/serve_flags.h"

#include <CLI/CLI.hpp>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "kernels/core/status_macros.h"

namespace thinwire {
namespace {

bool IsLoopback(absl::string_view host) {
  return host == "localhost" || host == "[::1]" || absl::StartsWith(host, "127.");
}

}  // namespace

void ServeFlags::AddTo(CLI::App& app) {
  app.add_option("--grpc", grpc, "Where thinwire.v1.Inference listens; port 0: any free one")
      ->type_name("HOST:PORT")
      ->capture_default_str();
  app.add_option("--admin", admin, "Where thinwire.v1.Control listens")
      ->type_name("HOST:PORT")
      ->capture_default_str();
  app.add_option("--http", http,
                 "Where OpenAI's API, probes, metrics and the status page are; \"\": nowhere")
      ->type_name("HOST:PORT")
      ->capture_default_str();
  app.add_option("--metrics", metrics, "Another place for probes, metrics and the status page")
      ->type_name("HOST:PORT");
  app.add_option("--model-name", model_name, "What clients call the model; default: the folder's")
      ->type_name("NAME");
  app.add_option("--chat-template", chat_template,
                 "llama-2, llama-3, mistral, chatml, plain, or a JSON file; default: the model's")
      ->type_name("NAME|FILE");
  app.add_option("--tls-cert", tls_cert, "Certificate of all listeners, PEM")->type_name("FILE");
  app.add_option("--tls-key", tls_key, "Its key, PEM")->type_name("FILE");
  app.add_option("--tls-client-ca", tls_client_ca, "Clients must have a certificate of this one")
      ->type_name("FILE");
  app.add_option("--token-file", token_file,
                 "Clients of --grpc and of /v1 must send 'authorization: Bearer' and this file's "
                 "first line")
      ->type_name("FILE");
  app.add_option("--admin-token-file", admin_token_file, "The same for --admin")->type_name("FILE");
  app.add_flag("--insecure", insecure, "Listen on other than loopback addresses without TLS");
  app.add_option("--max-queue", max_queued_requests, "Requests that may wait")
      ->type_name("N")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 20))
      ->capture_default_str();
  app.add_option("--max-queue-tokens", max_queued_tokens,
                 "Tokens that requests that wait may become, 512 of an answer without max_tokens")
      ->type_name("N")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 40))
      ->capture_default_str();
  app.add_option("--rate-limit", rate_limit,
                 "Requests a second of each client, each choice counted; 0: any")
      ->type_name("R")
      ->check(CLI::Range(0.0, 1e6))
      ->capture_default_str();
  app.add_option("--rate-burst", rate_burst,
                 "Requests that a client may make at once; 0: those of a second")
      ->type_name("N")
      ->check(CLI::Range(0.0, 1e6))
      ->capture_default_str();
  app.add_option("--client-header", client_header,
                 "Header or metadata that says who a client is, for a gateway to set; default: its "
                 "address")
      ->type_name("NAME");
  app.add_option("--max-wait", max_wait_s,
                 "Seconds that requests may have to wait, as the rate so far predicts: others are "
                 "refused")
      ->type_name("S")
      ->check(CLI::Range(0.001, 1e6))
      ->capture_default_str();
  app.add_option("--max-deadline", max_deadline_s,
                 "Seconds that a request may take; also of those that name no deadline")
      ->type_name("S")
      ->check(CLI::Range(0.001, 1e6))
      ->capture_default_str();
  app.add_option("--drain-timeout", drain_timeout_s,
                 "Seconds that requests have to finish after SIGTERM")
      ->type_name("S")
      ->check(CLI::Range(0.0, 1e6))
      ->capture_default_str();
  app.add_option("--slow-reader-timeout", slow_reader_timeout_s,
                 "Seconds after which a client that reads nothing is given up")
      ->type_name("S")
      ->check(CLI::Range(0.001, 1e6))
      ->capture_default_str();
  app.add_option("--http-threads", http_threads, "HTTP connections served at the same time")
      ->type_name("N")
      ->check(CLI::Range(1, 16384))
      ->capture_default_str();
  app.add_option("--metrics-compat", metrics_compat,
                 "vllm: the gauges that the Gateway API's endpoint picker reads, under that name")
      ->check(CLI::IsMember({"none", "vllm"}))
      ->capture_default_str();
  app.add_option("--pid-file", pid_file, "Rank 0 writes its process id here: whom to send SIGTERM")
      ->type_name("FILE");
  app.add_flag("--log-requests", log_requests,
               "A line on standard error for each request that ends; never its text");
  app.add_flag("--json", json, "Addresses and changes of state as JSON lines on standard output");
}

absl::Status ServeFlags::Check() const {
  if (tls_cert.empty() != tls_key.empty()) {
    return absl::InvalidArgumentError(absl::StrCat(
        tls_cert.empty() ? "--tls-key without --tls-cert" : "--tls-cert without --tls-key"));
  }
  if (!tls_client_ca.empty() && tls_cert.empty()) {
    return absl::InvalidArgumentError("--tls-client-ca without --tls-cert");
  }
  struct Address {
    const char* flag;
    const std::string& value;
    bool optional;
  };
  for (const Address& address :
       {Address{"--grpc", grpc, false}, Address{"--admin", admin, false},
        Address{"--http", http, true}, Address{"--metrics", metrics, true}}) {
    if (address.optional && address.value.empty()) continue;
    const size_t colon = address.value.rfind(':');
    int port = -1;
    if (colon == std::string::npos || colon == 0 ||
        !absl::SimpleAtoi(address.value.substr(colon + 1), &port) || port < 0 || port > 65535) {
      return absl::InvalidArgumentError(
          absl::StrCat(address.flag, ": expected HOST:PORT, found '", address.value, "'"));
    }
    if (!IsLoopback(absl::string_view(address.value).substr(0, colon)) && tls_cert.empty() &&
        !insecure) {
      return absl::InvalidArgumentError(absl::StrCat(
          address.flag, " ", address.value,
          ": others than this host could reach it; add --tls-cert and --tls-key, or --insecure"));
    }
  }
  return absl::OkStatus();
}

}  // namespace thinwire
