// A connection of the HTTP listener as its library reads and writes it.
#pragma once

#include <httplib.h>

#include <chrono>
#include <string>

#include "absl/strings/string_view.h"
#include "runtime/server/http/tls_context.h"

namespace thinwire {

struct SocketLimits {
  std::chrono::milliseconds idle{15000};   // between requests
  std::chrono::milliseconds head{30000};   // for a handshake; from a head's first byte to its last
  std::chrono::milliseconds stall{30000};  // without a byte, of a body or an answer
  std::chrono::milliseconds skip{30000};   // for all of a body that is refused
  std::chrono::milliseconds linger{500};   // for an answer to get through before the end
  size_t max_head_bytes = 64 << 10;        // of the request line and all fields
};

// Blocks in the kernel where the library would look every few milliseconds, and holds a request's
// head back until all of it is there, so that its size and time are bounded. Borrows the socket;
// one thread at a time.
class SocketStream final : public httplib::Stream {
 public:
  SocketStream(int socket, const SocketLimits& limits);

  // Speaks TLS from here on; false: the client does not, or has no certificate that we want.
  bool Accept(std::unique_ptr<SSL, FreeSsl> ssl);
  // Says goodbye where TLS wants that.
  void End();
  // Ends what is sent, and where the client may be sending yet, takes that for a moment: an answer
  // could be lost with a connection that is closed over unread bytes.
  void Linger();

  enum class Head { kWhole, kNone, kTooLong, kTooSlow };
  // Waits for the head of the next request. kNone: the connection ended, or was idle for too long.
  Head AwaitHead();
  // The head that AwaitHead found, up to the last line's end; until something is read.
  absl::string_view head() const;
  // Reads head and body without keeping them; false: the connection ended, or was too slow.
  bool SkipRequest(size_t body_bytes);
  // Whether what was read since AwaitHead is the head, its empty line and such a body.
  bool TookRequest(size_t body_bytes);
  // Whether an answer since AwaitHead has told the client that it is the connection's last one.
  bool said_close() const { return said_close_; }

  bool is_readable() const override;
  bool is_writable() const override;
  ssize_t read(char* out, size_t size) override;
  ssize_t write(const char* data, size_t size) override;
  void get_remote_ip_and_port(std::string& ip, int& port) const override;
  void get_local_ip_and_port(std::string& ip, int& port) const override;
  socket_t socket() const override { return socket_; }

 private:
  using Clock = std::chrono::steady_clock;

  // Waits for bytes that were not taken yet.
  bool WaitForBytes(std::chrono::milliseconds timeout) const;
  ssize_t Receive(char* out, size_t size, Clock::time_point until);
  bool Fill(Clock::time_point until);  // appends to buffer_
  // Whether a step of TLS that did not end with `result` may be tried again, once it may.
  bool AwaitTls(int result, Clock::time_point until) const;

  const int socket_;
  const SocketLimits limits_;
  std::unique_ptr<SSL, FreeSsl> ssl_;
  bool broken_ = false;  // no more TLS after a fatal error
  std::string buffer_;   // received; what was read of it ends at begin_
  size_t begin_ = 0;
  size_t head_bytes_ = 0;   // of the head that AwaitHead found, its empty line left out
  size_t taken_bytes_ = 0;  // read since AwaitHead
  bool took_all_ = true;    // of the last request
  bool said_close_ = false;
};

}  // namespace thinwire
