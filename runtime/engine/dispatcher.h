// How the leader's step plans get to the groups of ranks, and their results back.
#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "runtime/engine/engine_rank.h"
#include "runtime/engine/step_plan.h"

namespace thinwire {

struct GroupResult {
  int group = 0;
  StepResult result;
};

// Plans of a group are executed in the order in which they are posted, and results of a group come
// back in that order. An error of any call is final. Thread-compatible.
class Dispatcher {
 public:
  virtual ~Dispatcher() = default;

  virtual absl::Status Post(int group, StepPlan plan) = 0;

  // The next result; waits for it. A plan of kind kRun must be on its way.
  virtual absl::StatusOr<GroupResult> Next() = 0;

  // Returns when this rank has done its part of all that was posted, so that the caller may lead
  // ranks itself until the next Post. No result may be on its way.
  virtual absl::Status Settle() = 0;
};

// One group, this thread: Post returns when this rank has executed the plan, or launched its step.
// `rank` is borrowed.
std::unique_ptr<Dispatcher> MakeDirectDispatcher(EngineRank* rank);

// A thread for each group, so that none waits for another's steps. A group that has
// nothing to do is asked now and then whether it is there, as long as the leader calls Next, so
// that no wait for work ends a job, and ranks that hang are noticed though nobody needs them. The
// destructor waits for what the threads are doing, but not for what else was posted.
std::unique_ptr<Dispatcher> MakeThreadDispatcher(EngineRank* rank);

}  // namespace thinwire
