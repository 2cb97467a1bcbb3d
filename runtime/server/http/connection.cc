#include "runtime/server/http/connection.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <cerrno>
#include <cstdlib>
#include <filesystem>
#include <system_error>

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

bool Joins(int fd, const std::string& remote_host, int remote_port, int local_port) {
  sockaddr_storage address = {};
  socklen_t size = sizeof(address);
  if (getpeername(fd, reinterpret_cast<sockaddr*>(&address), &size) != 0) return false;
  const Peer peer = Describe(address);
  if (peer.port != remote_port || peer.host != remote_host) return false;
  size = sizeof(address);
  return getsockname(fd, reinterpret_cast<sockaddr*>(&address), &size) == 0 &&
         Describe(address).port == local_port;
}

}  // namespace

Connection::Connection(const std::string& remote_host, int remote_port, int local_port) {
  std::error_code error;
  for (std::filesystem::directory_iterator it("/proc/self/fd", error), end; !error && it != end;
       it.increment(error)) {
    const int fd = std::atoi(it->path().filename().c_str());
    if (Joins(fd, remote_host, remote_port, local_port)) {
      fd_ = fd;
      return;
    }
  }
}

bool Connection::closed() const {
  if (fd_ < 0) return false;
  char byte = 0;
  const ssize_t count = recv(fd_, &byte, 1, MSG_PEEK | MSG_DONTWAIT);
  return count == 0 || (count < 0 && errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR);
}

}  // namespace thinwire
