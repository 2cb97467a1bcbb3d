#include "runtime/scheduler/scheduler.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/core/check.h"
#include "kernels/core/status_macros.h"

namespace thinwire {

struct Scheduler::Seq {
  SeqId id = 0;
  int64_t arrival = 0;
  int64_t longest = 0;       // tokens that it may grow to
  int64_t num_known = 0;     // prompt and committed tokens
  int64_t num_awaited = 0;   // tokens that steps in flight sample
  int64_t num_computed = 0;  // scheduled so far; in the cache once their steps ran
  bool held = false;
  int32_t slot = -1;
  std::vector<int32_t> pages;
  std::vector<PageKey> keys;       // of full pages, from the first
  int64_t num_named = 0;           // pages that were offered under their keys
  std::vector<int32_t> reused;     // pages that follow once the first one is computed
  std::vector<int32_t> new_pages;  // that the next part tells of
  bool bound = false;              // a part has told whose the slot is

  // One token a step from here on (or as soon as the one in flight is known).
  bool Decodes() const { return !held && (num_awaited > 0 || num_known - num_computed == 1); }
  // Tokens that may be computed now, one that is not known yet included.
  int64_t NumComputable(int64_t steps_ahead) const {
    const bool goes_on = num_known + num_awaited < longest;
    return num_known + (goes_on ? std::min(num_awaited, steps_ahead) : 0) - num_computed;
  }
};

Scheduler::Scheduler(const SchedulerLimits& limits) : limits_(limits), pages_(limits.num_pages) {
  TW_CHECK_GE(limits.page_size, 1);
  TW_CHECK_GE(limits.max_step_tokens, 1);
  TW_CHECK_GE(limits.max_seqs, 1);
  TW_CHECK_GE(limits.max_steps_in_flight, 1);
  TW_CHECK(limits.steps_ahead == 0 || limits.steps_ahead == 1);
  for (int64_t slot = limits.max_seqs - 1; slot >= 0; --slot) {
    free_slots_.push_back(static_cast<int32_t>(slot));
  }
}

Scheduler::~Scheduler() = default;

int64_t Scheduler::PagesFor(int64_t num_tokens) const {
  return (num_tokens + limits_.page_size - 1) / limits_.page_size;
}

absl::Status Scheduler::CheckFits(int64_t num_tokens, int64_t max_new_tokens) const {
  TW_CHECK_GE(num_tokens, 1);
  TW_CHECK_GE(max_new_tokens, 0);
  const int64_t longest = num_tokens + max_new_tokens;
  if (longest > limits_.max_context) {
    return absl::InvalidArgumentError(
        absl::StrCat("prompt of ", num_tokens, " tokens and ", max_new_tokens,
                     " new ones exceed the context of ", limits_.max_context));
  }
  // The last token is sampled and never computed.
  const int64_t num_pages = PagesFor(std::max(num_tokens, longest - 1));
  if (num_pages > limits_.num_pages) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "prompt of ", num_tokens, " tokens and ", max_new_tokens, " new ones need ", num_pages,
        " KV pages of ", limits_.page_size, " tokens; there are ", limits_.num_pages));
  }
  return absl::OkStatus();
}

absl::Status Scheduler::Add(SeqId id, int64_t num_tokens, int64_t max_new_tokens,
                            std::vector<PageKey> keys) {
  TW_CHECK(!seqs_.contains(id));
  TW_RETURN_IF_ERROR(CheckFits(num_tokens, max_new_tokens));
  auto seq = std::make_unique<Seq>();
  seq->id = id;
  seq->arrival = next_arrival_++;
  seq->longest = num_tokens + max_new_tokens;
  seq->num_known = num_tokens;
  seq->keys = std::move(keys);
  waiting_.push_back(seq.get());
  seqs_.emplace(id, std::move(seq));
  return absl::OkStatus();
}

int32_t Scheduler::Hold(SeqId id) {
  Seq& seq = *seqs_.at(id);
  TW_CHECK(seq.slot >= 0 && seq.num_awaited == 0);
  seq.held = true;
  return seq.slot;
}

void Scheduler::Resume(SeqId id) { seqs_.at(id)->held = false; }

std::optional<Binding> Scheduler::Adopt(SeqId id, int64_t num_tokens, int64_t max_new_tokens) {
  TW_CHECK_GE(num_tokens, 2);
  TW_CHECK(!seqs_.contains(id));
  if (!waiting_.empty() || !HasRoomFor(num_tokens)) return std::nullopt;
  auto seq = std::make_unique<Seq>();
  seq->id = id;
  seq->arrival = next_arrival_++;
  seq->longest = num_tokens + max_new_tokens;
  seq->num_known = num_tokens;
  seq->num_computed = num_tokens - 1;
  seq->held = true;
  seq->bound = true;
  Bind(*seq);
  for (int64_t i = PagesFor(seq->num_computed); i > 0; --i) {
    seq->pages.push_back(pages_.Allocate().value());
  }
  Binding binding = {seq->slot, seq->pages};
  seqs_.emplace(id, std::move(seq));
  return binding;
}

