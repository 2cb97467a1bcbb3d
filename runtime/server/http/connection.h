// Whether the client of a request that is being answered is still there.
#pragma once

#include <string>

namespace thinwire {

// The connection of this process between two addresses. cpp-httplib does not show its sockets to
// handlers, so it is looked up among the process's own. Numeric addresses, as the library has them.
class Connection {
 public:
  Connection(const std::string& remote_host, int remote_port, int local_port);

  // Whether the client has closed it, without waiting. False where it was not found.
  bool closed() const;

 private:
  int fd_ = -1;  // the library's; open as long as its handler runs
};

}  // namespace thinwire
