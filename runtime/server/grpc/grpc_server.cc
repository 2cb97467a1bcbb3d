#include "runtime/server/grpc/grpc_server.h"

#include <grpc/support/log.h>
#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/grpcpp.h>
#include <grpcpp/health_check_service_interface.h>
#include <grpcpp/security/tls_certificate_provider.h>
#include <grpcpp/security/tls_credentials_options.h>

#include <algorithm>
#include <chrono>
#include <mutex>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "kernels/core/status_macros.h"
#include "runtime/server/connection.h"
#include "runtime/server/grpc/control_service.h"
#include "runtime/server/grpc/inference_service.h"
#include "runtime/server/grpc/notifier.h"

namespace thinwire {
namespace {

constexpr unsigned kCertificateRefreshSeconds = 10;
constexpr int kMaxMetadataBytes = 16 << 10;
// Between the last answer and the end of its connection: nginx 1.22 may take an answer that it
// finds together with the end for one that was cut off.
constexpr absl::Duration kLinger = absl::Milliseconds(50);

std::shared_ptr<grpc::ServerCredentials> Credentials(const GrpcOptions& options) {
  if (options.tls_cert.empty()) return grpc::InsecureServerCredentials();
  using grpc::experimental::FileWatcherCertificateProvider;
  using grpc::experimental::TlsServerCredentialsOptions;
  TlsServerCredentialsOptions tls(std::make_shared<FileWatcherCertificateProvider>(
      options.tls_key, options.tls_cert, options.tls_client_ca, kCertificateRefreshSeconds));
  tls.watch_identity_key_cert_pairs();
  if (!options.tls_client_ca.empty()) {
    tls.watch_root_certs();
    tls.set_cert_request_type(GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY);
  }
  return grpc::experimental::TlsServerCredentials(tls);
}

struct Listener {
  std::unique_ptr<grpc::Server> server;
  std::string address;
  int port = 0;
};

absl::StatusOr<Listener> Listen(const std::string& address, grpc::Service* service,
                                const GrpcOptions& options) {
  grpc::ServerBuilder builder;
  int port = 0;
  builder.AddListeningPort(address, Credentials(options), &port);
  builder.RegisterService(service);
  builder.SetMaxReceiveMessageSize(options.max_message_bytes);
  builder.AddChannelArgument(GRPC_ARG_MAX_METADATA_SIZE, kMaxMetadataBytes);
  builder.AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS, options.max_streams);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, 30000);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 10000);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 10000);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MAX_PING_STRIKES, 2);
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  Listener listener;
  listener.server = builder.BuildAndStart();
  if (listener.server == nullptr || port == 0) {
    return absl::UnavailableError(absl::StrCat("cannot listen on ", address));
  }
  listener.port = port;
  listener.address = absl::StrCat(address.substr(0, address.rfind(':')), ":", port);
  return listener;
}

}  // namespace

struct GrpcServer::Impl {
  explicit Impl(ServingCore* core) : core(core), inference(core, &notifier), control(core) {}

  ServingCore* const core;
  Notifier notifier;
  InferenceService inference;
  ControlService control;
  Listener data;
  Listener admin;
  std::mutex mutex;  // guards both servers' ends: readiness may be told meanwhile
};

GrpcServer::GrpcServer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

GrpcServer::~GrpcServer() { Stop(absl::ZeroDuration()); }

absl::StatusOr<std::unique_ptr<GrpcServer>> GrpcServer::Start(const GrpcOptions& options,
                                                              ServingCore* core) {
  grpc::EnableDefaultHealthCheckService(true);
  grpc::reflection::InitProtoReflectionServerBuilderPlugin();
  auto impl = std::make_unique<Impl>(core);
  TW_ASSIGN_OR_RETURN(impl->data, Listen(options.address, &impl->inference, options));
  TW_ASSIGN_OR_RETURN(impl->admin, Listen(options.admin_address, &impl->control, options));
  std::unique_ptr<GrpcServer> server(new GrpcServer(std::move(impl)));
  server->SetReady(false);
  return server;
}

const std::string& GrpcServer::address() const { return impl_->data.address; }
const std::string& GrpcServer::admin_address() const { return impl_->admin.address; }

void GrpcServer::SetReady(bool ready) {
  const std::lock_guard lock(impl_->mutex);
  for (const Listener* listener : {&impl_->data, &impl_->admin}) {
    if (listener->server == nullptr) continue;
    grpc::HealthCheckServiceInterface* health = listener->server->GetHealthCheckService();
    health->SetServingStatus("thinwire.v1.Inference", ready);
    health->SetServingStatus("thinwire.v1.Control", true);
  }
}

void GrpcServer::Stop(absl::Duration grace) {
  if (impl_->data.server == nullptr) return;
  const auto until = std::chrono::system_clock::now() + absl::ToChronoMilliseconds(grace);
  // Both at once: each waits for its calls.
  std::thread admin([&] {
    if (impl_->admin.server != nullptr) impl_->admin.server->Shutdown(until);
  });
  // The library ends a call that comes while it shuts down as CANCELLED, which nobody retries. So
  // nothing may come: what was sent too late ends with its connection, as UNAVAILABLE.
  gpr_set_log_function([](gpr_log_func_args*) {});  // the library would complain of what follows
  StopAccepting(impl_->data.port);
  while (impl_->core->num_calls > 0 && std::chrono::system_clock::now() < until) {
    absl::SleepFor(absl::Milliseconds(5));
  }
  std::this_thread::sleep_until(
      std::min(until, std::chrono::system_clock::now() + absl::ToChronoMilliseconds(kLinger)));
  while (StopReading(impl_->data.port) > 0 && std::chrono::system_clock::now() < until) {
    absl::SleepFor(absl::Milliseconds(5));
  }
  impl_->data.server->Shutdown(until);
  admin.join();
  const std::lock_guard lock(impl_->mutex);
  impl_->data.server = nullptr;
  impl_->admin.server = nullptr;
}

}  // namespace thinwire
