// Sequences on their way from the ranks that computed their prompts to those that decode them.
//
// Pure bookkeeping, like the two schedulers it stands between.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <vector>

#include "runtime/scheduler/scheduler.h"

namespace thinwire {

// K and V of a sequence's first num_tokens tokens go from a slot of one group of ranks to a slot
// and pages of the other.
struct MovingSeq {
  SeqId id = 0;
  int64_t num_tokens = 0;
  int32_t from_slot = 0;
  Binding to;
};

// A sequence waits here, keeping what it has, until the other group has room for it: earlier
// arrivals first, so that none is overtaken for ever, and no group waits for the other in a circle,
// as the decoding one always comes to the end of what it has. Then it departs: the one group is
// told to send its pages, which it may overwrite afterwards. It arrives when that group has come to
// the sending, so that the other one, told to receive, does not wait in vain. Thread-compatible.
class HandOffQueue {
 public:
  // Borrowed.
  HandOffQueue(Scheduler* from, Scheduler* to) : from_(from), to_(to) {}

  // A sequence of `num_tokens` known tokens, all but the last computed by `from`, which runs it.
  // `to`.CheckFits must have been OK.
  void Add(SeqId id, int64_t num_tokens);

  // Those that depart now, in order. The group is told before another step of it is planned.
  std::vector<MovingSeq> Depart();

  // Those that arrive now, in order of departure. The group is told before another step of it is
  // planned: these sequences run there from then on.
  std::vector<MovingSeq> Arrive();

  // Forgets a sequence that is here, in both schedulers; false when it is not. One that departed
  // arrives nevertheless, as its pages are on the way.
  bool Cancel(SeqId id);

  bool empty() const { return ready_.empty() && departed_.empty(); }

 private:
  struct Ready {
    int64_t num_tokens;
    int32_t slot;
  };
  struct Departed {
    MovingSeq seq;
    int64_t after_step;  // of `from`: steps that it was told of before
    bool cancelled = false;
  };

  Scheduler* from_;
  Scheduler* to_;
  std::map<SeqId, Ready> ready_;
  std::deque<Departed> departed_;
};

}  // namespace thinwire
