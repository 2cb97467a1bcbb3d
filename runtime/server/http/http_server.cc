#include "runtime/server/http/http_server.h"

#include <httplib.h>

#include <atomic>
#include <nlohmann/json.hpp>
#include <thread>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "kernels/core/status_macros.h"
#include "runtime/server/bearer_token.h"
#include "runtime/server/connection.h"
#include "runtime/server/http/metrics_text.h"
#include "runtime/server/http/openai_handlers.h"
#include "runtime/server/http/status_page.h"
#include "runtime/server/openai/openai_response.h"

namespace thinwire {
namespace {

constexpr char kJson[] = "application/json";
constexpr int kBacklog = 1024;

// The library binds with SO_REUSEPORT, by which two servers would share a port unawares, and
// listens with a backlog of five.
template <typename Base>
class Listener final : public Base {
 public:
  using Base::Base;
  void WidenBacklog() { ::listen(this->svr_sock_, kBacklog); }
  // Connections end after what they answer. The library's own stop() breaks off streams, and the
  // loop that accepts has closed the socket by itself.
  void EndConnections() { this->svr_sock_ = INVALID_SOCKET; }
};

void SetSocketOptions(socket_t socket) {
  const int yes = 1;
  setsockopt(socket, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof(yes));
}

}  // namespace

struct HttpServer::Impl {
  std::unique_ptr<httplib::Server> server;
  ServingCore* core = nullptr;
  std::function<void()> widen_backlog;
  std::function<void()> end_connections;
  std::string address;
  int port = 0;
  std::thread thread;
  std::atomic<bool> ended = false;  // the thread

  template <typename Base, typename... Args>
  void Make(Args... args) {
    auto listener = std::make_unique<Listener<Base>>(args...);
    widen_backlog = [listener = listener.get()] { listener->WidenBacklog(); };
    end_connections = [listener = listener.get()] { listener->EndConnections(); };
    server = std::move(listener);
  }

