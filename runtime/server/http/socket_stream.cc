#include "runtime/server/http/socket_stream.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <openssl/err.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/time.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

namespace thinwire {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

constexpr size_t kReceive = 16 << 10;

void SetTimeout(int socket, int option, milliseconds timeout) {
  const timeval value = {.tv_sec = timeout.count() / 1000,
                         .tv_usec = timeout.count() % 1000 * 1000};
  setsockopt(socket, SOL_SOCKET, option, &value, sizeof(value));
}

bool Poll(int socket, short events, milliseconds timeout) {
  pollfd wanted = {.fd = socket, .events = events, .revents = 0};
  const Clock::time_point until = Clock::now() + timeout;
  while (true) {
    const auto left = std::chrono::ceil<milliseconds>(until - Clock::now());
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
  ssl_ = std::move(ssl);
  broken_ = SSL_accept(ssl_.get()) != 1;
  if (broken_) ERR_clear_error();
  return !broken_;
}

void SocketStream::End() {
  if (ssl_ == nullptr || broken_) return;
  SSL_shutdown(ssl_.get());
  ERR_clear_error();
}

bool SocketStream::WaitForBytes(milliseconds timeout) const {
  if (ssl_ != nullptr && SSL_pending(ssl_.get()) > 0) return true;
  return Poll(socket_, POLLIN, timeout);
}

ssize_t SocketStream::Receive(char* out, size_t size) {
  if (broken_) return -1;
  if (ssl_ == nullptr) {
    ssize_t count = 0;
    do {
      count = recv(socket_, out, size, 0);
    } while (count < 0 && errno == EINTR);
    return count;
  }
  size_t count = 0;
  if (SSL_read_ex(ssl_.get(), out, size, &count) == 1) return static_cast<ssize_t>(count);
  const bool ended = SSL_get_error(ssl_.get(), 0) == SSL_ERROR_ZERO_RETURN;
  broken_ = !ended;
  ERR_clear_error();
  return ended ? 0 : -1;
}

bool SocketStream::Fill() {
  if (begin_ == buffer_.size()) {
    buffer_.clear();
    begin_ = 0;
  }
  const size_t old_size = buffer_.size();
  buffer_.resize(old_size + kReceive);
  const ssize_t count = Receive(buffer_.data() + old_size, kReceive);
  buffer_.resize(old_size + static_cast<size_t>(std::max<ssize_t>(count, 0)));
  return count > 0;
}

SocketStream::Head SocketStream::AwaitHead() {
  buffer_.erase(0, begin_);  // what came along with the last request
  begin_ = 0;
  if (buffer_.empty() && (!WaitForBytes(limits_.idle) || !Fill())) return Head::kNone;
  const Clock::time_point until = Clock::now() + limits_.head;
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
    if (!Fill()) return Head::kNone;
  }
}

absl::string_view SocketStream::head() const {
  return absl::string_view(buffer_).substr(begin_, head_bytes_);
}

bool SocketStream::SkipRequest(size_t body_bytes) {
  constexpr size_t kEmptyLine = 2;
  size_t left = head_bytes_ + kEmptyLine + body_bytes;
  while (true) {
    const size_t count = std::min(left, buffer_.size() - begin_);
    begin_ += count;
    left -= count;
    if (left == 0) return true;
    if (!Fill()) return false;
  }
}

bool SocketStream::is_readable() const {
  return begin_ < buffer_.size() || (!broken_ && WaitForBytes(limits_.stall));
}

bool SocketStream::is_writable() const { return !broken_ && Poll(socket_, POLLOUT, limits_.stall); }

ssize_t SocketStream::read(char* out, size_t size) {
  if (begin_ == buffer_.size()) {
    if (size >= kReceive) return Receive(out, size);
    if (!Fill()) return -1;
  }
  const size_t count = std::min(size, buffer_.size() - begin_);
  std::memcpy(out, buffer_.data() + begin_, count);
  begin_ += count;
  return static_cast<ssize_t>(count);
}

ssize_t SocketStream::write(const char* data, size_t size) {
  if (broken_) return -1;
  if (ssl_ == nullptr) {
    ssize_t count = 0;
    do {
      count = send(socket_, data, size, MSG_NOSIGNAL);
    } while (count < 0 && errno == EINTR);
    return count;
  }
  size_t count = 0;
  if (size == 0 || SSL_write_ex(ssl_.get(), data, size, &count) == 1) {
    return static_cast<ssize_t>(count);
  }
  broken_ = true;
  ERR_clear_error();
  return -1;
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
