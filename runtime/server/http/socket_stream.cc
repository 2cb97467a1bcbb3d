#include "runtime/server/http/socket_stream.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <openssl/err.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/time.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"

namespace thinwire {
namespace {

using std::chrono::milliseconds;

constexpr size_t kReceive = 16 << 10;
constexpr size_t kEmptyLine = 2;

void SetTimeout(int socket, int option, milliseconds timeout) {
  const timeval value = {.tv_sec = timeout.count() / 1000,
                         .tv_usec = timeout.count() % 1000 * 1000};
  setsockopt(socket, SOL_SOCKET, option, &value, sizeof(value));
}

bool Poll(int socket, short events, milliseconds timeout) {
  pollfd wanted = {.fd = socket, .events = events, .revents = 0};
  const auto until = std::chrono::steady_clock::now() + timeout;
  while (true) {
    const auto left = std::chrono::ceil<milliseconds>(until - std::chrono::steady_clock::now());
    const int found =
        poll(&wanted, 1, static_cast<int>(std::max<milliseconds::rep>(left.count(), 0)));
    if (found >= 0 || errno != EINTR) return found > 0;
  }
}

void Describe(const sockaddr_storage& address, std::string& ip, int& port) {
  char text[INET6_ADDRSTRLEN] = {};
  if (address.ss_family == AF_INET) {
    const auto& v4 = reinterpret_cast<const sockaddr_in&>(address);
    inet_ntop(AF_INET, &v4.sin_addr, text, sizeof(text));
    port = ntohs(v4.sin_port);
  } else if (address.ss_family == AF_INET6) {
    const auto& v6 = reinterpret_cast<const sockaddr_in6&>(address);
    inet_ntop(AF_INET6, &v6.sin6_addr, text, sizeof(text));
    port = ntohs(v6.sin6_port);
  }
  ip = text;
}

}  // namespace

SocketStream::SocketStream(int socket, const SocketLimits& limits)
    : socket_(socket), limits_(limits) {
  SetTimeout(socket, SO_RCVTIMEO, limits.stall);
  SetTimeout(socket, SO_SNDTIMEO, limits.stall);
}

bool SocketStream::Accept(std::unique_ptr<SSL, FreeSsl> ssl) {
  if (ssl == nullptr || SSL_set_fd(ssl.get(), socket_) != 1) return false;
  // A record comes in pieces: blocking calls would wait for each of them anew.
  const int flags = fcntl(socket_, F_GETFL);
  if (flags < 0 || fcntl(socket_, F_SETFL, flags | O_NONBLOCK) != 0) return false;
  ssl_ = std::move(ssl);
  const Clock::time_point until = Clock::now() + limits_.head;
  int result = 0;
  do {
    ERR_clear_error();
    result = SSL_accept(ssl_.get());
  } while (result != 1 && AwaitTls(result, until));
  broken_ = result != 1;
  ERR_clear_error();
  return !broken_;
}

bool SocketStream::AwaitTls(int result, Clock::time_point until) const {
  const int error = SSL_get_error(ssl_.get(), result);
  if (error != SSL_ERROR_WANT_READ && error != SSL_ERROR_WANT_WRITE) return false;
  const auto left = std::chrono::ceil<milliseconds>(until - Clock::now());
  return left.count() > 0 && Poll(socket_, error == SSL_ERROR_WANT_READ ? POLLIN : POLLOUT, left);
}

void SocketStream::End() {
  if (ssl_ == nullptr || broken_) return;
  SSL_shutdown(ssl_.get());
  ERR_clear_error();
}

void SocketStream::Linger() {
  if (took_all_) return;
  shutdown(socket_, SHUT_WR);
  const Clock::time_point until = Clock::now() + limits_.linger;
  char unread[kReceive];
  while (true) {
    const auto left = std::chrono::duration_cast<milliseconds>(until - Clock::now());
    if (left.count() <= 0 || !Poll(socket_, POLLIN, left)) return;
    if (recv(socket_, unread, sizeof(unread), MSG_DONTWAIT) <= 0) return;
  }
}

bool SocketStream::WaitForBytes(milliseconds timeout) const {
  if (ssl_ != nullptr && SSL_pending(ssl_.get()) > 0) return true;
  return Poll(socket_, POLLIN, timeout);
}

ssize_t SocketStream::Receive(char* out, size_t size, Clock::time_point until) {
  if (broken_) return -1;
  if (ssl_ == nullptr) {
    ssize_t count = 0;
    do {
      count = recv(socket_, out, size, 0);
    } while (count < 0 && errno == EINTR);
    return count;
  }
  size_t count = 0;
  while (true) {
    ERR_clear_error();
    const int result = SSL_read_ex(ssl_.get(), out, size, &count);
    if (result == 1) return static_cast<ssize_t>(count);
    if (AwaitTls(result, until)) continue;
    const bool ended = SSL_get_error(ssl_.get(), result) == SSL_ERROR_ZERO_RETURN;
    broken_ = !ended;
    ERR_clear_error();
    return ended ? 0 : -1;
  }
}

bool SocketStream::Fill(Clock::time_point until) {
  if (begin_ == buffer_.size()) {
    buffer_.clear();
    begin_ = 0;
  }
  const size_t old_size = buffer_.size();
  buffer_.resize(old_size + kReceive);
  const ssize_t count = Receive(buffer_.data() + old_size, kReceive, until);
  buffer_.resize(old_size + static_cast<size_t>(std::max<ssize_t>(count, 0)));
  return count > 0;
}

SocketStream::Head SocketStream::AwaitHead() {
  buffer_.erase(0, begin_);  // what came along with the last request
  begin_ = 0;
  taken_bytes_ = 0;
  took_all_ = true;
  said_close_ = false;
  if (buffer_.empty() && !WaitForBytes(limits_.idle)) return Head::kNone;
  const Clock::time_point until = Clock::now() + limits_.head;
  if (buffer_.empty() && !Fill(until)) return Head::kNone;
  took_all_ = false;
  size_t searched = 0;
  while (true) {
    // The empty line at the end of a head; its length may not hide in one that never ends.
    const size_t end = buffer_.find("\n\r\n", searched);
    if (std::min(end, buffer_.size()) > limits_.max_head_bytes) return Head::kTooLong;
    if (end != std::string::npos) {
      head_bytes_ = end + 1;
      return Head::kWhole;
    }
    searched = buffer_.size() - std::min<size_t>(buffer_.size(), 2);
    const auto left = std::chrono::duration_cast<milliseconds>(until - Clock::now());
    if (left.count() <= 0 || !WaitForBytes(left)) return Head::kTooSlow;
    if (!Fill(until)) return Head::kNone;
  }
}

absl::string_view SocketStream::head() const {
  return absl::string_view(buffer_).substr(begin_, head_bytes_);
}

bool SocketStream::SkipRequest(size_t body_bytes) {
  size_t left = head_bytes_ + kEmptyLine + body_bytes;
  const Clock::time_point until = Clock::now() + limits_.skip;
  while (true) {
    const size_t count = std::min(left, buffer_.size() - begin_);
    begin_ += count;
    left -= count;
    if (left == 0) break;
    const auto time = std::chrono::duration_cast<milliseconds>(until - Clock::now());
    if (time.count() <= 0 || !WaitForBytes(time) || !Fill(until)) return false;
  }
  took_all_ = true;
  return true;
}

bool SocketStream::TookRequest(size_t body_bytes) {
  took_all_ = taken_bytes_ == head_bytes_ + kEmptyLine + body_bytes;
  return took_all_;
}

bool SocketStream::is_readable() const {
  return begin_ < buffer_.size() || (!broken_ && WaitForBytes(limits_.stall));
}

bool SocketStream::is_writable() const { return !broken_ && Poll(socket_, POLLOUT, limits_.stall); }

ssize_t SocketStream::read(char* out, size_t size) {
  const Clock::time_point until = Clock::now() + limits_.stall;
  if (begin_ == buffer_.size()) {
    if (size >= kReceive) {
      const ssize_t count = Receive(out, size, until);
      taken_bytes_ += static_cast<size_t>(std::max<ssize_t>(count, 0));
      return count;
    }
    if (!Fill(until)) return -1;
  }
  const size_t count = std::min(size, buffer_.size() - begin_);
  std::memcpy(out, buffer_.data() + begin_, count);
  begin_ += count;
  taken_bytes_ += count;
  return static_cast<ssize_t>(count);
}

ssize_t SocketStream::write(const char* data, size_t size) {
  if (broken_) return -1;
  // The library writes an answer's head at once.
  const absl::string_view text(data, size);
  if (absl::StartsWith(text, "HTTP/1.1 ")) {
    const absl::string_view head = text.substr(0, text.find("\r\n\r\n"));
    said_close_ |= absl::StrContains(absl::StrCat(head, "\r\n"), "\r\nConnection: close\r\n");
  }
  if (ssl_ == nullptr) {
    ssize_t count = 0;
    do {
      count = send(socket_, data, size, MSG_NOSIGNAL);
    } while (count < 0 && errno == EINTR);
    return count;
  }
  size_t count = 0;
  while (size > 0) {
    ERR_clear_error();
    const int result = SSL_write_ex(ssl_.get(), data, size, &count);
    if (result == 1) break;
    if (AwaitTls(result, Clock::now() + limits_.stall)) continue;
    broken_ = true;
    ERR_clear_error();
    return -1;
  }
  return static_cast<ssize_t>(count);
}

void SocketStream::get_remote_ip_and_port(std::string& ip, int& port) const {
  sockaddr_storage address = {};
  socklen_t size = sizeof(address);
  if (getpeername(socket_, reinterpret_cast<sockaddr*>(&address), &size) == 0) {
    Describe(address, ip, port);
  }
}

void SocketStream::get_local_ip_and_port(std::string& ip, int& port) const {
  sockaddr_storage address = {};
  socklen_t size = sizeof(address);
  if (getsockname(socket_, reinterpret_cast<sockaddr*>(&address), &size) == 0) {
    Describe(address, ip, port);
  }
}

}  // namespace thinwire
