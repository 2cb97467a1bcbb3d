#include "runtime/scheduler/scheduler.h"

#include <map>
#include <random>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "runtime/scheduler/fake_ranks_testing.h"

namespace thinwire {
namespace {

using ::testing::HasSubstr;

struct Job {
  int64_t prompt = 0;
  int64_t max_new = 0;
  int64_t ends = 0;  // after so many tokens; 0: max_new
};

struct Outcome {
  std::map<SeqId, int64_t> generated;
  int64_t num_steps = 0;
  int64_t num_preemptions = 0;
  int64_t num_late_tokens = 0;
};

// Runs jobs to the end with as many steps in flight as allowed.
Outcome RunAll(const SchedulerLimits& limits, const std::vector<Job>& jobs) {
  Scheduler scheduler(limits);
  FakeRanks ranks(limits);
  Outcome outcome;
  for (size_t i = 0; i < jobs.size(); ++i) {
    const auto id = static_cast<SeqId>(i);
    EXPECT_TRUE(scheduler.Add(id, jobs[i].prompt, jobs[i].max_new).ok());
    ranks.Add(id, jobs[i].prompt);
  }
  std::deque<ScheduledStep> in_flight;
  while (scheduler.HasWork() || !in_flight.empty()) {
    while (true) {
      std::optional<ScheduledStep> step = scheduler.Plan();
      if (!step.has_value()) break;
      ranks.Execute(*step);
      for (const ScheduledSeq& part : step->seqs) {
        // The last token is sampled and never computed.
        const Job& job = jobs[part.id];
        EXPECT_LT(part.start + part.num_tokens, job.prompt + job.max_new);
      }
      in_flight.push_back(*std::move(step));
      ++outcome.num_steps;
    }
    if (in_flight.empty()) {
      ADD_FAILURE() << "no step possible, yet work is left";
      break;
    }
    scheduler.Commit();
    for (const ScheduledSeq& part : in_flight.front().seqs) {
      const Job& job = jobs[part.id];
      const int64_t end = job.ends > 0 ? job.ends : job.max_new;
      if (!part.samples || outcome.generated[part.id] == end) continue;
      ranks.Sampled(part.id);
      if (++outcome.generated[part.id] == end) scheduler.Finish(part.id);
    }
    in_flight.pop_front();
  }
  EXPECT_EQ(scheduler.num_free_pages(), limits.num_pages);
  outcome.num_preemptions = scheduler.num_preemptions();
  outcome.num_late_tokens = ranks.num_late_tokens_seen;
  return outcome;
}

SchedulerLimits Limits(int64_t num_pages) {
  SchedulerLimits limits;
  limits.page_size = 4;
  limits.num_pages = num_pages;
  limits.max_step_tokens = 16;
  limits.max_seqs = 4;
  limits.max_context = 64;
  return limits;
}

TEST(SchedulerTest, APromptGoesInChunksAndThenDecodes) {
  Scheduler scheduler(Limits(20));
  ASSERT_TRUE(scheduler.Add(7, 20, 2).ok());
  ScheduledStep step = scheduler.Plan().value();
  ASSERT_EQ(step.seqs.size(), 1u);
  EXPECT_EQ(step.seqs[0].start, 0);
  EXPECT_EQ(step.seqs[0].num_tokens, 16);
  EXPECT_EQ(step.seqs[0].new_pages.size(), 4u);
  EXPECT_FALSE(step.seqs[0].samples);
  EXPECT_FALSE(scheduler.Plan().has_value());  // one step in flight at a time
  scheduler.Commit();
  step = scheduler.Plan().value();
  EXPECT_EQ(step.seqs[0].start, 16);
  EXPECT_EQ(step.seqs[0].num_tokens, 4);
  EXPECT_TRUE(step.seqs[0].samples);
  scheduler.Commit();
  step = scheduler.Plan().value();
  EXPECT_EQ(step.seqs[0].start, 20);
  EXPECT_EQ(step.seqs[0].num_tokens, 1);
  EXPECT_EQ(step.seqs[0].new_pages.size(), 1u);
  scheduler.Commit();
  scheduler.Finish(7);
  EXPECT_FALSE(scheduler.HasWork());
  EXPECT_EQ(scheduler.num_free_pages(), 20);
}

TEST(SchedulerTest, LongPromptsDoNotStopOthersDecoding) {
  Scheduler scheduler(Limits(40));
  ASSERT_TRUE(scheduler.Add(0, 3, 10).ok());
  ASSERT_TRUE(scheduler.Plan().has_value());
  scheduler.Commit();
  ASSERT_TRUE(scheduler.Add(1, 50, 1).ok());
  const ScheduledStep step = scheduler.Plan().value();
  ASSERT_EQ(step.seqs.size(), 2u);
  EXPECT_EQ(step.seqs[0].num_tokens, 1);
  EXPECT_EQ(step.seqs[1].num_tokens, 15);
}

TEST(SchedulerTest, RequestsThatCanNeverRunAreRefusedWithNumbers) {
  Scheduler scheduler(Limits(4));
  absl::Status status = scheduler.Add(0, 60, 10);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("context of 64"));
  status = scheduler.Add(1, 10, 20);
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(status.message()), HasSubstr("need 8 KV pages"));
  EXPECT_TRUE(scheduler.Add(2, 10, 7).ok());  // 16 tokens computed at most: 4 pages
}

