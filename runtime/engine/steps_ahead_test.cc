// Steps that are launched before the tokens of the last one are known, against steps one by one.
#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/core/status_macros.h"
#include "kernels/core/thread_pool.h"
#include "parallel/comm/local_communicator.h"
#include "tests/support/engine_answers.h"
#include "tests/support/local_mesh.h"

namespace thinwire {
namespace {

using ::testing::HasSubstr;

// Sums that depend on no batch make equal tokens certain.
EngineOptions Options(const char* model) {
  EngineOptions options;
  options.model_dir = absl::StrCat(THINWIRE_BUNDLED_MODELS "/", model);
  options.max_seqs = 5;
  options.max_step_tokens = 24;
  options.step_timeout = absl::Minutes(2);
  options.wire = *ParseWireOptions("exact", "native");
  return options;
}

RankLayout TensorRanks(int tp) { return RankLayout::OneMesh(*Mesh::Create(tp, 1, tp)); }

// Greedy and sampled, of one token and of many, of several chunks, with and without scores and
// logits, and with ends that nobody knows before.
std::vector<Request> Requests() {
  std::vector<Request> requests;
  for (int i = 0; i < 16; ++i) {
    Request request;
    for (int j = 0; j < 1 + i * i % 61; ++j) request.prompt_ids.push_back((i * 37 + j * 11) % 97);
    request.max_new_tokens = i == 3 ? 1 : 2 + 7 * i % 40;
    if (i % 3 == 1) {
      request.sampling.temperature = i % 2 == 0 ? 0.9f : 2.0f;
      request.sampling.seed = i;
    }
    request.want_first_logits = i % 4 == 2;
    request.score_prompt = i % 5 == 2;
    if (i == 7) request.max_new_tokens = 0;  // only scored
    if (i % 6 == 4) request.stop_token_ids = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10};
    requests.push_back(std::move(request));
  }
  return requests;
}

struct Answers : EngineAnswers {
  EngineCounters counters;
  int64_t most_ahead = 0;  // steps in flight after a step's result was taken
};

Answers RunAll(EngineOptions options, const RankLayout& layout, int64_t steps_ahead,
               const std::vector<Request>& requests) {
  options.steps_ahead = steps_ahead;
  Answers answers;
  const absl::Status status = RunOnLocalRanks(options, layout, [&](Engine& engine) -> absl::Status {
    TW_RETURN_IF_ERROR(SubmitAll(requests, engine, answers,
                                 [](size_t i, size_t told) { return i % 4 != 1 || told < 6; }));
    while (engine.HasWork()) {
      TW_RETURN_IF_ERROR(engine.Step());
      answers.most_ahead =
          std::max<int64_t>(answers.most_ahead, engine.scheduler(0).num_in_flight());
    }
    EXPECT_EQ(engine.scheduler(0).num_free_pages(), engine.scheduler(0).limits().num_pages);
    answers.counters = engine.counters();
    return absl::OkStatus();
  });
  EXPECT_TRUE(status.ok()) << status;
  return answers;
}

void ExpectSame(const Answers& expected, const Answers& found) {
  for (size_t i = 0; i < expected.completions.size(); ++i) {
    SCOPED_TRACE(absl::StrCat("request ", i));
    const Completion& a = expected.completions[i];
    const Completion& b = found.completions[i];
    EXPECT_EQ(a.token_ids, b.token_ids);
    EXPECT_EQ(a.finish_reason, b.finish_reason);
    EXPECT_EQ(found.told[i], b.token_ids);
    EXPECT_TRUE(a.prompt_log_probs == b.prompt_log_probs);
    EXPECT_TRUE(a.first_logits == b.first_logits);
  }
  EXPECT_EQ(found.counters.num_generated_tokens, expected.counters.num_generated_tokens);
}

TEST(StepsAheadTest, AnswersAreThoseOfStepsOneByOne) {
  for (const char* model : {"opt-nano", "llama-nano", "tiny-llama3"}) {
    const Answers expected = RunAll(Options(model), TensorRanks(1), 0, Requests());
    EXPECT_EQ(expected.most_ahead, 0);
    int64_t num_stopped = 0;
    for (const Completion& completion : expected.completions) {
      num_stopped += completion.finish_reason == FinishReason::kStop ? 1 : 0;
    }
    EXPECT_GE(num_stopped, 3);
    for (const int tp : {1, 2}) {
      SCOPED_TRACE(absl::StrCat(model, ", tp ", tp));
      const Answers found = RunAll(Options(model), TensorRanks(tp), 1, Requests());
      ExpectSame(expected, found);
      EXPECT_EQ(found.most_ahead, 1);
      EXPECT_EQ(found.counters.num_prompt_tokens, expected.counters.num_prompt_tokens);
    }
  }
}

TEST(StepsAheadTest, FewPagesChangeNoAnswer) {
  EngineOptions options = Options("opt-nano");
  std::vector<Request> requests = Requests();
  // Computed in no time and decoded for long: two of these outgrow the pages together.
  for (int i = 0; i < 8; ++i) {
    Request request;
    request.prompt_ids = {i, 5};
    request.max_new_tokens = 90;
    requests.push_back(std::move(request));
  }
  const Answers expected = RunAll(options, TensorRanks(1), 0, requests);
  options.page_size = 4;
  // 26 pages of 4 tokens of 4 layers, K and V, 4 heads of 32 channels.
  options.kv_cache_bytes = 26 * 4 * 4 * 2 * 4 * 32 * 4;
  const Answers found = RunAll(options, TensorRanks(1), 1, requests);
  ExpectSame(expected, found);
  EXPECT_GT(found.counters.num_preemptions, 0);
  options.kv_cache_bytes /= 2;  // of each of two ranks
  ExpectSame(expected, RunAll(options, TensorRanks(2), 1, requests));
}

TEST(StepsAheadTest, SharedPagesChangeNoAnswer) {
  EngineOptions options = Options("llama-nano");
  options.page_size = 8;
  std::vector<Request> requests = Requests();
  for (size_t i = 0; i < requests.size(); ++i) {
    requests[i].prompt_ids.insert(requests[i].prompt_ids.begin(), 20, 5 + static_cast<int>(i % 2));
  }
  const Answers expected = RunAll(options, TensorRanks(1), 0, requests);
  options.share_pages = true;
  for (const int tp : {1, 2}) {
    const Answers found = RunAll(options, TensorRanks(tp), 1, requests);
    ExpectSame(expected, found);
    EXPECT_GT(found.counters.num_reused_tokens, 0);
  }
}

TEST(StepsAheadTest, CancelledRequestsLeaveRoomForOthers) {
  EngineOptions options = Options("opt-nano");
  options.max_seqs = 3;
  const Answers expected = RunAll(options, TensorRanks(1), 0, Requests());
  options.steps_ahead = 1;
  for (int steps = 0; steps < 40; steps += 3) {
    SCOPED_TRACE(absl::StrCat("after ", steps, " steps"));
    std::vector<Completion> completions(Requests().size());
    const absl::Status status =
        RunOnLocalRanks(options, TensorRanks(1 + steps % 2), [&](Engine& engine) -> absl::Status {
          std::vector<int64_t> ids;
          for (size_t i = 0; i < completions.size(); ++i) {
            Request request = Requests()[i];
            request.on_token = [told = 0, i](int32_t) mutable { return i % 4 != 1 || ++told < 6; };
            request.on_done = [&completions, i](Completion done) {
              completions[i] = std::move(done);
            };
            TW_ASSIGN_OR_RETURN(const int64_t id, engine.Submit(std::move(request)));
            ids.push_back(id);
          }
          for (int i = 0; i < steps && engine.HasWork(); ++i) TW_RETURN_IF_ERROR(engine.Step());
          for (size_t i = 0; i < ids.size(); i += 2) engine.Cancel(ids[i]);
          while (engine.HasWork()) TW_RETURN_IF_ERROR(engine.Step());
          EXPECT_EQ(engine.scheduler(0).num_free_pages(), engine.scheduler(0).limits().num_pages);
          return absl::OkStatus();
        });
    EXPECT_TRUE(status.ok()) << status;
    for (size_t i = 1; i < completions.size(); i += 2) {
      EXPECT_EQ(completions[i].token_ids, expected.completions[i].token_ids) << "request " << i;
    }
  }
}

TEST(StepsAheadTest, SequencesBehindTokensThatNobodyComputedGoAhead) {
  const auto run = [](int64_t steps_ahead) {
    EngineOptions options = Options("llama-nano");
    options.steps_ahead = steps_ahead;
    std::vector<int32_t> told;
    const absl::Status status =
        RunOnLocalRanks(options, TensorRanks(1), [&](Engine& engine) -> absl::Status {
          Request computed = Requests()[9];
          computed.max_new_tokens = 9;
          TW_RETURN_IF_ERROR(engine.Submit(computed).status());
          while (engine.HasWork()) TW_RETURN_IF_ERROR(engine.Step());
          // In the pages, and so behind the tokens, of the one before.
          computed.on_token = [&](int32_t token) {
            told.push_back(token);
            return true;
          };
          TW_RETURN_IF_ERROR(engine.SubmitInContext(computed).status());
          TW_RETURN_IF_ERROR(engine.Step());
          EXPECT_EQ(engine.scheduler(0).num_in_flight(), steps_ahead);
          while (engine.HasWork()) TW_RETURN_IF_ERROR(engine.Step());
          return absl::OkStatus();
        });
    EXPECT_TRUE(status.ok()) << status;
    EXPECT_EQ(told.size(), 9u);
    return told;
  };
  EXPECT_EQ(run(1), run(0));
}

TEST(StepsAheadTest, SeveralStagesOrGroupsRefuseThem) {
  EngineOptions options = Options("opt-nano");
  options.steps_ahead = 1;
  for (const RankLayout& layout :
       {RankLayout::OneMesh(*Mesh::Create(1, 2, 2)), *RankLayout::PrefillAndDecode(1, 1, 1, 2)}) {
    const absl::Status status =
        RunOnLocalRanks(options, layout, [](Engine&) { return absl::OkStatus(); });
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr("--steps-ahead 1"));
  }
}

TEST(StepsAheadTest, ATokenThatNoStepHasSampledIsInternal) {
  auto world = CreateLocalCommunicators(1);
  ThreadPool pool(1);
  const auto rank = EngineRank::Create(Options("opt-nano"), TensorRanks(1), world[0].get(), &pool);
  ASSERT_TRUE(rank.ok()) << rank.status();
  StepPlan plan;
  PlannedSeq seq;
  seq.slot = 2;
  seq.token_ids = {-3};
  seq.new_pages = {0};
  plan.seqs.push_back(seq);
  const absl::Status status = (*rank)->Lead(0, plan);
  EXPECT_EQ(status.code(), absl::StatusCode::kInternal) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("slot 2 has token id -3"));
}

}  // namespace
}  // namespace thinwire
