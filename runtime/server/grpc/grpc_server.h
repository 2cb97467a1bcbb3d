// The gRPC listeners of a server: one for clients, one for administrators.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "runtime/server/serving_core.h"

namespace thinwire {

struct GrpcOptions {
  std::string address;        // HOST:PORT for Inference; port 0: any free one
  std::string admin_address;  // for Control
  // Files in PEM form; empty: no TLS. They are read again when they change. With a client CA,
  // clients must have a certificate that it signed.
  std::string tls_cert, tls_key, tls_client_ca;
  int max_message_bytes = 16 << 20;
  int max_streams = 4096;  // of a connection
};

// Both listeners have grpc.health.v1.Health and reflection. The health of "" is that the process
// lives; that of "thinwire.v1.Inference" that it takes requests.
class GrpcServer {
 public:
  // Listens; takes requests at once (and refuses them while the loop does). Unavailable: an address
  // that cannot be bound. `core` is borrowed.
  static absl::StatusOr<std::unique_ptr<GrpcServer>> Start(const GrpcOptions& options,
                                                           ServingCore* core);
  ~GrpcServer();

  // HOST:PORT, as bound.
  const std::string& address() const;
  const std::string& admin_address() const;

  // What health answers, and tells those that watch it. Any thread, also during and after Stop.
  void SetReady(bool ready);

  // Takes no new calls; ends those that are left after `grace`. Returns when all have ended.
  void Stop(absl::Duration grace);

 private:
  struct Impl;
  explicit GrpcServer(std::unique_ptr<Impl> impl);

  std::unique_ptr<Impl> impl_;
};

}  // namespace thinwire
