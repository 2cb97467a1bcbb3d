// Memory that kernels on several GPUs of one host write: what fused collectives push through.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "kernels/core/buffer.h"
#include "kernels/core/device.h"
#include "kernels/core/pinned_buffer.h"
#include "kernels/core/stream.h"
#include "parallel/comm/communicator.h"
#include "parallel/comm/shared_segment.h"

namespace thinwire {

inline constexpr int kMostPeerRanks = 8;
inline constexpr int kMostPeerBlocks = 1024;  // of a kernel that signals through peer memory

// What a kernel gets: addresses as this GPU sees them. By value.
//
// Each rank's memory, on its GPU or on the host, has for every other rank a row of signals, two
// mailboxes (of values that carry their own marks) and two rooms (announced by signals). A kernel
// takes the mailbox or room of its epoch's parity. Epochs are counted on the GPU, one for each
// kernel, so that kernels can be replayed in graphs.
//
// Why two are enough: kernel e + 2 of rank a writes where b read in its kernel e. a's kernel e + 1
// has ended by then, for which it has waited for signals or marks that b's kernel e + 1 gave; and
// that began after b's kernel e had ended, since kernels of one stream follow each other (one that
// starts early waits for those ahead before it touches any of this). So every kernel waits for
// every other rank at least once, whether or not there is anything to receive.
struct PeerView {
  std::byte* base[kMostPeerRanks];  // of rank r's memory
  std::byte* counters;              // this GPU's own
  uint32_t* host_words;  // [0]: the silent rank + 1, written by kernels; [1]: not 0: kernels stop
  uint64_t timeout_ns;   // of one wait
  int64_t mailbox_bytes;
  int64_t room_bytes;
  int rank;
  int size;
  bool through_host;  // the memory is the host's: far away, and signals wait for busy links

  // Of the counters.
  static constexpr int64_t kEpoch = 0;  // uint64: kernels that have ended
  static constexpr int64_t kEnded = 8;  // uint32: blocks of the running kernel that have
  // In a rank's memory.
  static constexpr int64_t kSignals = 4096;  // uint64 [kMostPeerRanks][kMostPeerBlocks]
  static constexpr int64_t kMailboxes = int64_t{128} << 10;
};

// Owned by a communicator. Kernels that use it are enqueued by all ranks in the same order with the
// same grids, on streams that order them. Their waits are bounded: a rank that is silent for the
// timeout ends them, with any results, and status() says so.
class PeerMemory {
 public:
  // What a rank takes, of its GPU or of the host, for 2 ranks and more.
  static constexpr int64_t kDeviceBytes = PeerView::kMailboxes + (int64_t{72} << 20);
  static constexpr int64_t kHostBytes = PeerView::kMailboxes + (int64_t{26} << 20);

  // Collective over `control`, a communicator for host memory with the same ranks, which must
  // outlive this: either all ranks obtain their part or all the same error. The memory is that of
  // the GPUs where each can write to the others'; else pages of the host that all processes map.
  // FailedPrecondition says why neither: ranks on several hosts or with a GPU in common, more than
  // kMostPeerRanks, no access and no shared memory. NCCL_P2P_DISABLE=1 and NCCL_SHM_DISABLE=1 hold
  // for these ways, too; ranks with different NCCL_HOSTIDs count as of different hosts.
  static absl::StatusOr<std::unique_ptr<PeerMemory>> Create(Communicator& control, Stream& host,
                                                            Device device);

  // Collective, like Create.
  ~PeerMemory();
  PeerMemory(const PeerMemory&) = delete;
  PeerMemory& operator=(const PeerMemory&) = delete;

  int rank() const { return view_.rank; }
  int size() const { return view_.size; }
  // Multiprocessors of the smallest GPU: grids that fit there fit everywhere.
  int num_multiprocessors() const { return num_multiprocessors_; }
  // Bytes that one rank can send another in one kernel.
  int64_t mailbox_bytes() const { return view_.mailbox_bytes; }
  int64_t room_bytes() const { return view_.room_bytes; }

  // Whether it is the host's.
  bool through_host() const { return view_.through_host; }

  // For a kernel whose waits end after the communicator's timeout.
  PeerView view() const;

  // DeadlineExceeded once a kernel has given up waiting.
  absl::Status status() const;
  // Ends kernels that wait, soon.
  void Stop();

  // Payload that kernels have sent to others, as the caller of each says.
  void CountSent(int64_t bytes) { bytes_sent_ += bytes; }
  int64_t bytes_sent() const { return bytes_sent_; }

 private:
  struct Introduction;

  PeerMemory(Communicator& control, Device device, bool through_host)
      : control_(&control), device_(device) {
    view_.through_host = through_host;
  }
  absl::Status Join(Stream& host);
  // This rank's memory, and what the others need to find it.
  absl::Status Offer(Introduction& mine);
  // Rank r's.
  absl::Status Map(int r, const Introduction& mine, const Introduction& theirs);
  // A segment's address on the GPU.
  absl::StatusOr<std::byte*> Register(const SharedSegment& segment);

  Communicator* control_;
  Device device_;
  Buffer counters_;
  std::vector<SharedSegment> segments_;  // of each rank, where they are the host's
  PinnedBuffer words_;
  PeerView view_ = {};
  int num_multiprocessors_ = 0;
  int64_t bytes_sent_ = 0;
};

}  // namespace thinwire