TEST(SchedulerTest, TheLatestArrivalGivesWayWhenPagesRunOut) {
  const Outcome outcome = RunAll(Limits(6), {{8, 16}, {4, 16}});
  EXPECT_GE(outcome.num_preemptions, 1);
  EXPECT_EQ(outcome.generated.at(0), 16);
  EXPECT_EQ(outcome.generated.at(1), 16);
}

TEST(SchedulerTest, StepsInFlightShareTheDecodingSequences) {
  SchedulerLimits limits = Limits(40);
  limits.max_steps_in_flight = 2;
  Scheduler scheduler(limits);
  for (SeqId id = 0; id < 4; ++id) ASSERT_TRUE(scheduler.Add(id, 2, 8).ok());
  ASSERT_EQ(scheduler.Plan()->seqs.size(), 4u);  // the prompts
  EXPECT_FALSE(scheduler.Plan().has_value());
  scheduler.Commit();
  EXPECT_EQ(scheduler.Plan()->seqs.size(), 2u);
  EXPECT_EQ(scheduler.Plan()->seqs.size(), 2u);
  EXPECT_FALSE(scheduler.Plan().has_value());
}

TEST(SchedulerTest, ChunksOfOnePromptFillAPipeline) {
  SchedulerLimits limits = Limits(40);
  limits.max_steps_in_flight = 3;
  Scheduler scheduler(limits);
  ASSERT_TRUE(scheduler.Add(0, 48, 1).ok());
  EXPECT_EQ(scheduler.Plan()->seqs[0].start, 0);
  EXPECT_EQ(scheduler.Plan()->seqs[0].start, 16);
  const ScheduledStep last = scheduler.Plan().value();
  EXPECT_EQ(last.seqs[0].start, 32);
  EXPECT_TRUE(last.seqs[0].samples);
}

TEST(SchedulerTest, AStepAheadTakesTheTokenThatIsNotKnownYet) {
  SchedulerLimits limits = Limits(20);
  limits.steps_ahead = 1;
  Scheduler scheduler(limits);
  ASSERT_TRUE(scheduler.Add(0, 4, 3).ok());
  EXPECT_FALSE(scheduler.Plan()->seqs[0].late);
  ScheduledStep step = scheduler.Plan().value();
  EXPECT_TRUE(step.seqs[0].late);
  EXPECT_EQ(step.seqs[0].start, 4);
  EXPECT_EQ(step.seqs[0].num_tokens, 1);
  EXPECT_EQ(step.seqs[0].new_pages.size(), 1u);
  EXPECT_TRUE(step.seqs[0].samples);
  EXPECT_FALSE(scheduler.Plan().has_value());
  scheduler.Commit();
  step = scheduler.Plan().value();
  EXPECT_TRUE(step.seqs[0].late);
  EXPECT_EQ(step.seqs[0].start, 5);
  scheduler.Commit();
  EXPECT_FALSE(scheduler.Plan().has_value());  // the third token is the last one
  scheduler.Commit();
  scheduler.Finish(0);
  EXPECT_EQ(scheduler.num_free_pages(), 20);
}

