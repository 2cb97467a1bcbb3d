#include "runtime/server/connection.h"

#include <netinet/in.h>
#include <sys/socket.h>

#include <cstdlib>
#include <filesystem>
#include <system_error>

#include "absl/functional/function_ref.h"

namespace thinwire {
namespace {

// -1 where `fd` is no socket of the Internet.
int PortOf(int fd, int (*name)(int, sockaddr*, socklen_t*)) {
  sockaddr_storage address = {};
  socklen_t size = sizeof(address);
  if (name(fd, reinterpret_cast<sockaddr*>(&address), &size) != 0) return -1;
  if (address.ss_family == AF_INET) return ntohs(reinterpret_cast<sockaddr_in&>(address).sin_port);
  if (address.ss_family == AF_INET6) {
    return ntohs(reinterpret_cast<sockaddr_in6&>(address).sin6_port);
  }
  return -1;
}

// Whether it is a connection that came in at this port.
bool CameIn(int fd, int local_port) {
  return PortOf(fd, getsockname) == local_port && PortOf(fd, getpeername) >= 0;
}

// Calls `use` with each descriptor of this process.
void ForEachDescriptor(absl::FunctionRef<void(int fd)> use) {
  std::error_code error;
  for (std::filesystem::directory_iterator it("/proc/self/fd", error), end; !error && it != end;
       it.increment(error)) {
    use(std::atoi(it->path().filename().c_str()));
  }
}

}  // namespace

void StopAccepting(int local_port) {
  ForEachDescriptor([&](int fd) {
    int listens = 0;
    socklen_t size = sizeof(listens);
    if (PortOf(fd, getsockname) == local_port &&
        getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listens, &size) == 0 && listens != 0) {
      shutdown(fd, SHUT_RD);
    }
  });
}

int StopReading(int local_port) {
  int count = 0;
  ForEachDescriptor([&](int fd) {
    if (!CameIn(fd, local_port)) return;
    shutdown(fd, SHUT_RD);
    ++count;
  });
  return count;
}

void HangUp(int local_port) {
  ForEachDescriptor([&](int fd) {
    if (CameIn(fd, local_port)) shutdown(fd, SHUT_RDWR);
  });
}

}  // namespace thinwire