void Scheduler::Release(Seq& seq) {
  // Who reads others' pages without the first found them by it: it stays as long as they do. This
  // sequence's own takes its place where it has been given up meanwhile.
  const bool first_named = limits_.own_first_page && seq.num_named > 0;
  if (first_named) pages_.Name(seq.pages.front(), seq.keys.front());
  // The last first: see SharedPages::Release.
  for (auto* pages : {&seq.reused, &seq.pages}) {
    for (auto it = pages->rbegin(); it != pages->rend(); ++it) pages_.Release(*it);
    pages->clear();
  }
  if (first_named) pages_.Touch(seq.keys.front());
  seq.new_pages.clear();
  seq.num_named = 0;
  seq.bound = false;
  if (seq.slot >= 0) {
    free_slots_.push_back(seq.slot);
    running_.erase(seq.arrival);
    seq.slot = -1;
  }
}

void Scheduler::Preempt(Seq& seq) {
  Release(seq);
  seq.num_computed = 0;
  // Waiting sequences are in order of arrival, and a running one arrived before all of those that
  // never ran; among preempted ones the earlier arrival goes first.
  const auto place = std::find_if(waiting_.begin(), waiting_.end(),
                                  [&](const Seq* other) { return other->arrival > seq.arrival; });
  waiting_.insert(place, &seq);
  ++num_preemptions_;
}

bool Scheduler::GrowTo(Seq& seq, int64_t num_tokens, ScheduledStep& step) {
  while (static_cast<int64_t>(seq.pages.size()) < PagesFor(num_tokens)) {
    const std::optional<int32_t> page = pages_.Allocate();
    if (page.has_value()) {
      seq.pages.push_back(*page);
      seq.new_pages.push_back(*page);
      continue;
    }
    // The victim: the latest arrival that runs and neither awaits a token nor is in this step
    // already.
    Seq* victim = nullptr;
    for (auto it = running_.rbegin(); it != running_.rend() && it->second != &seq; ++it) {
      const bool scheduled =
          std::any_of(step.seqs.begin(), step.seqs.end(),
                      [&](const auto& other) { return other.id == it->second->id; });
      if (it->second->num_awaited == 0 && !it->second->held && !scheduled) {
        victim = it->second;
        break;
      }
    }
    if (victim == nullptr) return false;
    Preempt(*victim);
  }
  return true;
}

std::vector<int32_t> Scheduler::FindReusable(const Seq& seq) const {
  // The last known token is computed: the next one is sampled from it.
  const size_t most = static_cast<size_t>((seq.num_known - 1) / limits_.page_size);
  std::vector<int32_t> pages =
      pages_.Find(absl::MakeConstSpan(seq.keys).subspan(0, std::min(most, seq.keys.size())));
  if (limits_.own_first_page && !pages.empty()) pages.erase(pages.begin());
  return pages;
}

void Scheduler::Reuse(Seq& seq, absl::Span<const int32_t> pages) {
  if (pages.empty()) return;
  for (const int32_t page : pages) pages_.Hold(page);
  num_reused_tokens_ += static_cast<int64_t>(pages.size()) * limits_.page_size;
  if (limits_.own_first_page) {
    seq.reused.assign(pages.begin(), pages.end());
    return;
  }
  seq.pages.assign(pages.begin(), pages.end());
  seq.new_pages = seq.pages;
  seq.num_computed = static_cast<int64_t>(pages.size()) * limits_.page_size;
}

void Scheduler::NamePages(Seq& seq) {
  const auto num_full = std::min<int64_t>(seq.num_computed / limits_.page_size,
                                          static_cast<int64_t>(seq.keys.size()));
  for (; seq.num_named < num_full; ++seq.num_named) {
    pages_.Name(seq.pages[seq.num_named], seq.keys[seq.num_named]);
  }
}

bool Scheduler::ScheduleRunning(Seq& seq, int64_t budget, ScheduledStep& step) {
  int64_t num_tokens = std::min(seq.NumComputable(limits_.steps_ahead), budget);
  if (!seq.reused.empty()) {
    num_tokens = std::min(num_tokens, limits_.page_size - seq.num_computed);
  }
  TW_CHECK_GE(num_tokens, 1);
  if (!GrowTo(seq, seq.num_computed + num_tokens, step)) {
    // Pages ran out on the way: compute what has room. Without room it keeps its pages and waits;
    // an older sequence that needs them takes them.
    const int64_t room =
        static_cast<int64_t>(seq.pages.size()) * limits_.page_size - seq.num_computed;
    if (room < 1) return false;
    num_tokens = std::min(num_tokens, room);
  }
  ScheduledSeq part;
  part.id = seq.id;
  part.slot = seq.slot;
  part.start = seq.num_computed;
  part.num_tokens = num_tokens;
  part.binds = !std::exchange(seq.bound, true);
  part.new_pages = std::exchange(seq.new_pages, {});
  part.late = seq.num_computed == seq.num_known;
  seq.num_computed += num_tokens;
  part.samples = seq.num_computed == seq.num_known + seq.num_awaited;
  seq.num_awaited += part.samples ? 1 : 0;
  step.num_tokens += num_tokens;
  step.seqs.push_back(std::move(part));
  if (!seq.reused.empty() && seq.num_computed == limits_.page_size) {
    seq.num_computed += static_cast<int64_t>(seq.reused.size()) * limits_.page_size;
    seq.pages.insert(seq.pages.end(), seq.reused.begin(), seq.reused.end());
    seq.new_pages = std::exchange(seq.reused, {});
  }
  return true;
}

