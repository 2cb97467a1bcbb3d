#include "runtime/scheduler/hand_off_queue.h"

#include <memory>
#include <optional>
#include <random>
#include <utility>

#include "gtest/gtest.h"
#include "runtime/scheduler/fake_ranks_testing.h"

namespace thinwire {
namespace {

SchedulerLimits Limits(int64_t num_pages) {
  SchedulerLimits limits;
  limits.page_size = 4;
  limits.num_pages = num_pages;
  limits.max_step_tokens = 16;
  limits.max_seqs = 4;
  limits.max_context = 64;
  return limits;
}

// Two groups of ranks and what stands between them, in the way an engine uses them.
struct Groups {
  explicit Groups(const SchedulerLimits& prefill_limits, const SchedulerLimits& decode_limits)
      : prefill(prefill_limits),
        decode(decode_limits),
        prefill_ranks(prefill_limits),
        decode_ranks(decode_limits),
        queue(&prefill, &decode) {}

  void Add(SeqId id, int64_t prompt) {
    ASSERT_TRUE(prefill.Add(id, prompt, 1).ok());
    prefill_ranks.Add(id, prompt);
    prompts[id] = prompt;
  }

  void Move() {
    for (const MovingSeq& seq : queue.Depart()) prefill_ranks.Send(seq);
    for (const MovingSeq& seq : queue.Arrive()) decode_ranks.Receive(seq);
  }

  void Plan(Scheduler& scheduler, FakeRanks& ranks, std::deque<ScheduledStep>& in_flight) {
    while (std::optional<ScheduledStep> step = scheduler.Plan()) {
      ranks.Execute(*step);
      in_flight.push_back(*std::move(step));
    }
  }

  void Plan() {
    Plan(prefill, prefill_ranks, prefill_steps);
    Plan(decode, decode_ranks, decode_steps);
  }

  // The oldest step of the prefill group is done: who has its first token.
  void CommitPrefill() {
    prefill.Commit();
    for (const ScheduledSeq& part : prefill_steps.front().seqs) {
      if (part.samples) queue.Add(part.id, prompts[part.id] + 1);
    }
    prefill_steps.pop_front();
  }

