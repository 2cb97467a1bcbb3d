#include "runtime/server/http/http_server.h"

#include <httplib.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <thread>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "kernels/core/status_macros.h"
#include "runtime/server/bearer_token.h"
#include "runtime/server/connection.h"
#include "runtime/server/hang_up_watch.h"
#include "runtime/server/http/metrics_text.h"
#include "runtime/server/http/open_sockets.h"
#include "runtime/server/http/openai_handlers.h"
#include "runtime/server/http/quick_head.h"
#include "runtime/server/http/socket_stream.h"
#include "runtime/server/http/status_page.h"
#include "runtime/server/http/tls_context.h"
#include "runtime/server/openai/openai_response.h"

namespace thinwire {
namespace {

constexpr char kJson[] = "application/json";
constexpr int kBacklog = 1024;
constexpr int kNice = 10;

// The library binds with SO_REUSEPORT, by which two servers would share a port unawares, listens
// with a backlog of five, wakes a hundred times a second for every connection, takes heads of any
// size, and reads certificates once.
class Listener final : public httplib::Server {
 public:
  // The whole answer to a request that needs no closer look; nothing: it does.
  using Refuse = std::function<std::optional<std::string>(const QuickHead& head)>;

  Listener(std::unique_ptr<TlsContext> tls, OpenSockets* sockets, Refuse refuse)
      : tls_(std::move(tls)), sockets_(sockets), refuse_(std::move(refuse)) {}

  void WidenBacklog() { ::listen(svr_sock_, kBacklog); }
  // Connections end after what they answer. The library's own stop() breaks off streams, and the
  // loop that accepts has closed the socket by itself.
  void EndConnections() { svr_sock_ = INVALID_SOCKET; }

 private:
  bool process_and_close_socket(socket_t socket) override {
    SocketStream stream(socket, {});
    std::string host;
    int port = 0;
    stream.get_remote_ip_and_port(host, port);
    sockets_->Add(host, port, socket);
    if (tls_ == nullptr || stream.Accept(tls_->NewConnection())) {
      while (svr_sock_ != INVALID_SOCKET && AnswerNext(stream)) {
      }
      stream.End();
      stream.Linger();
    }
    sockets_->Remove(host, port);
    ::shutdown(socket, SHUT_RDWR);
    ::close(socket);
    return true;
  }

  // Whether the connection goes on.
  bool AnswerNext(SocketStream& stream) {
    constexpr absl::string_view kEnd = "\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
    const SocketStream::Head head = stream.AwaitHead();
    if (head == SocketStream::Head::kWhole) {
      const std::optional<QuickHead> quick = ReadQuickHead(stream.head());
      if (quick.has_value() && quick->content_length <= payload_max_length_) {
        const std::optional<std::string> refusal = refuse_(*quick);
        if (refusal.has_value()) {
          const bool goes_on = quick->keep_alive;
          return stream.SkipRequest(quick->content_length) &&
                 stream.write(refusal->data(), refusal->size()) ==
                     static_cast<ssize_t>(refusal->size()) &&
                 goes_on;
        }
      }
      // What was not taken of a request would be read as the next one.
      const std::optional<size_t> body_bytes = ReadBodyLength(stream.head());
      const bool last = svr_sock_ == INVALID_SOCKET || !body_bytes.has_value();
      bool closed = false;
      const bool answered = process_request(stream, last, closed, nullptr);
      const bool whole = body_bytes.has_value() && stream.TookRequest(*body_bytes);
      return answered && whole && !closed && !last && !stream.said_close();
    }
    if (head == SocketStream::Head::kNone) return false;
    const char* status = head == SocketStream::Head::kTooLong
                             ? "HTTP/1.1 431 Request Header Fields Too Large"
                             : "HTTP/1.1 408 Request Timeout";
    const std::string answer = absl::StrCat(status, kEnd);
    stream.write(answer.data(), answer.size());
    return false;
  }

  const std::unique_ptr<TlsContext> tls_;  // null: none
  OpenSockets* const sockets_;
  const Refuse refuse_;
};

// Under load, most requests are refused: without the library, whose parser, tables and threads'
// wake-ups take several times what is left.
std::optional<std::string> RefuseForLackOfRoom(const QuickHead& head, ServingCore& core) {
  const bool generates = head.method == "POST" &&
                         (head.path == "/v1/completions" || head.path == "/v1/chat/completions");
  if (!generates || core.loop.state() != ServingState::kReady ||
      !CheckBearerToken(head.authorization, core.data_token).ok()) {
    return std::nullopt;
  }
  const absl::Status room = core.loop.CheckRoom();
  if (room.ok()) return std::nullopt;
  const std::string body = OpenAiErrorJson(room);
  return absl::StrCat("HTTP/1.1 429 Too Many Requests\r\nContent-Type: ", kJson,
                      "\r\nRetry-After: ", RetryAfterSeconds(room),
                      "\r\nContent-Length: ", body.size(),
                      head.keep_alive ? "\r\n" : "\r\nConnection: close\r\n", "\r\n", body);
}

void SetSocketOptions(socket_t socket) {
  const int yes = 1;
  setsockopt(socket, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof(yes));
}

}  // namespace

struct HttpServer::Impl {
  OpenSockets sockets;
  std::unique_ptr<HangUpWatch> watch;
  std::unique_ptr<Listener> server;
  ServingCore* core = nullptr;
  std::string address;
  int port = 0;
  std::thread thread;
  std::atomic<bool> ended = false;  // the thread

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
    for (const bool chat : {false, true}) {
      server->Post(chat ? "/v1/chat/completions" : "/v1/completions",
                   [this, core, chat](const Request& request, Response& out) {
                     AnswerOpenAi(request, chat, {core, &sockets, watch.get()}, out);
                   });
    }
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
  std::unique_ptr<TlsContext> tls;
  if (!options.tls_cert.empty()) {
    TW_ASSIGN_OR_RETURN(
        tls,
        TlsContext::Load({options.tls_cert, options.tls_key, options.tls_client_ca}, options.warn));
  }
  impl->server = std::make_unique<Listener>(
      std::move(tls), &impl->sockets,
      [core, openai = options.openai](const QuickHead& head) -> std::optional<std::string> {
        if (!openai) return std::nullopt;
        return RefuseForLackOfRoom(head, *core);
      });
  TW_ASSIGN_OR_RETURN(impl->watch, HangUpWatch::Start());
  impl->core = core;
  impl->AddRoutes(options, core);
  Listener& server = *impl->server;
  server.set_socket_options(SetSocketOptions);
  server.set_tcp_nodelay(true);
  server.set_payload_max_length(options.max_body_bytes);
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
  server.WidenBacklog();
  impl->address = absl::StrCat(host, ":", port);
  impl->port = port;
  impl->thread = std::thread([impl = impl.get()] {
    // Of this thread, and of all it starts: all clients wait for the engine's.
    setpriority(PRIO_PROCESS, 0, kNice);
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
  impl_->server->EndConnections();
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
