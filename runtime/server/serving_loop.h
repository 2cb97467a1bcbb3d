// Requests of many threads, run by one engine: admission, order, deadlines, cancellation, drain.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "runtime/engine/engine.h"
#include "runtime/server/generation.h"
#include "runtime/server/serving_stats.h"
#include "runtime/tokenizer/tokenizer.h"

namespace thinwire {

struct ServingLimits {
  int64_t max_queued_requests = 1024;
  int64_t max_queued_tokens = int64_t{1} << 20;  // prompts and what they may be expected to grow by
  absl::Duration max_wait = absl::Seconds(30);   // in the queue, as predicted from the rate so far
  absl::Duration max_deadline = absl::Hours(1);  // and what requests without one have
  absl::Duration slow_reader_timeout = absl::Seconds(30);
  absl::Duration heartbeat = absl::Seconds(1);  // between signs of life of idle ranks
};

// One thread calls Run with the engine; all else may be called by any thread, before, during and
// after it. Outlives the transports that submit.
//
// A request waits here, is run by the engine and ends once, with a Generation that tells of it. The
// queue goes by arrival less ten seconds for each step of priority, so nobody starves. The engine
// is given no more than it can run at the same time; what waits costs no pages. A request that is
// cancelled, past its deadline or not read for too long leaves engine and pages before the next
// step.
class ServingLoop {
 public:
  using StateListener = std::function<void(ServingState state)>;
  using EndListener =
      std::function<void(const GenerationRequest& request, const GenerationEnd& end)>;

  explicit ServingLoop(const ServingLimits& limits);
  ~ServingLoop();

  // Told of every change of state, in order and before the call that makes it returns. Calls
  // nothing here that changes the state. Before all else.
  void AddListener(StateListener listener);

  // Told of every request that the engine's thread ends, on that thread. Before all else.
  void SetEndListener(EndListener listener) { end_listener_ = std::move(listener); }

  // What is being done before the engine runs, for people.
  void SetProgress(absl::string_view progress);

  // Queues a request. InvalidArgument: malformed, or so large that it can never run here.
  // AlreadyExists: its id is live. ResourceExhausted, with a retry hint: the queue is full, or its
  // turn is not expected before its deadline. DeadlineExceeded: that has passed.
  // Unavailable: starting, draining or failed.
  absl::StatusOr<std::shared_ptr<Generation>> Submit(GenerationRequest request);

  // What Submit would say whatever the request, for the state or for lack of room, and counts it:
  // cheaper than to parse and tokenise first.
  absl::Status CheckRoom();

  // Counts a request that was refused before it came here.
  void CountRejected(const absl::Status& why);

  // Ends a request that has not ended with this error.
  void Cancel(Generation& generation, const absl::Status& why);
  // Cancels the live requests whose id is `id`, or starts with it (`prefix`; "" is all of them).
  // Returns how many.
  int64_t Abort(absl::string_view id, bool prefix);

  // Serves until it was drained, or the engine fails; proves the engine with a step before it is
  // ready. Afterwards every request has ended. The error is the engine's, which is final.
  absl::Status Run(Engine& engine, const Tokenizer& tokenizer);

  // Refuses new requests. Run ends when all others have; after `timeout` (at most a year) they end
  // as Unavailable.
  void Drain(absl::Duration timeout);
  // Ends everything with Unavailable, at once, on this thread.
  void Fail(const absl::Status& why);

  ServingState state() const;
  ServingLoad load() const;

 private:
  struct Active;
  using QueueKey = std::pair<int64_t, int64_t>;  // (when its turn is, order of arrival)

  // Whether it is a change, of which listeners have heard then; kFailed and kStopped are final.
  bool SetState(ServingState state, absl::string_view why = "");
  absl::Status CheckState() const;                                    // with the lock held
  absl::Status CheckRequest(const GenerationRequest& request) const;  // with the lock held
  absl::Status CheckQueue(int64_t num_tokens) const;                  // with the lock held
  // Whether its turn will come before its deadline; with the lock held.
  absl::Status CheckDeadline(const QueueKey& turn, ServingClock::time_point deadline) const;
  absl::Duration RetryDelay() const;             // with the lock held
  double PredictWait(int64_t num_tokens) const;  // seconds behind so many; with the lock held
  absl::Status Reject(const absl::Status& why);  // with the lock held

  // On the engine's thread.
  absl::Status Serve();
  absl::Status SelfTest();
  void Admit();
  absl::Status Start(std::unique_ptr<Active> active);
  // Lets the engine say how probable the tokens of a finished request were, then ends it.
  void Score(std::unique_ptr<Active> active);
  bool TakeToken(Active& active, int32_t token_id);
  void OnDone(Active& active, FinishReason reason);
  // Ends what was cancelled, is late, or is not read.
  void Sweep();
  void SweepUnread(ServingClock::time_point now);
  absl::Status WhyEnd(const Active& active, ServingClock::time_point now) const;
  void Finish(Active& active, EndReason reason, const absl::Status& status);
  absl::Status Beat();
  void MarkAlive();
  void Publish(bool idle);
  // Measures how fast the queue moves, while there is one.
  void MeasureQueue(ServingClock::time_point now);
  // Waits for something to do. False: a heartbeat is due.
  bool WaitForWork();
  // Tells clients alone: any thread may.
  void EndAll(const absl::Status& why);
  // Counts and forgets what the engine took with it; on its thread.
  void AccountForLost(const absl::Status& why);

  const ServingLimits limits_;
  std::vector<StateListener> listeners_;
  EndListener end_listener_;

  std::mutex telling_;        // held while listeners are told; taken before the next one
  mutable std::mutex mutex_;  // guards what follows, up to the next blank line
  std::condition_variable wake_;
  ServingState state_ = ServingState::kStarting;
  std::deque<ServingState> untold_;  // to listeners
  bool attention_ = false;           // a request was cancelled, or the state changed
  ServingClock::time_point drain_until_ = ServingClock::time_point::max();
  std::map<QueueKey, std::unique_ptr<Active>> queue_;
  absl::flat_hash_map<std::string, std::shared_ptr<Generation>> live_;  // by id
  int64_t queued_tokens_ = 0;
  int64_t next_arrival_ = 0;
  double queue_rate_ = 0.0;  // tokens of requests, as queued_tokens_ counts, a second; 0: not known
  ServingLoad load_;
  ServingClock::time_point last_life_;
  std::vector<std::shared_ptr<Generation>> unread_;  // ended, but not taken

  // The engine thread's own.
  Engine* engine_ = nullptr;
  const Tokenizer* tokenizer_ = nullptr;
  absl::flat_hash_map<int64_t, std::unique_ptr<Active>> running_;  // by the engine's id
  std::vector<std::unique_ptr<Active>> to_score_;
  ServingTotals totals_;
  Ledger wire_;
  std::vector<MemoryReport> memory_;
  ServingClock::time_point rate_since_;
  int64_t rate_tokens_ = 0;
  double tokens_per_second_ = 0.0;
  int64_t done_tokens_ = 0;               // of requests that ended, as queued_tokens_ counts
  ServingClock::time_point queue_since_;  // of this measurement of the queue's rate
  int64_t queue_done_tokens_ = 0;         // done_tokens_ then
  bool queue_measures_ = false;           // there has been a queue since then
  ServingClock::time_point queue_seen_;   // when there was one last
};

}  // namespace thinwire
