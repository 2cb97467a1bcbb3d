// Continuous batching: which tokens of which sequences the next step computes.
//
// Pure bookkeeping: integers in, integers out; no device, tensor, thread or text.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/types/span.h"
#include "runtime/cache/shared_pages.h"

namespace thinwire {

struct SchedulerLimits {
  int64_t page_size = 16;           // tokens of a KV page
  int64_t num_pages = 0;            // KV pages of every rank
  int64_t max_step_tokens = 512;    // tokens computed in one step
  int64_t max_seqs = 64;            // sequences that hold pages at the same time
  int64_t max_context = 0;          // prompt + generated tokens of one sequence
  bool own_first_page = false;      // no sequence reads the first page of another
  int64_t max_steps_in_flight = 1;  // steps planned and not yet committed: the pipeline's depth
  int64_t steps_ahead = 0;          // how many more, behind tokens that are not known yet; 0 or 1
};

using SeqId = int64_t;

// The part of one sequence in a step: tokens [start, start + num_tokens) are computed and their K
// and V written. `binds`: the slot is this sequence's from here on, and its page table new_pages
// alone. `late`: its one token is the one that the sequence's part before samples, not known when
// the step is planned. Where start is not the end of the part before, what lies between is in
// new_pages.
struct ScheduledSeq {
  SeqId id = 0;
  int32_t slot = 0;  // [0, max_seqs), held while the sequence runs
  int64_t start = 0;
  int64_t num_tokens = 0;
  bool binds = false;
  bool late = false;
  bool samples = false;            // reaches the last token so far: yields the next one
  std::vector<int32_t> new_pages;  // appended to the slot's page table before the step

  friend bool operator==(const ScheduledSeq& a, const ScheduledSeq& b) = default;
};

// Where a sequence lies.
struct Binding {
  int32_t slot = 0;
  std::vector<int32_t> pages;
};

struct ScheduledStep {
  int64_t id = 0;  // consecutive from 0
  std::vector<ScheduledSeq> seqs;
  int64_t num_tokens = 0;
};

// A sequence waits, runs (holds a slot and pages), and is removed by Finish. Per step:
//   1. running sequences in order of arrival, each the tokens that are known and not yet computed,
//      bounded by the step's budget (long prompts go in chunks beside the others' decoding);
//   2. then waiting ones are admitted in order of arrival while slots, pages for all their known
//      tokens and budget last.
//
// When a running sequence needs a page and none is free, the latest arrival that runs gives up its
// slot and pages and waits again at the front; its known tokens are computed anew later. The oldest
// sequence is never preempted, and Add refuses what cannot run alone, so every sequence finishes.
//
// Several steps may be in flight; ranks execute steps in order, so a page freed by one step may be
// written by the next. A sequence that awaits its sampled token is not scheduled, and the sequences
// that decode are spread evenly over max_steps_in_flight steps, so that all stages of a pipeline
// have work. With steps_ahead it may be scheduled once more behind that token, unless that is its
// last one: should the token turn out to end it, Finish drops what the step in flight adds. A
// sequence that awaits a token is not preempted.
//
// A sequence whose full pages have keys reads those of others that begin alike, running or gone,
// instead of computing them, up to the last token it knows; with own_first_page it computes its
// first page nevertheless. Pages that nobody holds keep their content until pages run short.
//
// A sequence may go from one scheduler to another with its pages. While it is held it keeps slot
// and pages and is neither scheduled nor preempted; sequences that need what it has wait, the
// oldest, too. So whoever holds sequences lets go of them without waiting for this scheduler.
// Thread-compatible.
class Scheduler {
 public:
  explicit Scheduler(const SchedulerLimits& limits);
  ~Scheduler();

  // Enqueues a sequence of `num_tokens` known tokens (>= 1) that may grow by `max_new_tokens`.
  // InvalidArgument when it is longer than max_context; ResourceExhausted when it would need more
  // than all pages; both name the numbers. `id` must never have been used.
  // `keys`: of its full pages, in order, as far as others may share them.
  absl::Status Add(SeqId id, int64_t num_tokens, int64_t max_new_tokens,
                   std::vector<PageKey> keys = {});

