// What a backend of host-memory collectives provides: moving bytes among ranks. HostCommunicator
// builds all collectives on it, so every backend gives the same bits.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "absl/types/span.h"

namespace thinwire {

struct OutgoingMessage {
  int peer = 0;
  const void* data = nullptr;
  int64_t bytes = 0;
};

struct IncomingMessage {
  int peer = 0;
  void* data = nullptr;
  int64_t bytes = 0;
};

// Messages of the two channels do not mix: a Recv never takes what a collective sent.
enum class Channel { kCollective, kPointToPoint };

// Messages are delivered in order for each (sender, receiver, channel). Thread-compatible, except
// for Abort and failure(). Errors of Exchange and SendBuffered end the communicator on all of its
// ranks: the rank that detects one returns it, the others return Unavailable with its text.
class HostTransport {
 public:
  // Waits for buffered messages to leave, unless the communicator failed.
  virtual ~HostTransport() = default;

  virtual int rank() const = 0;
  virtual int size() const = 0;

  // One step of a collective: sends and receives all messages, at most one each way per peer, and
  // returns when everything has arrived and the outgoing memory may be reused. Outgoing and
  // incoming memory do not overlap. DeadlineExceeded when no message gets through for the timeout,
  // Internal when a message has another size than expected, Unavailable when the communicator was
  // aborted or a peer is gone.
  virtual absl::Status Exchange(Channel channel, absl::Span<const OutgoingMessage> outgoing,
                                absl::Span<const IncomingMessage> incoming) = 0;

  // Sends a copy, without waiting for the receiver.
  virtual absl::Status SendBuffered(Channel channel, const OutgoingMessage& message) = 0;

  // A number that this rank has not returned before. The one of rank 0 names a split for all ranks.
  virtual int64_t NewSplitId() = 0;

  // This rank's part of a new group: ranks[i] of this group is rank i of the new one, and contains
  // rank(). Waits for nobody, as all ranks of this group know `id`, `color` and `ranks` already.
  virtual absl::StatusOr<std::unique_ptr<HostTransport>> Split(int64_t id, int color,
                                                               absl::Span<const int> ranks) = 0;

  // The longest wait of Exchange and of the destructor without a message getting through.
  // HostCommunicator sets it before anything else.
  virtual void set_timeout(absl::Duration timeout) = 0;

  // As Communicator::Abort. Callable from any thread.
  virtual void Abort(const absl::Status& why) = 0;

  // The first cause of failure on this rank, or OK. Callable from any thread.
  virtual absl::Status failure() const = 0;

  // The same, after a look at what other ranks have told. Does not wait.
  virtual absl::Status PollFailure() { return failure(); }
};

}  // namespace thinwire