bool Scheduler::HasRoomFor(int64_t num_tokens, absl::Span<const int32_t> reusable) const {
  if (free_slots_.empty()) return false;
  // Idle pages that it reads are no longer free; others' cost it nothing.
  int64_t needed = PagesFor(num_tokens);
  for (const int32_t page : reusable) needed -= pages_.idle(page) ? 0 : 1;
  // One page in reserve for every running sequence keeps admissions from preempting at once.
  return running_.empty() || pages_.num_free() >= needed + num_running();
}

void Scheduler::Bind(Seq& seq) {
  seq.slot = free_slots_.back();
  free_slots_.pop_back();
  running_.emplace(seq.arrival, &seq);
}

Scheduler::Seq* Scheduler::TryAdmit() {
  if (waiting_.empty()) return nullptr;
  Seq& seq = *waiting_.front();
  const std::vector<int32_t> reusable = FindReusable(seq);
  if (!HasRoomFor(seq.num_known, reusable)) return nullptr;
  waiting_.pop_front();
  Bind(seq);
  Reuse(seq, reusable);
  return &seq;
}

std::vector<Scheduler::Seq*> Scheduler::RunnableSeqs(int64_t& num_decodes) const {
  int64_t num_decoding = 0;
  for (const auto& [arrival, seq] : running_) num_decoding += seq->Decodes();
  const int64_t share =
      (num_decoding + limits_.max_steps_in_flight - 1) / limits_.max_steps_in_flight;
  std::vector<Seq*> seqs;
  num_decodes = 0;
  for (const auto& [arrival, seq] : running_) {
    if (seq->held || seq->NumComputable(limits_.steps_ahead) < 1) continue;
    if (seq->Decodes()) {
      if (num_decodes == share) continue;
      ++num_decodes;
    }
    seqs.push_back(seq);
  }
  return seqs;
}

std::optional<ScheduledStep> Scheduler::Plan() {
  if (num_in_flight() >= limits_.max_steps_in_flight + limits_.steps_ahead) return std::nullopt;
  ScheduledStep step;
  int64_t num_decodes = 0;
  const std::vector<Seq*> seqs = RunnableSeqs(num_decodes);
  // Prompts get what decoding leaves, but never nothing.
  int64_t prompt_budget = std::max<int64_t>(limits_.max_step_tokens - num_decodes, 1);
  for (Seq* seq : seqs) {
    const int64_t left = limits_.max_step_tokens - step.num_tokens;
    if (left < 1) break;
    if (seq->slot < 0) continue;  // gave way to an earlier one just now
    if (seq->Decodes()) {
      ScheduleRunning(*seq, 1, step);
    } else if (prompt_budget > 0) {
      const int64_t before = step.num_tokens;
      ScheduleRunning(*seq, std::min(prompt_budget, left), step);
      prompt_budget -= step.num_tokens - before;
    }
  }
  while (step.num_tokens < limits_.max_step_tokens) {
    Seq* seq = TryAdmit();
    if (seq == nullptr) break;
    if (!ScheduleRunning(*seq, limits_.max_step_tokens - step.num_tokens, step)) break;
  }
  if (step.seqs.empty()) return std::nullopt;
  step.id = next_step_++;
  std::vector<SeqId> sampling;
  for (const ScheduledSeq& part : step.seqs) {
    if (part.samples) sampling.push_back(part.id);
    // Not before this step is planned: sequences of one step do not read each other's pages.
    NamePages(*seqs_.at(part.id));
  }
  in_flight_.push_back(std::move(sampling));
  return step;
}

void Scheduler::Commit() {
  TW_CHECK(!in_flight_.empty());
  for (const SeqId id : in_flight_.front()) {
    const auto it = seqs_.find(id);
    if (it == seqs_.end()) continue;  // finished meanwhile
    --it->second->num_awaited;
    ++it->second->num_known;
  }
  in_flight_.pop_front();
}

void Scheduler::Finish(SeqId id, std::vector<PageKey> keys) {
  const auto it = seqs_.find(id);
  TW_CHECK(it != seqs_.end());
  Seq& seq = *it->second;
  if (seq.slot < 0) {
    waiting_.erase(std::find(waiting_.begin(), waiting_.end(), &seq));
  } else if (keys.size() > seq.keys.size()) {
    seq.keys = std::move(keys);
    NamePages(seq);
  }
  Release(seq);
  seqs_.erase(it);
}

}  // namespace thinwire
