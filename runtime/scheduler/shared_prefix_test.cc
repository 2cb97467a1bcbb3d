// Sequences that read each other's pages, over pages that remember what was written.
#include <deque>
#include <map>
#include <random>
#include <set>
#include <vector>

#include "gtest/gtest.h"
#include "runtime/scheduler/scheduler.h"

namespace thinwire {
namespace {

using Tokens = std::vector<int64_t>;

// The value that stands for K and V of the last of these tokens: it depends on all of them.
uint64_t ValueOf(uint64_t before, int64_t token) {
  return (before ^ static_cast<uint64_t>(token)) * 0x9e3779b97f4a7c15u + 1;
}

std::vector<PageKey> KeysOf(const Tokens& tokens, int64_t page_size) {
  std::vector<PageKey> keys;
  uint64_t value = 0;
  for (size_t i = 0; i < tokens.size(); ++i) {
    value = ValueOf(value, tokens[i]);
    if (static_cast<int64_t>(i + 1) % page_size == 0) keys.push_back({i, value});
  }
  return keys;
}

// Executes steps as ranks do. Every sequence must find in its pages what its tokens would have
// written.
class PagesInMemory {
 public:
  explicit PagesInMemory(const SchedulerLimits& limits)
      : limits_(limits), written_(limits.num_pages * limits.page_size) {}

  void Execute(const ScheduledStep& step, const std::map<SeqId, Tokens>& tokens) {
    std::set<int64_t> written_now;
    for (const ScheduledSeq& part : step.seqs) {
      Slot& slot = slots_[part.slot];
      if (part.binds) slot = Slot{part.id, -1, {}};
      ASSERT_EQ(slot.id, part.id);
      slot.pages.insert(slot.pages.end(), part.new_pages.begin(), part.new_pages.end());
      uint64_t value = 0;
      for (int64_t at = 0; at < part.start + part.num_tokens; ++at) {
        value = ValueOf(value, tokens.at(part.id)[at]);
        ASSERT_LT(at / limits_.page_size, static_cast<int64_t>(slot.pages.size()));
        const int64_t place =
            slot.pages[at / limits_.page_size] * limits_.page_size + at % limits_.page_size;
        if (at >= part.start) {
          EXPECT_TRUE(written_now.insert(place).second) << "two sequences write to one place";
          written_[place] = value;
          if (at == 0) slot.first = part.id;
          ++num_computed;
        } else {
          EXPECT_EQ(written_now.count(place), 0u) << "reads what this step writes";
        }
        ASSERT_EQ(written_[place], value) << "sequence " << part.id << ", token " << at;
      }
      if (limits_.own_first_page) {
        EXPECT_EQ(slot.first, part.id);
      }
    }
  }

  int64_t num_computed = 0;

