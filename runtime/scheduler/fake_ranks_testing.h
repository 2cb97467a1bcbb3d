// Ranks for tests of what plans steps.
#pragma once

#include <algorithm>
#include <cstdint>
#include <map>
#include <set>
#include <vector>

#include "gtest/gtest.h"
#include "runtime/scheduler/hand_off_queue.h"
#include "runtime/scheduler/scheduler.h"

namespace thinwire {

// Executes steps as ranks do, with integers for tokens, and checks every promise of a step on the
// way.
class FakeRanks {
 public:
  explicit FakeRanks(const SchedulerLimits& limits)
      : limits_(limits), page_owner_(limits.num_pages, -1) {}

  void Add(SeqId id, int64_t num_known) { num_known_[id] = num_known; }

  // Runs at planning time: page contents follow the order of steps.
  void Execute(const ScheduledStep& step) {
    EXPECT_EQ(step.id, next_step_++);
    int64_t num_tokens = 0;
    std::set<SeqId> ids;
    for (const ScheduledSeq& part : step.seqs) {
      EXPECT_TRUE(ids.insert(part.id).second);
      EXPECT_GE(part.num_tokens, 1);
      EXPECT_LT(part.slot, limits_.max_seqs);
      num_tokens += part.num_tokens;
      Slot& slot = slots_[part.slot];
      if (part.binds) slot = Slot{part.id, {}, 0};
      ASSERT_EQ(slot.id, part.id);
      ASSERT_EQ(slot.num_cached, part.start);
      for (const int32_t page : part.new_pages) {
        slot.pages.push_back(page);
        page_owner_[page] = part.id;
      }
      slot.num_cached += part.num_tokens;
      ASSERT_LE(slot.num_cached, static_cast<int64_t>(slot.pages.size()) * limits_.page_size);
      // What is known, or what steps in flight sample.
      const int64_t num_sampled = num_known_[part.id] + num_awaited_[part.id];
      ASSERT_LE(slot.num_cached, num_sampled);
      EXPECT_EQ(part.late, slot.num_cached > num_known_[part.id]);
      EXPECT_EQ(part.samples, slot.num_cached == num_sampled);
      num_awaited_[part.id] += part.samples ? 1 : 0;
      num_late_tokens_seen += part.late ? 1 : 0;
      // Every page that attention reads still holds this sequence.
      for (const int32_t page : slot.pages) EXPECT_EQ(page_owner_[page], part.id);
    }
    EXPECT_EQ(num_tokens, step.num_tokens);
    EXPECT_LE(num_tokens, limits_.max_step_tokens);
    max_step_tokens_seen = std::max(max_step_tokens_seen, num_tokens);
  }

  void Sampled(SeqId id) {
    ++num_known_[id];
    --num_awaited_[id];
  }

  // A sequence leaves these ranks, or comes to them.
  void Send(const MovingSeq& seq) {
    const Slot& slot = slots_[seq.from_slot];
    EXPECT_EQ(slot.id, seq.id);
    EXPECT_EQ(slot.num_cached, seq.num_tokens);
    for (const int32_t page : slot.pages) EXPECT_EQ(page_owner_[page], seq.id);
  }
  void Receive(const MovingSeq& seq) {
    slots_[seq.to.slot] = Slot{seq.id, seq.to.pages, seq.num_tokens};
    for (const int32_t page : seq.to.pages) page_owner_[page] = seq.id;
    num_known_[seq.id] = seq.num_tokens + 1;
  }

  int64_t max_step_tokens_seen = 0;
  int64_t num_late_tokens_seen = 0;

 private:
  struct Slot {
    SeqId id = -1;
    std::vector<int32_t> pages;
    int64_t num_cached = 0;
  };
  SchedulerLimits limits_;
  std::map<SeqId, int64_t> num_known_;
  std::map<SeqId, int64_t> num_awaited_;  // sampled by steps that are not committed
  std::map<int32_t, Slot> slots_;
  std::vector<SeqId> page_owner_;
  int64_t next_step_ = 0;
};

}  // namespace thinwire
