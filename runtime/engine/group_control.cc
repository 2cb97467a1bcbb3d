#include "runtime/engine/group_control.h"

#include "kernels/core/status_macros.h"

namespace thinwire {

GroupControl::GroupControl(Communicator* ranks, bool leader_is_in_group, ThreadPool* pool)
    : ranks_(ranks),
      first_(leader_is_in_group ? 0 : 1),
      wire_(ranks, ranks, WireOptions(), &ledger_),
      stream_(Stream::Cpu(pool)) {}

GroupControl::GroupControl(std::unique_ptr<Communicator> ranks, bool leader_is_in_group,
                           ThreadPool* pool)
    : GroupControl(ranks.get(), leader_is_in_group, pool) {
  owned_ = std::move(ranks);
}

absl::Status GroupControl::SendToAll(absl::string_view bytes) {
  for (int peer = 1; peer < ranks_->size(); ++peer) {
    TW_RETURN_IF_ERROR(wire_.SendBytes(bytes, peer, stream_));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::string> GroupControl::RecvFrom(int rank_in_group) {
  return wire_.RecvBytes(rank_in_group + first_, stream_);
}

absl::Status GroupControl::AwaitAll() {
  for (int peer = 1; peer < ranks_->size(); ++peer) {
    TW_RETURN_IF_ERROR(wire_.RecvBytes(peer, stream_).status());
  }
  return absl::OkStatus();
}

}  // namespace thinwire