 private:
  struct Slot {
    SeqId id = -1;
    SeqId first = -1;  // whose first token was computed in this slot
    std::vector<int32_t> pages;
  };
  const SchedulerLimits limits_;
  std::vector<uint64_t> written_;
  std::map<int32_t, Slot> slots_;
};

struct Outcome {
  int64_t num_computed = 0;
  int64_t num_reused = 0;
  int64_t num_preemptions = 0;
};

struct Job {
  Tokens prompt;
  int64_t max_new = 1;
  int64_t cancelled_after = -1;  // so many generated tokens; -1: never
};

// Runs jobs to their ends, `at_once` of them together; the next token of one is a number of its
// own.
Outcome RunAll(const SchedulerLimits& limits, const std::vector<Job>& jobs, size_t at_once) {
  Scheduler scheduler(limits);
  PagesInMemory pages(limits);
  std::map<SeqId, Tokens> tokens;
  std::deque<ScheduledStep> in_flight;
  size_t next = 0;
  while (next < jobs.size() || scheduler.HasWork() || !in_flight.empty()) {
    while (tokens.size() < at_once && next < jobs.size()) {
      const auto id = static_cast<SeqId>(next);
      const Job& job = jobs[next++];
      tokens[id] = job.prompt;
      EXPECT_TRUE(scheduler
                      .Add(id, static_cast<int64_t>(job.prompt.size()), job.max_new,
                           KeysOf(job.prompt, limits.page_size))
                      .ok());
    }
    while (std::optional<ScheduledStep> step = scheduler.Plan()) {
      pages.Execute(*step, tokens);
      if (testing::Test::HasFatalFailure()) return {};
      in_flight.push_back(*std::move(step));
    }
    if (in_flight.empty()) {
      ADD_FAILURE() << "no step possible, yet work is left";
      return {};
    }
    scheduler.Commit();
    for (const ScheduledSeq& part : in_flight.front().seqs) {
      const auto it = tokens.find(part.id);
      if (it == tokens.end() || !part.samples) continue;
      const Job& job = jobs[part.id];
      const auto generated = static_cast<int64_t>(it->second.size() - job.prompt.size());
      it->second.push_back(1000 + 100 * part.id + generated);
      if (generated == job.cancelled_after) {
        scheduler.Finish(part.id);
        tokens.erase(it);
      } else if (generated + 1 == job.max_new) {
        scheduler.Finish(part.id, KeysOf(it->second, limits.page_size));
        tokens.erase(it);
      }
    }
    in_flight.pop_front();
  }
  EXPECT_EQ(scheduler.num_free_pages(), limits.num_pages);
  return {pages.num_computed, scheduler.num_reused_tokens(), scheduler.num_preemptions()};
}

Tokens Range(int64_t first, int64_t count) {
  Tokens tokens;
  for (int64_t i = 0; i < count; ++i) tokens.push_back(first + i);
  return tokens;
}

TEST(SharedPrefixTest, APromptThatWasThereIsComputedFromItsLastFullPageOn) {
  SchedulerLimits limits = {.page_size = 4, .num_pages = 64, .max_context = 64};
  const std::vector<Job> jobs = {{Range(0, 18), 3}, {Range(0, 18), 3}};
  Outcome outcome = RunAll(limits, jobs, /*at_once=*/1);
  EXPECT_EQ(outcome.num_reused, 16);
  EXPECT_EQ(outcome.num_computed, 20 + 4);  // the last token of each is never computed
  limits.own_first_page = true;
  outcome = RunAll(limits, jobs, /*at_once=*/1);
  EXPECT_EQ(outcome.num_reused, 12);
  EXPECT_EQ(outcome.num_computed, 20 + 8);
}

TEST(SharedPrefixTest, TheLastKnownTokenIsAlwaysComputed) {
  const SchedulerLimits limits = {.page_size = 4, .num_pages = 64, .max_context = 64};
  EXPECT_EQ(RunAll(limits, {{Range(0, 16), 1}, {Range(0, 16), 1}}, 1).num_reused, 12);
}

TEST(SharedPrefixTest, AConversationGoesOnFromWhatWasGenerated) {
  const SchedulerLimits limits = {.page_size = 4, .num_pages = 64, .max_context = 64};
  std::vector<Job> jobs = {{Range(0, 10), 8}, {Range(0, 10), 1}};
  for (int64_t i = 0; i < 8; ++i) jobs[1].prompt.push_back(1000 + i);
  // 17 of these 18 tokens were computed: 4 pages.
  EXPECT_EQ(RunAll(limits, jobs, 1).num_reused, 16);
}

TEST(SharedPrefixTest, PagesThatNobodyHoldsGiveWayFromTheEndOfTheOldest) {
  const SchedulerLimits limits = {.page_size = 4, .num_pages = 10, .max_context = 40};
  // The second takes 8 pages, of 6 free ones and 4 idle ones: the first keeps 2.
  const std::vector<Job> jobs = {{Range(0, 17), 1}, {Range(100, 32), 1}, {Range(0, 17), 1}};
  EXPECT_EQ(RunAll(limits, jobs, 1).num_reused, 8);
}

TEST(SharedPrefixTest, AFirstPageThatNobodyReadsStaysWithThoseItLeadsTo) {
  const SchedulerLimits limits = {
      .page_size = 4, .num_pages = 10, .max_context = 40, .own_first_page = true};
  // The second reads three pages, the third needs one of four idle ones: the last of them.
  const std::vector<Job> jobs = {
      {Range(0, 17), 1}, {Range(0, 17), 1}, {Range(100, 27), 1}, {Range(0, 17), 1}};
  EXPECT_EQ(RunAll(limits, jobs, 1).num_reused, 12 + 8);
}

TEST(SharedPrefixTest, RandomCrowdsReadWhatTheyWouldHaveWritten) {
  std::mt19937 random(5);
  Outcome all;
  for (int round = 0; round < 300; ++round) {
    const auto below = [&](int64_t n) { return static_cast<int64_t>(random() % n); };
    SchedulerLimits limits = {.page_size = 1 + below(5),
                              .max_step_tokens = 1 + below(20),
                              .max_seqs = 1 + below(6),
                              .max_context = 60,
                              .own_first_page = below(2) == 0,
                              .max_steps_in_flight = 1 + below(3)};
    limits.num_pages = 60 / limits.page_size + 1 + below(30);
    std::vector<Job> jobs;
    for (int64_t i = 5 + below(20); i > 0; --i) {
      Job job;
      job.prompt = Range(100 * below(3), 1 + below(30));
      for (int64_t more = below(6); more > 0; --more) job.prompt.push_back(below(2));
      job.max_new = 1 + below(20);
      if (below(5) == 0) job.cancelled_after = below(4);
      jobs.push_back(job);
    }
    const Outcome outcome = RunAll(limits, jobs, 1 + below(10));
    if (HasFailure()) return;
    all.num_reused += outcome.num_reused;
    all.num_preemptions += outcome.num_preemptions;
  }
  EXPECT_GT(all.num_reused, 1000);
  EXPECT_GT(all.num_preemptions, 100);
}

}  // namespace
}  // namespace thinwire
