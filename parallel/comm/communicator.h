// Collectives among a fixed set of ranks.
#pragma once

#include <cstdint>
#include <memory>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "kernels/core/stream.h"
#include "kernels/core/tensor_view.h"

namespace thinwire {

class PeerMemory;

enum class ReduceOp { kSum, kMax };

// Every rank of a communicator issues the same collectives in the same order with the same shapes,
// dtypes and device; p is size(). Calls enqueue on `stream`: on a GPU they return before they are
// done, on the CPU they are done when they return. All tensors are contiguous. A communicator of
// size 1 is legal, and its collectives are copies or nothing. Thread-compatible: one caller thread
// per communicator at a time.
//
// Failure. Every wait ends: when a peer makes no progress for timeout(), when Abort is called by
// any rank, or when the backend reports a lost peer, the call returns Unavailable or
// DeadlineExceeded, and so does every later call (the first cause is kept). A message of another
// size than expected ends the communicator in the same way, as Internal on the rank that noticed.
// What one rank notices, the others learn: they return Unavailable with its text. A communicator
// never recovers. Arguments that are wrong on their face are InvalidArgument and change nothing.
// On a GPU a call that only enqueues cannot know: Wait and Barrier return what became of it, and a
// stream is waited for by them, because Stream::Synchronize has no bound. After a failure what was
// enqueued has ended, with any results. There, sizes that disagree are noticed by Recv alone;
// in collectives they end in a timeout or in any results.
//
// Results do not depend on timing: reductions add in rank order in fp32 and round once to the
// tensor's dtype, and all ranks obtain the same bits.
class Communicator {
 public:
  virtual ~Communicator() = default;

  virtual int rank() const = 0;
  virtual int size() const = 0;

  // True when tensors on `device` are accepted.
  virtual bool Supports(Device device) const = 0;

  // The longest wait for a peer. Default 120 s.
  virtual absl::Duration timeout() const = 0;
  virtual void set_timeout(absl::Duration timeout) = 0;

  // inout: [n] any shape, fp32 | fp16 | bf16 | int32 | int64; reduced in place.
  // Sent per rank: 2 (p-1)/p n elements, or (p-1) n where that is fewer or n is small.
  virtual absl::Status AllReduce(TensorView inout, ReduceOp op, Stream& stream) = 0;

  // in: n elements; out: p n elements; out[r n ...] is rank r's in. Any dtype. `in` may be this
  // rank's part of `out`. Sent per rank: (p-1) n elements.
  virtual absl::Status AllGather(ConstTensorView in, TensorView out, Stream& stream) = 0;

  // in: p n elements; out: n elements = the reduction over ranks of their in[rank n ...]. dtypes as
  // in AllReduce. Sent per rank: (p-1) n elements.
  virtual absl::Status ReduceScatter(ConstTensorView in, TensorView out, ReduceOp op,
                                     Stream& stream) = 0;

  // Every rank's inout becomes root's. Sent by root: (p-1) n elements.
  virtual absl::Status Broadcast(TensorView inout, int root, Stream& stream) = 0;

  // out[r] goes to rank r and in[r] comes from rank r; an empty view stands for no message. Both
  // have size() views of any dtype; this rank's own are ignored. What rank a sends to b and what b
  // expects of a agree in bytes (none and 0 bytes, too). `out` views may be one and the same, and
  // overlap no `in`. Sent: the bytes of `out`.
  virtual absl::Status Exchange(absl::Span<const ConstTensorView> out,
                                absl::Span<const TensorView> in, Stream& stream) = 0;

  // Point to point, delivered in order per (sender, receiver) pair. Send keeps a copy where it has
  // to and returns without waiting for the receiver; Recv waits. Shapes of the two sides agree in
  // bytes: a message of another size is an Internal error on the receiver. `peer` != rank(). On a
  // GPU, Send keeps no copy, and what follows on its stream may wait until the receiver has got to
  // its Recv: ranks that would all send before they receive call Exchange. Recv returns once the
  // sender has called Send.
  virtual absl::Status Send(ConstTensorView in, int peer, Stream& stream) = 0;
  virtual absl::Status Recv(TensorView out, int peer, Stream& stream) = 0;

  // Returns when all work on `stream` is done, or with the failure that kept it from that: the
  // bounded Stream::Synchronize, for streams that this communicator's calls are enqueued on. Waits
  // timeout() at most, which counts this rank's own work, too. On the CPU it is immediate.
  virtual absl::Status Wait(Stream& stream) = 0;

  // The failure that later calls will return, or OK. Does not wait.
  virtual absl::Status status() = 0;

  // Returns when all ranks have called it and this rank's earlier work on `stream` is done.
  virtual absl::Status Barrier(Stream& stream) = 0;

  // Ranks with equal color form a new communicator, ordered by (key, rank). All ranks call it; a
  // negative color takes part and gets null.
  virtual absl::StatusOr<std::unique_ptr<Communicator>> Split(int color, int key) = 0;

  // Ends outstanding and later calls on every rank of this communicator and those split from it
  // with Unavailable and the given cause. Does not wait; callable from any thread.
  virtual void Abort(const absl::Status& why) = 0;

  // Memory that kernels on all ranks' GPUs write (peer_memory.h): for collectives that are fused
  // with what they carry, in the order of the other calls. The first call is collective, takes the
  // memory, and must not be made while a stream is captured; the answer is always the same.
  // FailedPrecondition says why there is none. It counts in bytes_sent().
  virtual absl::StatusOr<PeerMemory*> Peers() {
    return absl::FailedPreconditionError("this communicator has no peer memory");
  }

  // Bytes this rank has handed to the transport for other ranks, framing of the transport excluded.
  // Split counts its agreement (a few bytes per rank).
  virtual int64_t bytes_sent() const = 0;
};

}  // namespace thinwire
