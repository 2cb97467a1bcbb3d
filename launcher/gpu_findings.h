// What `thinwire check` says of the ranks' GPUs.
#pragma once

#include <cstdint>

#include "absl/status/statusor.h"
#include "launcher/job.h"

namespace thinwire {

// One rank's, exchanged as bytes. Without a GPU for the rank, only `problem` is set.
struct GpuFindings {
  char problem[192] = {};  // empty: none
  char name[64] = {};
  char bus_id[32] = {};
  char driver[32] = {};  // "580.159.04", where the system tells
  int32_t index = 0;
  int32_t count = 0;         // that the rank sees
  int32_t peers = 0;         // others of them whose memory this one can access
  int32_t driver_cuda = 0;   // 13000: 13.0
  int32_t runtime_cuda = 0;  // likewise
  int64_t memory_bytes = 0;
  int64_t free_bytes = 0;
};

// The GPU that `--device auto` would give this rank.
GpuFindings LookAtGpu(Job& job);

// All-reduces over the GPUs of all ranks, through NCCL.
struct GpuLinkFindings {
  double small_us = 0.0;    // of 8 KiB, with the host's part
  double large_rate = 0.0;  // of 64 MiB: bytes/s of the tensor
};

// Collective. FailedPrecondition where ranks have no GPU each.
absl::StatusOr<GpuLinkFindings> MeasureGpuLinks(Job& job);

}  // namespace thinwire
