// The sockets of this process, which the server libraries do not show.
#pragma once

namespace thinwire {

// Connections that come in at this port are refused from now on.
void StopAccepting(int local_port);

// On all connections that came in at this port, nothing more is read; answers still go out. Idle
// ones end by it, and who has just sent a request sees the connection closed, not an answer.
// Returns how many connections there were: call it until there is none, since a library that has
// just read may notice only the next call.
int StopReading(int local_port);

// Ends all connections that came in at this port, whatever is on its way.
void HangUp(int local_port);

}  // namespace thinwire
