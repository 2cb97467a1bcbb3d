// A TCP connection from every rank to rank 0, by whose end each notices at once that the other's
// process is gone. Nothing but a secret and a farewell is ever sent.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

#include "absl/status/statusor.h"
#include "parallel/comm/communicator.h"
#include "runtime/server/rank_places.h"

namespace thinwire {

// A rank that hangs keeps its connections: that is for the engine's timeouts.
class RankLinks {
 public:
  // Told once, on a thread of the links: this rank (rank 0, or one that rank 0 saw) is gone.
  using LostListener = std::function<void(int rank)>;

  // Collective. Where ranks cannot reach rank 0 by the name of its host, they are not watched, and
  // num_linked() says so; the error is that of `world`, on all ranks. Listens on loopback alone
  // where all ranks are on one host.
  static absl::StatusOr<std::unique_ptr<RankLinks>> Connect(const std::vector<RankPlace>& places,
                                                            Communicator& world,
                                                            LostListener on_lost);

  // Does not say farewell: the others notice.
  ~RankLinks();

  // From here on, ends are no news, here and on the other side.
  void Farewell();

  // Rank 0: how many others it watches.
  int num_linked() const { return static_cast<int>(links_.size()); }

 private:
  struct Link {
    int fd = -1;
    int rank = 0;
  };

  explicit RankLinks(LostListener on_lost) : on_lost_(std::move(on_lost)) {}

  void Watch();

  const LostListener on_lost_;
  std::vector<Link> links_;
  std::atomic<bool> quiet_ = false;
  std::atomic<bool> stopping_ = false;
  std::thread thread_;
};

}  // namespace thinwire
