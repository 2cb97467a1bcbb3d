// The certificates of a listener, read again when their files change.
#pragma once

#include <openssl/ssl.h>

#include <chrono>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <utility>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

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
  // Told, by any thread, of what people should know; empty: nobody is.
  using Warn = std::function<void(absl::string_view message)>;

  // InvalidArgument: files that are no certificate and its key.
  static absl::StatusOr<std::unique_ptr<TlsContext>> Load(const TlsFiles& files, Warn warn = {});

  // For one connection, with the certificates of now: once a second it looks whether files have
  // other sizes or times, and takes them as soon as they fit together; until then it warns once of
  // each change, and goes on with what it has. Null where memory ran out.
  std::unique_ptr<SSL, FreeSsl> NewConnection();

 private:
  TlsContext(TlsFiles files, Warn warn) : files_(std::move(files)), warn_(std::move(warn)) {}

  const TlsFiles files_;
  const Warn warn_;
  std::mutex mutex_;      // guards what follows
  std::string stamp_;     // of the files, when they were read
  std::string unusable_;  // of files that were warned of
  std::chrono::steady_clock::time_point looked_;
  std::unique_ptr<SSL_CTX, FreeSsl> context_;
};

}  // namespace thinwire
