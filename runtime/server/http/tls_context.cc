#include "runtime/server/http/tls_context.h"

#include <openssl/err.h>
#include <sys/stat.h>

#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/core/status_macros.h"

namespace thinwire {
namespace {

constexpr std::chrono::seconds kLook(1);

using Context = std::unique_ptr<SSL_CTX, FreeSsl>;

std::string StampOf(const TlsFiles& files) {
  std::string stamp;
  for (const std::string* file : {&files.cert, &files.key, &files.client_ca}) {
    struct stat about = {};
    if (file->empty() || stat(file->c_str(), &about) != 0) continue;
    absl::StrAppend(&stamp, about.st_ino, " ", about.st_size, " ", about.st_mtim.tv_sec, ".",
                    about.st_mtim.tv_nsec, " ");
  }
  return stamp;
}

absl::StatusOr<Context> ReadContext(const TlsFiles& files) {
  Context context(SSL_CTX_new(TLS_server_method()));
  if (context == nullptr) return absl::ResourceExhaustedError("HTTP: no memory for TLS");
  SSL_CTX_set_min_proto_version(context.get(), TLS1_2_VERSION);
  // Without one, clients that show certificates could not resume their sessions.
  constexpr unsigned char kSessions[] = "thinwire";
  SSL_CTX_set_session_id_context(context.get(), kSessions, sizeof(kSessions) - 1);
  SSL_CTX_set_options(context.get(), SSL_OP_NO_COMPRESSION | SSL_OP_NO_RENEGOTIATION);
  const bool fits =
      SSL_CTX_use_certificate_chain_file(context.get(), files.cert.c_str()) == 1 &&
      SSL_CTX_use_PrivateKey_file(context.get(), files.key.c_str(), SSL_FILETYPE_PEM) == 1 &&
      SSL_CTX_check_private_key(context.get()) == 1;
  absl::Status wrong;
  if (!fits) {
    wrong = absl::InvalidArgumentError(
        absl::StrCat("HTTP: cannot use the certificate ", files.cert, " with the key ", files.key));
  } else if (!files.client_ca.empty()) {
    if (SSL_CTX_load_verify_locations(context.get(), files.client_ca.c_str(), nullptr) == 1) {
      SSL_CTX_set_verify(context.get(), SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, nullptr);
    } else {
      wrong = absl::InvalidArgumentError(
          absl::StrCat("HTTP: cannot use the authority of clients ", files.client_ca));
    }
  }
  ERR_clear_error();
  TW_RETURN_IF_ERROR(wrong);
  return context;
}

}  // namespace

absl::StatusOr<std::unique_ptr<TlsContext>> TlsContext::Load(const TlsFiles& files, Warn warn) {
  std::unique_ptr<TlsContext> tls(new TlsContext(files, std::move(warn)));
  tls->stamp_ = StampOf(files);
  TW_ASSIGN_OR_RETURN(tls->context_, ReadContext(files));
  return tls;
}

std::unique_ptr<SSL, FreeSsl> TlsContext::NewConnection() {
  const std::lock_guard lock(mutex_);
  const auto now = std::chrono::steady_clock::now();
  if (now - looked_ >= kLook) {
    looked_ = now;
    std::string stamp = StampOf(files_);
    // Half of a pair may have been written: then the next look finds the other half.
    if (stamp != stamp_) {
      absl::StatusOr<Context> context = ReadContext(files_);
      if (context.ok()) {
        context_ = *std::move(context);
        stamp_ = std::move(stamp);
      } else if (stamp != unusable_) {
        unusable_ = std::move(stamp);
        if (warn_ != nullptr) {
          warn_(absl::StrCat(context.status().message(), "; goes on with what was read before"));
        }
      }
    }
  }
  return std::unique_ptr<SSL, FreeSsl>(SSL_new(context_.get()));
}

}  // namespace thinwire
