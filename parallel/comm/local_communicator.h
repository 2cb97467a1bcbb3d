// Ranks as threads of one process: the reference for the other backends, and what multi-rank tests
// use.
#pragma once

#include <memory>
#include <vector>

#include "parallel/comm/communicator.h"

namespace thinwire {

// Makes the `size` communicators of one group; communicator r belongs to the thread that plays rank
// r. They share state that the last of them frees. Host memory only.
std::vector<std::unique_ptr<Communicator>> CreateLocalCommunicators(int size);

}  // namespace thinwire
