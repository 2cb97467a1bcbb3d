#include "runtime/engine/step_plan.h"

#include "gtest/gtest.h"
#include "runtime/engine/byte_stream.h"

namespace thinwire {
namespace {

StepPlan ExamplePlan() {
  StepPlan plan;
  plan.id = 41;
  PlannedSeq decode;
  decode.slot = 3;
  decode.start = 17;
  decode.binds = true;
  decode.token_ids = {5};
  decode.new_pages = {9};
  decode.sample = true;
  decode.sampling = {.temperature = 0.5f, .top_k = 4, .top_p = 0.9f, .seed = 7};
  PlannedSeq score;
  score.token_ids = {1, 2, 3};
  score.targets = {2, 3, -1};
  score.want_logits = true;
  plan.seqs = {decode, score};
  return plan;
}

TEST(StepPlanTest, WhatMovesSurvivesTheWire) {
  StepPlan plan;
  plan.kind = StepPlan::Kind::kReceive;
  plan.moved = {{.id = 12, .slot = 3, .num_tokens = 33, .pages = {4, 2, 9}}, {.id = 13}};
  const StepPlan copy = StepPlan::Parse(plan.Serialize()).value();
  EXPECT_EQ(copy.kind, StepPlan::Kind::kReceive);
  ASSERT_EQ(copy.moved.size(), 2u);
  EXPECT_EQ(copy.moved[0].id, 12);
  EXPECT_EQ(copy.moved[0].slot, 3);
  EXPECT_EQ(copy.moved[0].num_tokens, 33);
  EXPECT_EQ(copy.moved[0].pages, std::vector<int32_t>({4, 2, 9}));
  EXPECT_EQ(copy.moved[1].id, 13);
}

TEST(StepPlanTest, SurvivesTheWire) {
  const StepPlan copy = StepPlan::Parse(ExamplePlan().Serialize()).value();
  EXPECT_EQ(copy.kind, StepPlan::Kind::kRun);
  EXPECT_EQ(copy.id, 41);
  ASSERT_EQ(copy.seqs.size(), 2u);
  EXPECT_EQ(copy.seqs[0].slot, 3);
  EXPECT_EQ(copy.seqs[0].start, 17);
  EXPECT_EQ(copy.seqs[0].new_pages, std::vector<int32_t>({9}));
  EXPECT_TRUE(copy.seqs[0].sample);
  EXPECT_EQ(copy.seqs[0].sampling.top_k, 4);
  EXPECT_EQ(copy.seqs[0].sampling.seed, 7u);
  EXPECT_FALSE(copy.seqs[1].sample);
  EXPECT_TRUE(copy.seqs[1].want_logits);
  EXPECT_EQ(copy.seqs[1].targets, std::vector<int32_t>({2, 3, -1}));
}

TEST(StepPlanTest, CutOrLengthenedMessagesAreErrors) {
  const std::string bytes = ExamplePlan().Serialize();
  for (size_t length = 0; length < bytes.size(); ++length) {
    EXPECT_EQ(StepPlan::Parse(bytes.substr(0, length)).status().code(),
              absl::StatusCode::kInternal);
  }
  EXPECT_FALSE(StepPlan::Parse(bytes + "x").ok());
}

TEST(StepResultTest, SurvivesTheWire) {
  StepResult result;
  result.id = 5;
  result.seqs = {{.token_id = 8}, {.logits = {0.5f, -1.0f}, .log_probs = {-2.0f}}};
  const StepResult copy = StepResult::Parse(result.Serialize()).value();
  EXPECT_EQ(copy.id, 5);
  ASSERT_EQ(copy.seqs.size(), 2u);
  EXPECT_EQ(copy.seqs[0].token_id, 8);
  EXPECT_EQ(copy.seqs[1].logits, result.seqs[1].logits);
  EXPECT_EQ(copy.seqs[1].log_probs, result.seqs[1].log_probs);
}

TEST(ByteStreamTest, AHugeCountIsAnErrorNotAnAllocation) {
  ByteWriter writer;
  writer.Put(int64_t{1} << 60);
  const std::string bytes = writer.Take();
  ByteReader reader(bytes);
  EXPECT_TRUE(reader.GetArray<int32_t>().empty());
  EXPECT_FALSE(reader.status().ok());
}

}  // namespace
}  // namespace thinwire
