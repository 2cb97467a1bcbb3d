#include "runtime/server/connection.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>

#include <cstdlib>
#include <filesystem>
#include <system_error>

#include "absl/functional/function_ref.h"

namespace thinwire {
namespace {

struct Peer {
  std::string host;
  int port = -1;
};

Peer Describe(const sockaddr_storage& address) {
  char host[INET6_ADDRSTRLEN] = {};
  if (address.ss_family == AF_INET) {
    const auto& ip = reinterpret_cast<const sockaddr_in&>(address);
    inet_ntop(AF_INET, &ip.sin_addr, host, sizeof(host));
    return {host, ntohs(ip.sin_port)};
  }
  if (address.ss_family == AF_INET6) {
    const auto& ip = reinterpret_cast<const sockaddr_in6&>(address);
    inet_ntop(AF_INET6, &ip.sin6_addr, host, sizeof(host));
    return {host, ntohs(ip.sin6_port)};
  }
  return {};
}

int LocalPort(int fd) {
  sockaddr_storage address = {};
  socklen_t size = sizeof(address);
  const bool found = getsockname(fd, reinterpret_cast<sockaddr*>(&address), &size) == 0;
  return found ? Describe(address).port : -1;
}

// The other end of a connection that came in at `local_port`; port -1 where `fd` is none.
Peer PeerOf(int fd, int local_port) {
  if (LocalPort(fd) != local_port) return {};
  sockaddr_storage address = {};
  socklen_t size = sizeof(address);
  if (getpeername(fd, reinterpret_cast<sockaddr*>(&address), &size) != 0) return {};
  return Describe(address);
}

// Calls `use` with each descriptor of this process, until it returns false.
void ForEachDescriptor(absl::FunctionRef<bool(int fd)> use) {
  std::error_code error;
  for (std::filesystem::directory_iterator it("/proc/self/fd", error), end; !error && it != end;
       it.increment(error)) {
    if (!use(std::atoi(it->path().filename().c_str()))) return;
  }
}

}  // namespace

Connection::Connection(const std::string& remote_host, int remote_port, int local_port) {
  ForEachDescriptor([&](int fd) {
    const Peer peer = PeerOf(fd, local_port);
    if (peer.port != remote_port || peer.host != remote_host) return true;
    fd_ = fd;
    return false;
  });
}

void StopAccepting(int local_port) {
  ForEachDescriptor([&](int fd) {
    int listens = 0;
    socklen_t size = sizeof(listens);
    if (LocalPort(fd) == local_port &&
        getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listens, &size) == 0 && listens != 0) {
      shutdown(fd, SHUT_RD);
    }
    return true;
  });
}

void StopReading(int local_port) {
  ForEachDescriptor([&](int fd) {
    if (PeerOf(fd, local_port).port >= 0) shutdown(fd, SHUT_RD);
    return true;
  });
}

void HangUp(int local_port) {
  ForEachDescriptor([&](int fd) {
    if (PeerOf(fd, local_port).port >= 0) shutdown(fd, SHUT_RDWR);
    return true;
  });
}

bool Connection::closed() const {
  if (fd_ < 0) return false;
  // Not by reading: before the end there may be bytes that nobody reads, TLS's farewell for one.
  pollfd connection = {.fd = fd_, .events = POLLRDHUP, .revents = 0};
  return poll(&connection, 1, /*timeout=*/0) > 0 &&
         (connection.revents & (POLLRDHUP | POLLHUP | POLLERR)) != 0;
}

}  // namespace thinwire
