// The sockets of this process, which the server libraries do not show.
#pragma once

#include <string>

namespace thinwire {

// A connection between two addresses: whether the client of a request that is being answered is
// still there. Numeric addresses.
class Connection {
 public:
  Connection(const std::string& remote_host, int remote_port, int local_port);

  // Whether the client has closed it, without waiting. False where it was not found.
  bool closed() const;

 private:
  int fd_ = -1;  // the library's; open as long as its handler runs
};

// Connections that come in at this port are refused from now on.
void StopAccepting(int local_port);

// On all connections that came in at this port, nothing more is read; answers still go out. Idle
// ones end by it, and who has just sent a request sees the connection closed, not an answer.
void StopReading(int local_port);

// Ends all connections that came in at this port, whatever is on its way.
void HangUp(int local_port);

}  // namespace thinwire