  void AddRoutes(const HttpOptions& options, ServingCore* core);
};

void HttpServer::Impl::AddRoutes(const HttpOptions& options, ServingCore* core) {
  using httplib::Request;
  using httplib::Response;
  server->Get("/livez",
              [](const Request&, Response& out) { out.set_content("ok\n", "text/plain"); });
  server->Get("/readyz", [core](const Request&, Response& out) {
    const ServingLoad load = core->loop.load();
    const bool ready = load.state == ServingState::kReady;
    out.status = ready ? 200 : 503;
    out.set_content(
        absl::StrCat(ServingStateName(load.state), ready ? "" : " ", load.progress, "\n"),
        "text/plain");
  });
  server->Get("/metrics", [core, vllm = options.vllm_metrics](const Request&, Response& out) {
    out.set_content(MetricsText(*core, vllm), "text/plain; version=0.0.4");
  });
  server->Get("/version", [core](const Request&, Response& out) {
    out.set_content(nlohmann::json{{"version", core->version}}.dump(), kJson);
  });
  server->Get("/status",
              [core](const Request&, Response& out) { out.set_content(StatusJson(*core), kJson); });
  server->Get("/", [](const Request&, Response& out) {
    out.set_content(StatusPage(), "text/html; charset=utf-8");
  });
  server->set_pre_routing_handler([core](const Request& request, Response& out) {
    if (request.path.rfind("/v1/", 0) != 0) return httplib::Server::HandlerResponse::Unhandled;
    const absl::Status allowed =
        CheckBearerToken(request.get_header_value("Authorization"), core->data_token);
    if (allowed.ok()) return httplib::Server::HandlerResponse::Unhandled;
    out.set_header("Connection", "close");  // its body is not read
    AnswerError(allowed, out);
    return httplib::Server::HandlerResponse::Handled;
  });
  if (options.openai) {
    const int64_t created = absl::ToUnixSeconds(absl::Now());
    server->Get("/v1/models", [core, created](const Request&, Response& out) {
      out.set_content(OpenAiModelsJson(core->model, created), kJson);
    });
    server->Post("/v1/completions", [core](const Request& request, Response& out) {
      AnswerOpenAi(request, /*chat=*/false, *core, out);
    });
    server->Post("/v1/chat/completions", [core](const Request& request, Response& out) {
      AnswerOpenAi(request, /*chat=*/true, *core, out);
    });
  }
  // Clients with a connection to keep are to take the next one to another replica.
  server->set_post_routing_handler([core](const Request&, Response& out) {
    const ServingState state = core->loop.state();
    if (state != ServingState::kReady && state != ServingState::kStarting) {
      out.set_header("Connection", "close");
    }
  });
  server->set_error_handler([](const Request& request, Response& out) {
    if (!out.body.empty()) return;
    std::string what = absl::StrCat("HTTP error ", out.status);
    if (out.status == 404) what = absl::StrCat("no ", request.method, " ", request.path);
    if (out.status == 413) what = "the body is too long";
    if (out.status >= 500) what = "an error of the server";
    out.set_content(OpenAiErrorJson(out.status, what), kJson);
  });
}

HttpServer::HttpServer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

HttpServer::~HttpServer() { Stop(absl::InfinitePast()); }

absl::StatusOr<std::unique_ptr<HttpServer>> HttpServer::Start(const HttpOptions& options,
                                                              ServingCore* core) {
  auto impl = std::make_unique<Impl>();
  if (options.tls_cert.empty()) {
    impl->Make<httplib::Server>();
  } else {
    const char* ca = options.tls_client_ca.empty() ? nullptr : options.tls_client_ca.c_str();
    impl->Make<httplib::SSLServer>(options.tls_cert.c_str(), options.tls_key.c_str(), ca);
    if (!impl->server->is_valid()) {
      return absl::InvalidArgumentError(absl::StrCat("HTTP: cannot use the certificate ",
                                                     options.tls_cert, " with the key ",
                                                     options.tls_key));
    }
  }
  impl->core = core;
  impl->AddRoutes(options, core);
  httplib::Server& server = *impl->server;
  server.set_socket_options(SetSocketOptions);
  server.set_tcp_nodelay(true);
  server.set_payload_max_length(options.max_body_bytes);
  server.set_read_timeout(30);
  server.set_write_timeout(30);  // a client that reads nothing for so long is given up
  server.set_keep_alive_timeout(15);
  server.set_keep_alive_max_count(1 << 20);
  server.new_task_queue = [count = options.num_threads] { return new httplib::ThreadPool(count); };
  const size_t colon = options.address.rfind(':');
  int port = 0;
  if (colon == std::string::npos || !absl::SimpleAtoi(options.address.substr(colon + 1), &port) ||
      port < 0 || port > 65535) {
    return absl::InvalidArgumentError(
        absl::StrCat("HTTP address '", options.address, "'; expected HOST:PORT"));
  }
  const std::string host = options.address.substr(0, colon);
  const bool bound =
      port == 0 ? (port = server.bind_to_any_port(host)) > 0 : server.bind_to_port(host, port);
  if (!bound) return absl::UnavailableError(absl::StrCat("cannot listen on ", options.address));
  impl->widen_backlog();
  impl->address = absl::StrCat(host, ":", port);
  impl->port = port;
  impl->thread = std::thread([impl = impl.get()] {
    impl->server->listen_after_bind();
    impl->ended = true;
  });
  return std::unique_ptr<HttpServer>(new HttpServer(std::move(impl)));
}

const std::string& HttpServer::address() const { return impl_->address; }

void HttpServer::Stop(absl::Time until) {
  if (!impl_->thread.joinable()) return;
  StopAccepting(impl_->port);  // which ends the library's loop
  while (impl_->core->num_exchanges > 0 && absl::Now() < until) {
    absl::SleepFor(absl::Milliseconds(5));
  }
  impl_->end_connections();
  while (!impl_->ended) {
    if (absl::Now() < until) {
      StopReading(impl_->port);
    } else {
      HangUp(impl_->port);
    }
    absl::SleepFor(absl::Milliseconds(10));
  }
  impl_->thread.join();
}

}  // namespace thinwire
