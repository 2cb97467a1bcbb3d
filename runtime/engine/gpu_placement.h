// Which rank has which GPU.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "kernels/core/device.h"
#include "kernels/core/stream.h"
#include "parallel/comm/communicator.h"

namespace thinwire {

struct GpuPlace {
  std::string host;
  std::string bus_id;  // of the GPU in its host
  int index = 0;       // as the rank counts its GPUs
};

// FailedPrecondition names the first two ranks that have one GPU: NCCL wants one for each.
// places: by rank.
absl::Status CheckDistinct(absl::Span<const GpuPlace> places);

// Collective: CheckDistinct for what the ranks of `world` have, this one `device`, or the error of
// a rank whose device cannot be used; alike on all ranks.
// `host`: a stream for host memory.
absl::Status CheckGpusDistinct(Device device, Communicator& world, Stream& host);

}  // namespace thinwire
