// What host this process is on, and which ways to its other processes are switched off.
#pragma once

#include <string>

namespace thinwire {

// The kernel's id of this boot: the same for processes of one host, containers included.
std::string BootId();

// BootId(), and NCCL_HOSTID, by which NCCL is told to take ranks for ranks of several hosts.
std::string HostName();

// Whether the environment has `variable`, such as NCCL_P2P_DISABLE, set to a number but 0.
bool IsSetInEnvironment(const char* variable);

}  // namespace thinwire
