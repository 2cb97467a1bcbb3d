#include "absl/status/status.h"
#include "parallel/comm/nccl_communicator.h"

namespace thinwire {

absl::StatusOr<std::unique_ptr<Communicator>> CreateNcclCommunicator(std::unique_ptr<Communicator>,
                                                                     Device, const NcclOptions&) {
  return absl::UnimplementedError(
      "this build has no NCCL; install it and configure with -DTHINWIRE_CUDA=ON");
}

}  // namespace thinwire