  // What Add would say of such a sequence.
  absl::Status CheckFits(int64_t num_tokens, int64_t max_new_tokens) const;

  // Keeps a running sequence that awaits no token from being scheduled, until Resume. Returns its
  // slot.
  int32_t Hold(SeqId id);
  void Resume(SeqId id);

  // Takes in a sequence of `num_tokens` known tokens (>= 2) of which all but the last are computed
  // elsewhere, as if it arrived now, and holds it; its pages are those of the computed tokens.
  // Nothing when it has to wait: it comes after all that wait here, and needs a slot and pages for
  // all known tokens. CheckFits must have been OK. One that is preempted is computed anew here.
  // `max_new_tokens` as in Add, for steps ahead; 0 where it is not known: then it has none.
  std::optional<Binding> Adopt(SeqId id, int64_t num_tokens, int64_t max_new_tokens = 0);

  // The next step, or nothing when max_steps_in_flight + steps_ahead are planned already or no
  // sequence can move before a commit.
  std::optional<ScheduledStep> Plan();

  // The oldest step in flight is done: each of its seqs that samples (and is not finished
  // meanwhile) now knows one token more.
  void Commit();

  // Forgets a sequence, waiting or running, and frees its slot and pages. Call it after the Commit
  // that brought its last token, or at any time to cancel.
  // `keys`: as in Add, generated tokens included; pages that were computed stay to be shared.
  void Finish(SeqId id, std::vector<PageKey> keys = {});

  bool HasWork() const { return !seqs_.empty(); }
  int64_t num_waiting() const { return static_cast<int64_t>(waiting_.size()); }
  int64_t num_running() const { return static_cast<int64_t>(running_.size()); }
  int64_t num_in_flight() const { return static_cast<int64_t>(in_flight_.size()); }
  int64_t num_planned_steps() const { return next_step_; }
  int64_t num_committed_steps() const { return next_step_ - num_in_flight(); }
  int64_t num_free_pages() const { return pages_.num_free(); }
  int64_t num_reused_tokens() const { return num_reused_tokens_; }  // that were not computed
  int64_t num_preemptions() const { return num_preemptions_; }
  const SchedulerLimits& limits() const { return limits_; }

 private:
  struct Seq;

  // Schedules up to `budget` tokens of a running sequence, preempting later arrivals for pages.
  // Returns false when it cannot move now.
  bool ScheduleRunning(Seq& seq, int64_t budget, ScheduledStep& step);
  // Takes pages until `seq` has room for `num_tokens` tokens; false when none is to be had now.
  bool GrowTo(Seq& seq, int64_t num_tokens, ScheduledStep& step);
  void Preempt(Seq& seq);
  void Release(Seq& seq);
  // What the first of the waiting sequences may read instead of computing it.
  std::vector<int32_t> FindReusable(const Seq& seq) const;
  void Reuse(Seq& seq, absl::Span<const int32_t> pages);
  // Lets others find the pages that are computed by the steps so far.
  void NamePages(Seq& seq);
  // Gives the first waiting sequence a slot; null when it has to wait.
  Seq* TryAdmit();
  // Whether a sequence of so many known tokens may begin to run now, some of them in these pages.
  bool HasRoomFor(int64_t num_tokens, absl::Span<const int32_t> reusable = {}) const;
  void Bind(Seq& seq);
  // What may be scheduled now, by arrival: of the sequences that decode, one step's share
  // (`num_decodes`).
  std::vector<Seq*> RunnableSeqs(int64_t& num_decodes) const;
  int64_t PagesFor(int64_t num_tokens) const;

  const SchedulerLimits limits_;
  SharedPages pages_;
  std::vector<int32_t> free_slots_;
  absl::flat_hash_map<SeqId, std::unique_ptr<Seq>> seqs_;
  std::deque<Seq*> waiting_;                  // next to admit first
  std::map<int64_t, Seq*> running_;           // by arrival
  std::deque<std::vector<SeqId>> in_flight_;  // per step: the sequences that sample
  int64_t next_arrival_ = 0;
  int64_t next_step_ = 0;
  int64_t num_preemptions_ = 0;
  int64_t num_reused_tokens_ = 0;
};

}  // namespace thinwire
