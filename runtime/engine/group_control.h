// What carries plans from the leader to one group of ranks, and answers back.
#pragma once

#include <memory>
#include <string>
#include <utility>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "kernels/core/stream.h"
#include "kernels/core/thread_pool.h"
#include "parallel/comm/communicator.h"
#include "parallel/wire/ledger.h"
#include "parallel/wire/wire.h"

namespace thinwire {

// Used by the one thread that leads the group, or on other ranks by the one that follows. Its
// ledger is its own, so that the leader's threads share none. Not movable; thread-compatible.
class GroupControl {
 public:
  // The leader is rank 0 of `ranks`, and the rest is the group: all of it behind a leader that is
  // not in it, or the others of the leader's own. `ranks` and `pool` are borrowed.
  GroupControl(Communicator* ranks, bool leader_is_in_group, ThreadPool* pool);
  // The same, with a communicator of its own.
  GroupControl(std::unique_ptr<Communicator> ranks, bool leader_is_in_group, ThreadPool* pool);

  GroupControl(const GroupControl&) = delete;
  GroupControl& operator=(const GroupControl&) = delete;

  // The leader: to all ranks but itself, and from a rank of the group.
  absl::Status SendToAll(absl::string_view bytes);
  absl::StatusOr<std::string> RecvFrom(int rank_in_group);
  // An answer of every rank but the leader, all of them empty.
  absl::Status AwaitAll();

  // The others.
  absl::StatusOr<std::string> RecvFromLeader() { return wire_.RecvBytes(0, stream_); }
  absl::Status SendToLeader(absl::string_view bytes) { return wire_.SendBytes(bytes, 0, stream_); }

  // Whether there is nobody but the leader.
  bool alone() const { return ranks_->size() == 1; }
  void set_timeout(absl::Duration timeout) { ranks_->set_timeout(timeout); }
  Ledger& ledger() { return ledger_; }
  const Ledger& ledger() const { return ledger_; }

 private:
  std::unique_ptr<Communicator> owned_;
  Communicator* ranks_;
  const int first_;  // rank in `ranks` of the group's rank 0
  Ledger ledger_;
  Wire wire_;
  Stream stream_;
};

}  // namespace thinwire