TEST(SchedulerTest, AStepAheadHasAllSequencesThatDecodeAndTheOthersChunks) {
  SchedulerLimits limits = Limits(40);
  limits.steps_ahead = 1;
  Scheduler scheduler(limits);
  for (SeqId id = 0; id < 3; ++id) ASSERT_TRUE(scheduler.Add(id, 2, 8).ok());
  ASSERT_EQ(scheduler.Plan()->seqs.size(), 3u);
  ASSERT_TRUE(scheduler.Add(3, 30, 1).ok());
  const ScheduledStep step = scheduler.Plan().value();
  ASSERT_EQ(step.seqs.size(), 4u);
  for (size_t s = 0; s < 3; ++s) EXPECT_TRUE(step.seqs[s].late);
  EXPECT_FALSE(step.seqs[3].late);
  EXPECT_EQ(step.seqs[3].num_tokens, 13);
}

TEST(SchedulerTest, FinishDropsWhatAStepAheadAdds) {
  SchedulerLimits limits = Limits(20);
  limits.steps_ahead = 1;
  Scheduler scheduler(limits);
  ASSERT_TRUE(scheduler.Add(0, 4, 30).ok());
  ASSERT_TRUE(scheduler.Plan().has_value());
  ASSERT_TRUE(scheduler.Plan().has_value());
  scheduler.Commit();
  scheduler.Finish(0);  // its first token was a stop token
  EXPECT_EQ(scheduler.num_free_pages(), 20);
  EXPECT_FALSE(scheduler.Plan().has_value());
  scheduler.Commit();
  EXPECT_FALSE(scheduler.HasWork());
}

TEST(SchedulerTest, FinishFreesASequenceInFlight) {
  Scheduler scheduler(Limits(20));
  ASSERT_TRUE(scheduler.Add(0, 5, 5).ok());
  ASSERT_TRUE(scheduler.Plan().has_value());
  scheduler.Finish(0);
  EXPECT_EQ(scheduler.num_free_pages(), 20);
  scheduler.Commit();
  EXPECT_FALSE(scheduler.HasWork());
  ASSERT_TRUE(scheduler.Add(1, 5, 5).ok());
  scheduler.Finish(1);  // still waiting
  EXPECT_FALSE(scheduler.HasWork());
}

TEST(SchedulerTest, RandomWorkloadsFinishAndKeepEveryPromise) {
  std::mt19937 random(1);
  auto draw = [&](int64_t low, int64_t high) {
    return std::uniform_int_distribution<int64_t>(low, high)(random);
  };
  int64_t num_preemptions = 0;
  int64_t num_late_tokens = 0;
  for (int round = 0; round < 300; ++round) {
    SchedulerLimits limits;
    limits.page_size = draw(1, 5);
    limits.max_step_tokens = draw(1, 20);
    limits.max_seqs = draw(1, 9);
    limits.max_context = draw(2, 60);
    limits.max_steps_in_flight = draw(1, 4);
    limits.steps_ahead = draw(0, 1);
    limits.num_pages = (limits.max_context + limits.page_size - 1) / limits.page_size + draw(0, 10);
    std::vector<Job> jobs;
    for (int64_t i = draw(1, 25); i > 0; --i) {
      const int64_t prompt = draw(1, limits.max_context - 1);
      const int64_t max_new = draw(1, limits.max_context - prompt);
      jobs.push_back({prompt, max_new, draw(1, max_new)});
    }
    const Outcome outcome = RunAll(limits, jobs);
    ASSERT_EQ(outcome.generated.size(), jobs.size());
    for (size_t i = 0; i < jobs.size(); ++i) {
      ASSERT_EQ(outcome.generated.at(static_cast<SeqId>(i)), jobs[i].ends);
    }
    num_late_tokens += outcome.num_late_tokens;
    num_preemptions += outcome.num_preemptions;
    if (::testing::Test::HasFailure()) FAIL() << "round " << round;
  }
  EXPECT_GT(num_preemptions, 100);  // the workloads are tight enough to test what they mean to
  EXPECT_GT(num_late_tokens, 1000);
}

}  // namespace
}  // namespace thinwire
