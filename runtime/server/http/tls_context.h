// The certificates of a listener, read again when their files change.
#pragma once

#include <openssl/ssl.h>

#include <chrono>
#include <memory>
#include <mutex>
#include <string>

#include "absl/status/statusor.h"

namespace thinwire {

struct TlsFiles {
  std::string cert, key;  // in PEM form
  std::string client_ca;  // clients must have a certificate of this one; empty: they need none
};

struct FreeSsl {
  void operator()(SSL* ssl) const { SSL_free(ssl); }
  void operator()(SSL_CTX* context) const { SSL_CTX_free(context); }
};

// Thread-safe.
class TlsContext {
 public:
  // InvalidArgument: files that are no certificate and its key.
  static absl::StatusOr<std::unique_ptr<TlsContext>> Load(const TlsFiles& files);

  // For one connection, with the certificates of now: once a second it looks whether files have
  // other sizes or times, and takes them as soon as they fit together. Null where memory ran out.
  std::unique_ptr<SSL, FreeSsl> NewConnection();

 private:
  explicit TlsContext(TlsFiles files) : files_(std::move(files)) {}

  const TlsFiles files_;
  std::mutex mutex_;   // guards what follows
  std::string stamp_;  // of the files, when they were read
  std::chrono::steady_clock::time_point looked_;
  std::unique_ptr<SSL_CTX, FreeSsl> context_;
};

}  // namespace thinwire