  Scheduler prefill, decode;
  FakeRanks prefill_ranks, decode_ranks;
  HandOffQueue queue;
  std::map<SeqId, int64_t> prompts;
  std::deque<ScheduledStep> prefill_steps, decode_steps;
};

TEST(HandOffQueueTest, ASequenceKeepsItsPagesUntilThereIsRoomForIt) {
  Groups groups(Limits(20), Limits(3));
  groups.Add(0, 7);
  groups.Add(1, 7);
  groups.Plan();
  groups.CommitPrefill();
  groups.Move();  // two pages for its 7 tokens and the 8th, one stays in reserve
  EXPECT_EQ(groups.decode.num_running(), 1);
  EXPECT_EQ(groups.prefill.num_free_pages(), 18);
  EXPECT_FALSE(groups.prefill.Plan().has_value());  // the other one is held
  groups.Plan();
  ASSERT_EQ(groups.decode_steps.size(), 1u);
  EXPECT_EQ(groups.decode_steps[0].seqs[0].start, 7);
  EXPECT_EQ(groups.decode_steps[0].num_tokens, 1);
  groups.decode.Commit();
  groups.decode.Finish(0);
  groups.Move();
  EXPECT_EQ(groups.prefill.num_free_pages(), 20);
  EXPECT_TRUE(groups.queue.empty());
  EXPECT_EQ(groups.decode.Plan()->seqs[0].id, 1);
}

TEST(HandOffQueueTest, ASequenceArrivesWhenTheStepsBeforeItsDepartureAreDone) {
  SchedulerLimits limits = Limits(40);
  limits.max_steps_in_flight = 2;
  Groups groups(limits, Limits(40));
  groups.Add(0, 16);
  groups.Add(1, 16);
  groups.Plan();  // a step each
  ASSERT_EQ(groups.prefill_steps.size(), 2u);
  groups.CommitPrefill();
  ASSERT_EQ(groups.queue.Depart().size(), 1u);
  EXPECT_TRUE(groups.queue.Arrive().empty());
  EXPECT_FALSE(groups.decode.Plan().has_value());
  groups.CommitPrefill();
  EXPECT_EQ(groups.queue.Arrive().size(), 1u);
  EXPECT_EQ(groups.decode.Plan()->seqs[0].id, 0);
}

TEST(HandOffQueueTest, CancelledSequencesLeaveNothingBehind) {
  SchedulerLimits limits = Limits(40);
  limits.max_steps_in_flight = 2;
  Groups groups(limits, Limits(40));
  for (SeqId id = 0; id < 3; ++id) groups.Add(id, id == 0 ? 16 : 8);
  groups.Plan();
  groups.CommitPrefill();
  ASSERT_EQ(groups.queue.Depart().size(), 1u);
  EXPECT_TRUE(groups.queue.Cancel(0));  // on the way
  EXPECT_FALSE(groups.queue.Cancel(1));
  groups.CommitPrefill();
  EXPECT_TRUE(groups.queue.Cancel(1));  // waiting
  EXPECT_TRUE(groups.queue.Cancel(2));
  EXPECT_EQ(groups.queue.Arrive().size(), 1u);  // was sent, so it is received
  EXPECT_TRUE(groups.queue.empty());
  EXPECT_FALSE(groups.prefill.HasWork() || groups.decode.HasWork());
  EXPECT_EQ(groups.prefill.num_free_pages(), 40);
  EXPECT_EQ(groups.decode.num_free_pages(), 40);
}

TEST(HandOffQueueTest, RandomWorkloadsFinishAndKeepEveryPromise) {
  std::mt19937 random(1);
  auto draw = [&](int64_t low, int64_t high) {
    return std::uniform_int_distribution<int64_t>(low, high)(random);
  };
  int64_t num_preemptions = 0, num_waits = 0;
  for (int round = 0; round < 300; ++round) {
    SchedulerLimits limits[2];
    const int64_t page_size = draw(1, 5), max_context = draw(3, 60);
    for (SchedulerLimits& group : limits) {
      group.page_size = page_size;
      group.max_context = max_context;
      group.max_step_tokens = draw(1, 20);
      group.max_seqs = draw(1, 9);
      group.max_steps_in_flight = draw(1, 4);
      group.num_pages = (max_context + page_size - 1) / page_size + draw(0, 10);
    }
    Groups groups(limits[0], limits[1]);
    std::map<SeqId, int64_t> left;  // tokens to sample
    for (SeqId id = draw(1, 25) - 1; id >= 0; --id) {
      const int64_t prompt = draw(1, max_context - 2);
      left[id] = draw(2, max_context - prompt);
      groups.Add(id, prompt);
    }
    while (groups.prefill.HasWork() || groups.decode.HasWork()) {
      groups.Move();
      num_waits += !groups.queue.empty();
      groups.Plan();
      const bool can_prefill = !groups.prefill_steps.empty();
      const bool can_decode = !groups.decode_steps.empty();
      ASSERT_TRUE(can_prefill || can_decode) << "no step possible, yet work is left";
      // Which group is faster changes all the time.
      if (can_prefill && (!can_decode || draw(0, 1) == 0)) {
        for (const ScheduledSeq& part : groups.prefill_steps.front().seqs) {
          left[part.id] -= part.samples;
        }
        groups.CommitPrefill();
        continue;
      }
      groups.decode.Commit();
      for (const ScheduledSeq& part : groups.decode_steps.front().seqs) {
        if (!part.samples) continue;
        groups.decode_ranks.Sampled(part.id);
        if (--left[part.id] == 0) groups.decode.Finish(part.id);
      }
      groups.decode_steps.pop_front();
    }
    for (const auto& [id, tokens] : left) ASSERT_EQ(tokens, 0) << id;
    EXPECT_EQ(groups.prefill.num_free_pages(), limits[0].num_pages);
    EXPECT_EQ(groups.decode.num_free_pages(), limits[1].num_pages);
    num_preemptions += groups.decode.num_preemptions();
    if (::testing::Test::HasFailure()) FAIL() << "round " << round;
  }
  // The workloads are tight enough to test what they mean to.
  EXPECT_GT(num_preemptions, 100);
  EXPECT_GT(num_waits, 1000);
}

}  // namespace
}  // namespace thinwire
