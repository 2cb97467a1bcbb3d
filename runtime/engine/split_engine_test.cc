// Jobs of a prefill and a decode group against jobs of one mesh.
#include <chrono>
#include <future>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "absl/time/time.h"
#include "gtest/gtest.h"
#include "kernels/core/status_macros.h"
#include "kernels/core/thread_pool.h"
#include "parallel/comm/local_communicator.h"
#include "tests/support/engine_answers.h"
#include "tests/support/local_mesh.h"

namespace thinwire {
namespace {

constexpr int kOpt = 0;
const char* const kModels[] = {"opt-nano", "llama-nano", "tiny-llama-linear", "tiny-llama3"};

EngineOptions Options(int model) {
  EngineOptions options;
  options.model_dir = std::string(THINWIRE_BUNDLED_MODELS "/") + kModels[model];
  options.max_seqs = 16;
  options.step_timeout = absl::Minutes(2);
  return options;
}

// Greedy and sampled, long and short, with and without scores and logits.
std::vector<Request> Requests() {
  std::vector<Request> requests;
  for (int i = 0; i < 10; ++i) {
    Request request;
    for (int j = 0; j < 1 + i * i % 61; ++j) request.prompt_ids.push_back((i * 37 + j * 11) % 97);
    request.max_new_tokens = i == 3 ? 1 : 4 + 5 * i;
    if (i % 3 == 1) {
      request.sampling.temperature = 0.9f;
      request.sampling.seed = i;
    }
    request.want_first_logits = i % 4 == 2;
    request.score_prompt = i % 5 == 2;
    if (i == 7) request.max_new_tokens = 0;  // only scored
    if (i == 8) {
      request.stop_token_ids = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10};
      request.sampling.temperature = 2.0f;
    }
    requests.push_back(std::move(request));
  }
  return requests;
}

struct Answers : EngineAnswers {
  std::vector<EngineCounters> counters;  // by group
};

Answers RunAll(const EngineOptions& options, const RankLayout& layout,
               const std::vector<Request>& requests) {
  Answers answers;
  const absl::Status status = RunOnLocalRanks(options, layout, [&](Engine& engine) -> absl::Status {
    TW_RETURN_IF_ERROR(SubmitAll(requests, engine, answers));
    while (engine.HasWork()) TW_RETURN_IF_ERROR(engine.Step());
    for (int group = 0; group < layout.num_groups(); ++group) {
      answers.counters.push_back(engine.counters(group));
    }
    return absl::OkStatus();
  });
  EXPECT_TRUE(status.ok()) << status;
  return answers;
}

void ExpectSameTokens(const Answers& expected, const Answers& found) {
  for (size_t i = 0; i < expected.completions.size(); ++i) {
    const Completion& a = expected.completions[i];
    const Completion& b = found.completions[i];
    EXPECT_EQ(a.token_ids, b.token_ids) << "request " << i;
    EXPECT_EQ(a.finish_reason, b.finish_reason) << "request " << i;
    EXPECT_EQ(found.told[i], b.token_ids) << "request " << i;
    EXPECT_EQ(a.prompt_log_probs.size(), b.prompt_log_probs.size()) << "request " << i;
    EXPECT_EQ(a.first_logits.size(), b.first_logits.size()) << "request " << i;
  }
}

RankLayout Split(int prefill, int decode, int pp) {
  return RankLayout::PrefillAndDecode(prefill, decode, pp, prefill + decode).value();
}

TEST(SplitEngineTest, AnswersAreThoseOfOneMesh) {
  for (size_t model = 0; model < std::size(kModels); ++model) {
    const EngineOptions options = Options(static_cast<int>(model));
    for (const RankLayout& layout :
         {Split(1, 1, 1), Split(2, 1, 1), Split(1, 2, 1), Split(4, 2, 1), Split(2, 4, 2)}) {
      SCOPED_TRACE(std::string(kModels[model]) + ", " + layout.Description());
      const Answers answers = RunAll(options, layout, Requests());
      const Answers expected = RunAll(options, RankLayout::OneMesh(layout.mesh(0)), Requests());
      ExpectSameTokens(expected, answers);
      // The prefill group computes these, cut like the mesh: to the bit.
      for (size_t i = 0; i < answers.completions.size(); ++i) {
        const Completion& a = expected.completions[i];
        const Completion& b = answers.completions[i];
        EXPECT_TRUE(a.prompt_log_probs == b.prompt_log_probs) << "request " << i;
        EXPECT_TRUE(a.first_logits == b.first_logits) << "request " << i;
      }
      // All but those that end with their first token.
      EXPECT_GE(answers.counters[0].num_hand_offs, 7);
      EXPECT_EQ(answers.counters[1].num_prompt_tokens, 0);
    }
  }
}

TEST(SplitEngineTest, LittleRoomInTheDecodeGroupChangesNoAnswer) {
  EngineOptions options = Options(kOpt);
  std::vector<Request> requests = Requests();
  // Two of these, computed in no time and decoded for long, outgrow the pages together.
  for (int i = 0; i < 8; ++i) {
    Request request;
    request.prompt_ids = {i, 5};
    request.max_new_tokens = 90;
    requests.push_back(std::move(request));
  }
  const Answers expected = RunAll(options, RankLayout::OneMesh({}), requests);
  options.max_step_tokens = 16;
  options.max_seqs = 4;
  options.page_size = 4;
  // 30 pages of 4 tokens of 4 layers, K and V, 4 heads of 32 channels; a request needs up to 26.
  options.kv_cache_bytes = 30 * 4 * 4 * 2 * 4 * 32 * 4;
  for (const RankLayout& layout : {Split(1, 1, 1), Split(2, 1, 1), Split(2, 2, 2)}) {
    SCOPED_TRACE(layout.Description());
    const Answers answers = RunAll(options, layout, requests);
    ExpectSameTokens(expected, answers);
    if (layout.mesh(1).world_size() > 1) continue;  // whose ranks have twice the pages
    EXPECT_GT(answers.counters[1].num_preemptions, 0);
    EXPECT_GT(answers.counters[1].num_prompt_tokens, 0);  // computed anew
  }
}

TEST(SplitEngineTest, CancelledRequestsLeaveRoomForOthers) {
  EngineOptions options = Options(kOpt);
  options.max_step_tokens = 16;
  options.max_seqs = 3;
  const Answers expected = RunAll(options, RankLayout::OneMesh({}), Requests());
  for (int steps = 0; steps < 40; steps += 7) {
    Answers answers;
    answers.completions.resize(1);
    const absl::Status status =
        RunOnLocalRanks(options, Split(2, 1, 1), [&](Engine& engine) -> absl::Status {
          std::vector<int64_t> ids;
          for (const Request& request : Requests()) {
            TW_ASSIGN_OR_RETURN(const int64_t id, engine.Submit(request));
            ids.push_back(id);
          }
          for (int i = 0; i < steps && engine.HasWork(); ++i) TW_RETURN_IF_ERROR(engine.Step());
          for (const int64_t id : ids) engine.Cancel(id);
          while (engine.HasWork()) TW_RETURN_IF_ERROR(engine.Step());
          Request request = Requests()[9];
          request.on_done = [&](Completion done) { answers.completions[0] = std::move(done); };
          TW_RETURN_IF_ERROR(engine.Submit(std::move(request)).status());
          while (engine.HasWork()) TW_RETURN_IF_ERROR(engine.Step());
          return absl::OkStatus();
        });
    EXPECT_TRUE(status.ok()) << status;
    EXPECT_EQ(answers.completions[0].token_ids, expected.completions[9].token_ids);
  }
}

TEST(SplitEngineTest, CancellingSomeAtAnyTimeLetsTheOthersFinish) {
  EngineOptions options = Options(kOpt);
  options.page_size = 4;
  options.kv_cache_bytes = 9 * 4 * 2 * 2 * 4 * 32 * 4;  // 9 pages of 2 layers and all heads
  for (unsigned seed = 0; seed < 100; ++seed) {
    std::mt19937 random(seed);
    const auto below = [&](int n) { return static_cast<int>(random() % static_cast<unsigned>(n)); };
    constexpr int kNumRequests = 8;
    std::vector<bool> done(kNumRequests), cancelled(kNumRequests);
    const absl::Status status =
        RunOnLocalRanks(options, Split(4, 2, 2), [&](Engine& engine) -> absl::Status {
          std::vector<int64_t> ids;
          for (int i = 0; i < kNumRequests; ++i) {
            Request request;
            request.prompt_ids.assign(below(3) == 0 ? 16 : 1 + below(20), 5 + i);
            request.max_new_tokens = 2 + below(8);
            request.on_done = [&done, i](const Completion&) { done[i] = true; };
            TW_ASSIGN_OR_RETURN(const int64_t id, engine.Submit(std::move(request)));
            ids.push_back(id);
          }
          while (engine.HasWork()) {
            const int i = below(3 * kNumRequests);
            if (i < kNumRequests && !done[i] && !cancelled[i]) {
              cancelled[i] = true;
              engine.Cancel(ids[i]);
            }
            TW_RETURN_IF_ERROR(engine.Step());
          }
          return absl::OkStatus();
        });
    ASSERT_TRUE(status.ok()) << status;
    for (int i = 0; i < kNumRequests; ++i) EXPECT_NE(done[i], cancelled[i]) << "seed " << seed;
  }
}

TEST(SplitEngineTest, WhatTheDecodeGroupHasNoRoomForIsRefused) {
  EngineOptions options = Options(kOpt);
  options.kv_cache_bytes = 3 * 16 * 4 * 2 * 4 * 32 * 4;  // 48 tokens on a rank with all heads
  const absl::Status status =
      RunOnLocalRanks(options, Split(2, 1, 1), [&](Engine& engine) -> absl::Status {
        Request request;
        request.prompt_ids.assign(40, 5);
        request.max_new_tokens = 20;
        const absl::Status refused = engine.Submit(request).status();
        EXPECT_EQ(refused.code(), absl::StatusCode::kResourceExhausted);
        EXPECT_NE(refused.message().find("decode group: "), absl::string_view::npos) << refused;
        request.max_new_tokens = 1;  // the prefill group has room, and needs no other
        return engine.Submit(request).status();
      });
  EXPECT_TRUE(status.ok()) << status;
}

TEST(SplitEngineTest, AGroupWithNothingToDoOutlivesTheTimeoutOfAStep) {
  EngineOptions options = Options(kOpt);
  options.step_timeout = absl::Seconds(2);
  const absl::Status status =
      RunOnLocalRanks(options, Split(2, 1, 1), [&](Engine& engine) -> absl::Status {
        Request request;
        request.prompt_ids = {5, 6, 7};
        request.max_new_tokens = 100;
        request.on_token = [](int32_t) {
          std::this_thread::sleep_for(std::chrono::milliseconds(30));
          return true;
        };
        TW_RETURN_IF_ERROR(engine.Submit(std::move(request)).status());
        while (engine.HasWork()) TW_RETURN_IF_ERROR(engine.Step());
        return absl::OkStatus();
      });
  EXPECT_TRUE(status.ok()) << status;
}

TEST(SplitEngineTest, ARankThatHangsIsNoticedThoughItsGroupHasNothingToDo) {
  EngineOptions options = Options(kOpt);
  options.step_timeout = absl::Seconds(1);
  auto world = CreateLocalCommunicators(2);
  std::promise<void> done;
  // Loads, and never follows.
  std::thread hanging([&, until = done.get_future()] {
    ThreadPool pool(1);
    const auto rank = EngineRank::Create(options, Split(1, 1, 1), world[1].get(), &pool);
    EXPECT_TRUE(rank.ok()) << rank.status();
    until.wait();
  });
  ThreadPool pool(1);
  absl::Status status;
  {
    const auto rank = EngineRank::Create(options, Split(1, 1, 1), world[0].get(), &pool);
    ASSERT_TRUE(rank.ok()) << rank.status();
    Engine engine(rank->get());
    Request request;
    request.prompt_ids = {5, 6, 7};
    request.max_new_tokens = 1;  // the decode group's help is not needed
    for (int i = 0; i < 200000 && status.ok(); ++i) {
      ASSERT_TRUE(engine.Submit(request).ok());
      while (status.ok() && engine.HasWork()) status = engine.Step();
    }
    done.set_value();
    hanging.join();
  }
  EXPECT_EQ(status.code(), absl::StatusCode::kDeadlineExceeded) << status;
  EXPECT_NE(status.message().find("control: "), absl::string_view::npos) << status;
}

}  // namespace
}  // namespace thinwire
