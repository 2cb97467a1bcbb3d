// The serving loop over a real engine of a small model, on two ranks where it matters.
#include "runtime/server/serving_loop.h"

#include <atomic>
#include <chrono>
#include <limits>
#include <random>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "gtest/gtest.h"
#include "runtime/batch/text_batch.h"
#include "runtime/server/retry_hint.h"
#include "tests/support/local_mesh.h"

namespace thinwire {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

const char kModel[] = THINWIRE_BUNDLED_MODELS "/opt-nano";

// K and V of 16 tokens: 4 layers, 4 heads of 32 floats.
constexpr int64_t kPageBytes = int64_t{16} * 4 * 2 * 4 * 32 * 4;

EngineOptions Options(int64_t max_seqs) {
  EngineOptions options;
  options.model_dir = kModel;
  options.max_seqs = max_seqs;
  options.step_timeout = absl::Minutes(2);
  return options;
}

// A loop with its engine in a thread; drained in the destructor.
class Server {
 public:
  explicit Server(const ServingLimits& limits = {}, int64_t max_seqs = 8, int tp = 1,
                  int64_t num_pages = 0, int64_t steps_ahead = 0)
      : loop(limits), tokenizer(*LoadTokenizer(kModel)) {
    const Mesh mesh = *Mesh::Create(tp, 1, tp);
    EngineOptions options = Options(max_seqs);
    options.kv_cache_bytes = num_pages * kPageBytes;
    options.steps_ahead = steps_ahead;
    thread_ = std::thread([this, mesh, options] {
      result = RunOnLocalMesh(options, mesh,
                              [&](Engine& engine) { return loop.Run(engine, *tokenizer); });
    });
    while (loop.state() == ServingState::kStarting) absl::SleepFor(absl::Milliseconds(1));
  }

  ~Server() { Stop(absl::ZeroDuration()); }

  void Stop(absl::Duration timeout) {
    if (!thread_.joinable()) return;
    loop.Drain(timeout);
    thread_.join();
  }

  ServingLoop loop;
  std::unique_ptr<Tokenizer> tokenizer;
  absl::Status result;

 private:
  std::thread thread_;
};

GenerationRequest Make(const std::string& id, int64_t max_tokens, int32_t first = 5) {
  GenerationRequest request;
  request.id = id;
  request.prompt_ids = {2, first, 17, 40};
  request.params.max_tokens = max_tokens;
  request.params.ignore_eos = true;
  return request;
}

struct Answer {
  std::string text;
  std::vector<int32_t> token_ids;
  GenerationEnd end;
};

Answer Read(Generation& generation) {
  Answer answer;
  while (true) {
    EXPECT_TRUE(generation.WaitUntil(ServingClock::now() + seconds(60))) << generation.id();
    GenerationDelta delta = generation.Take();
    answer.text += delta.text;
    answer.token_ids.insert(answer.token_ids.end(), delta.token_ids.begin(), delta.token_ids.end());
    if (delta.end.has_value()) {
      answer.end = *std::move(delta.end);
      return answer;
    }
    if (delta.empty()) return answer;
  }
}

// Waits until nothing runs and all pages are free.
void ExpectIdle(const ServingLoop& loop) {
  for (int i = 0; i < 60000; ++i) {
    const ServingLoad load = loop.load();
    if (load.num_running == 0 && load.num_queued == 0 && load.kv_pages_used == 0) return;
    absl::SleepFor(absl::Milliseconds(1));
  }
  const ServingLoad load = loop.load();
  ADD_FAILURE() << load.num_running << " run, " << load.num_queued << " wait, "
                << load.kv_pages_used << " pages in use";
}

TEST(ServingLoopTest, AnswersAreThoseOfABatch) {
  std::vector<Prompt> prompts;
  for (int i = 0; i < 40; ++i) {
    Prompt prompt;
    prompt.id = absl::StrCat(i);
    prompt.token_ids = {2, 5 + i, 17, 40 + 3 * i};
    prompt.params.max_tokens = 5 + i;
    prompt.params.sampling.temperature = i % 2 == 0 ? 0.0f : 0.9f;
    prompt.params.sampling.seed = i;
    if (i % 4 == 3) prompt.params.stop = {"e ", " th"};
    prompts.push_back(prompt);
  }
  std::vector<TextResult> expected;
  const std::unique_ptr<Tokenizer> tokenizer = *LoadTokenizer(kModel);
  ASSERT_TRUE(RunOnLocalMesh(Options(4), *Mesh::Create(1, 1, 1), [&](Engine& engine) {
                size_t next = 0;
                return RunTextBatch(
                    engine, *tokenizer,
                    [&]() -> std::optional<PromptFile::Line> {
                      if (next == prompts.size()) return std::nullopt;
                      ++next;
                      return PromptFile::Line{0, prompts[next - 1].id, prompts[next - 1]};
                    },
                    {.on_result = [&](const TextResult& result) {
                      expected.push_back(result);
                      return absl::OkStatus();
                    }});
              }).ok());
  Server server({}, 8, 2);
  std::vector<std::shared_ptr<Generation>> generations;
  for (const Prompt& prompt : prompts) {
    GenerationRequest request;
    request.id = prompt.id;
    request.prompt_ids = prompt.token_ids;
    request.params = prompt.params;
    auto generation = server.loop.Submit(std::move(request));
    ASSERT_TRUE(generation.ok()) << generation.status();
    generations.push_back(*std::move(generation));
  }
  for (size_t i = 0; i < generations.size(); ++i) {
    const Answer answer = Read(*generations[i]);
    EXPECT_TRUE(answer.end.status.ok()) << answer.end.status;
    EXPECT_EQ(answer.token_ids, expected[i].token_ids) << i;
    EXPECT_EQ(answer.text, expected[i].text) << i;
    EXPECT_EQ(answer.end.reason == EndReason::kLength, expected[i].finish_reason == "length");
    EXPECT_EQ(answer.end.num_prompt_tokens, 4);
  }
  ExpectIdle(server.loop);
}

TEST(ServingLoopTest, ACancelledRequestLeavesTheEngine) {
  Server server;
  const auto generation = *server.loop.Submit(Make("long", 400));
  ASSERT_TRUE(generation->WaitUntil(ServingClock::now() + seconds(60)));
  server.loop.Cancel(*generation, absl::CancelledError("gone"));
  const Answer answer = Read(*generation);
  EXPECT_TRUE(absl::IsCancelled(answer.end.status));
  EXPECT_EQ(answer.end.reason, EndReason::kCancelled);
  EXPECT_LT(answer.token_ids.size(), 400u);
  ExpectIdle(server.loop);
}

TEST(ServingLoopTest, AFullQueueRefusesWithAHint) {
  ServingLimits limits;
  limits.max_queued_requests = 3;
  Server server(limits, 1);
  std::vector<std::shared_ptr<Generation>> accepted;
  absl::Status refused;
  for (int i = 0; i < 100 && refused.ok(); ++i) {
    auto generation = server.loop.Submit(Make(absl::StrCat(i), 400));
    refused = generation.status();
    if (generation.ok()) accepted.push_back(*std::move(generation));
  }
  EXPECT_TRUE(absl::IsResourceExhausted(refused)) << refused;
  EXPECT_TRUE(IsRetryable(refused));
  ASSERT_TRUE(RetryHint(refused).has_value());
  EXPECT_GE(*RetryHint(refused), absl::Milliseconds(100));
  EXPECT_EQ(server.loop.load().rejected.at("resource_exhausted"), 1);
  EXPECT_EQ(server.loop.Abort("", /*prefix=*/true), static_cast<int64_t>(accepted.size()));
  for (const auto& generation : accepted) {
    EXPECT_TRUE(absl::IsCancelled(Read(*generation).end.status));
  }
}

TEST(ServingLoopTest, QueuedTokensAreBounded) {
  ServingLimits limits;
  limits.max_queued_tokens = 1000;
  Server server(limits, 1);
  absl::Status refused;
  std::vector<std::shared_ptr<Generation>> accepted;
  for (int i = 0; i < 100 && refused.ok(); ++i) {
    auto generation = server.loop.Submit(Make(absl::StrCat(i), 400));
    refused = generation.status();
    if (generation.ok()) accepted.push_back(*std::move(generation));
  }
  EXPECT_TRUE(absl::IsResourceExhausted(refused)) << refused;
  EXPECT_EQ(server.loop.Abort("", /*prefix=*/true), static_cast<int64_t>(accepted.size()));
  for (const auto& generation : accepted) {
    EXPECT_TRUE(absl::IsCancelled(Read(*generation).end.status));
  }
}

TEST(ServingLoopTest, WhatWouldWaitTooLongIsRefusedAsSoonAsTheRateIsKnown) {
  ServingLimits limits;
  limits.max_wait = absl::Milliseconds(200);
  Server server(limits, /*max_seqs=*/1);
  // Before that they all get in. Their tokens take longer than the measurement.
  std::vector<std::shared_ptr<Generation>> waiting;
  for (int i = 0; i < 1000; ++i) {
    auto generation = server.loop.Submit(Make(absl::StrCat(i), 300));
    ASSERT_TRUE(generation.ok()) << generation.status();
    waiting.push_back(*std::move(generation));
  }
  EXPECT_EQ(server.loop.CheckRoom(), absl::OkStatus());
  while (server.loop.load().predicted_wait_seconds == 0.0) absl::SleepFor(absl::Milliseconds(1));
  const absl::Status refused = server.loop.CheckRoom();
  EXPECT_EQ(refused.code(), absl::StatusCode::kResourceExhausted) << refused;
  EXPECT_TRUE(RetryHint(refused).has_value());
  // Proxies try another server then, which lack of room here is no reason for.
  server.loop.Drain(absl::ZeroDuration());
  EXPECT_TRUE(absl::IsUnavailable(server.loop.CheckRoom()));
}

TEST(ServingLoopTest, WhatWouldBeLateIsRefusedUnlessItOvertakes) {
  ServingLimits limits;
  limits.max_wait = absl::InfiniteDuration();
  Server server(limits, /*max_seqs=*/1);
  std::vector<std::shared_ptr<Generation>> waiting;
  for (int i = 0; i < 1000; ++i) waiting.push_back(*server.loop.Submit(Make(absl::StrCat(i), 300)));
  while (server.loop.load().predicted_wait_seconds == 0.0) absl::SleepFor(absl::Milliseconds(1));
  GenerationRequest request = Make("late", 1);
  request.deadline = ServingClock::now() + milliseconds(100);
  const auto late = server.loop.Submit(request);
  EXPECT_EQ(late.status().code(), absl::StatusCode::kResourceExhausted) << late.status();
  EXPECT_TRUE(RetryHint(late.status()).has_value());
  request.id = "urgent";
  request.priority = 100;
  EXPECT_EQ(server.loop.Submit(request).status(), absl::OkStatus());
  request.id = "patient";
  request.priority = 0;
  request.deadline = ServingClock::time_point::max();
  EXPECT_EQ(server.loop.Submit(request).status(), absl::OkStatus());
}

TEST(ServingLoopTest, WhatCanNeverRunIsRefusedAtOnce) {
  Server server;
  const auto code = [&](const GenerationRequest& request) {
    return server.loop.Submit(request).status().code();
  };
  GenerationRequest request = Make("x", 8);
  request.prompt_ids.assign(512, 5);
  EXPECT_EQ(code(request), absl::StatusCode::kInvalidArgument);
  request.prompt_ids = {1024};
  EXPECT_EQ(code(request), absl::StatusCode::kInvalidArgument);
  request.prompt_ids = {};
  EXPECT_EQ(code(request), absl::StatusCode::kInvalidArgument);
  request = Make("x", 0);
  EXPECT_EQ(code(request), absl::StatusCode::kInvalidArgument);
  request = Make("x", 8);
  request.params.sampling.top_p = 2.0f;
  EXPECT_EQ(code(request), absl::StatusCode::kInvalidArgument);
  request = Make("x", 8);
  request.params.stop = {""};
  EXPECT_EQ(code(request), absl::StatusCode::kInvalidArgument);
  request = Make("x", 8);
  for (const int priority : {101, -101, std::numeric_limits<int>::min()}) {
    request.priority = priority;
    EXPECT_EQ(code(request), absl::StatusCode::kInvalidArgument);
  }
  for (const char* id : {"two\nlines", "a b", "\x7f", "caf\xc3\xa9"}) {
    EXPECT_EQ(code(Make(id, 8)), absl::StatusCode::kInvalidArgument) << id;
  }
  request = Make("x", 8);
  request.params.stop = {std::string(5000, 'x')};
  EXPECT_EQ(code(request), absl::StatusCode::kInvalidArgument);
  const auto live = *server.loop.Submit(Make("x", 400));
  EXPECT_EQ(code(Make("x", 8)), absl::StatusCode::kAlreadyExists);
  server.loop.Cancel(*live, absl::CancelledError("enough"));
  Read(*live);
  const auto again = *server.loop.Submit(Make("x", 8));
  EXPECT_EQ(Read(*again).token_ids.size(), 8u);
}

TEST(ServingLoopTest, DeadlinesHoldInTheQueueAndWhileDecoding) {
  Server server({}, 1);
  GenerationRequest request = Make("late", 400);
  request.deadline = ServingClock::now() + milliseconds(10);
  const auto late = *server.loop.Submit(request);
  const auto blocked = *server.loop.Submit(Make("behind", 50));
  request = Make("waits", 400);
  request.deadline = ServingClock::now() + milliseconds(1);
  const auto waits = server.loop.Submit(request);  // which may be too late itself
  request = Make("over", 400);
  request.deadline = ServingClock::now();
  const absl::Status over = server.loop.Submit(request).status();
  EXPECT_TRUE(absl::IsDeadlineExceeded(over)) << over;
  const Answer answer = Read(*late);
  EXPECT_TRUE(absl::IsDeadlineExceeded(answer.end.status)) << answer.end.status;
  EXPECT_EQ(answer.end.reason, EndReason::kDeadline);
  EXPECT_LT(answer.token_ids.size(), 400u);
  const absl::Status waited = waits.ok() ? Read(**waits).end.status : waits.status();
  EXPECT_TRUE(absl::IsDeadlineExceeded(waited)) << waited;
  EXPECT_TRUE(Read(*blocked).end.status.ok());
  ExpectIdle(server.loop);
}

TEST(ServingLoopTest, AReaderThatNeverReadsIsGivenUp) {
  ServingLimits limits;
  limits.slow_reader_timeout = absl::Milliseconds(5);
  limits.heartbeat = absl::Milliseconds(5);
  Server server(limits);
  const auto slow = *server.loop.Submit(Make("slow", 400));
  std::atomic<bool> abandoned = false;
  slow->WhenAbandoned([&] { abandoned = true; });
  ExpectIdle(server.loop);
  for (int i = 0; i < 60000 && !abandoned; ++i) absl::SleepFor(absl::Milliseconds(1));
  EXPECT_TRUE(abandoned);
  const Answer answer = Read(*slow);
  EXPECT_TRUE(absl::IsAborted(answer.end.status)) << answer.end.status;
}

TEST(ServingLoopTest, PriorityOvertakesInTheQueue) {
  Server server({}, 1);
  const auto first = *server.loop.Submit(Make("first", 200));
  const auto low = *server.loop.Submit(Make("low", 20));
  GenerationRequest request = Make("high", 20);
  request.priority = 1;
  const auto high = *server.loop.Submit(request);
  EXPECT_TRUE(Read(*low).end.status.ok());
  // What overtook is done by now.
  EXPECT_TRUE(high->WaitUntil(ServingClock::now()));
  EXPECT_TRUE(Read(*high).end.status.ok());
  EXPECT_TRUE(Read(*first).end.status.ok());
}

TEST(ServingLoopTest, ADrainLetsRequestsFinish) {
  Server server;
  const auto running = *server.loop.Submit(Make("running", 150));
  server.loop.Drain(absl::Milliseconds(std::numeric_limits<int64_t>::max()));
  EXPECT_TRUE(absl::IsUnavailable(server.loop.Submit(Make("new", 1)).status()));
  EXPECT_EQ(Read(*running).token_ids.size(), 150u);
  server.Stop(absl::Minutes(1));
  EXPECT_TRUE(server.result.ok()) << server.result;
  EXPECT_EQ(server.loop.state(), ServingState::kStopped);
  // Ranks that end now are no news.
  server.loop.Fail(absl::UnavailableError("rank 1 is gone"));
  EXPECT_EQ(server.loop.state(), ServingState::kStopped);
  EXPECT_EQ(server.loop.load().progress, "");
}

TEST(ServingLoopTest, ADrainEndsWhatTakesTooLong) {
  Server server({}, 1);
  const auto running = *server.loop.Submit(Make("running", 400));
  const auto queued = *server.loop.Submit(Make("queued", 400));
  server.Stop(absl::ZeroDuration());
  EXPECT_TRUE(server.result.ok()) << server.result;
  for (const auto& generation : {running, queued}) {
    EXPECT_TRUE(absl::IsUnavailable(Read(*generation).end.status));
  }
}

TEST(ServingLoopTest, AFailureEndsEveryRequestWithWhatWasEmitted) {
  Server server({}, 1);
  const auto running = *server.loop.Submit(Make("running", 400));
  const auto queued = *server.loop.Submit(Make("queued", 400));
  server.loop.Fail(absl::UnavailableError("rank 1 is gone"));
  for (const auto& generation : {running, queued}) {
    const Answer answer = Read(*generation);
    EXPECT_TRUE(absl::IsUnavailable(answer.end.status));
    EXPECT_EQ(answer.end.num_generated_tokens, static_cast<int64_t>(answer.token_ids.size()));
  }
  EXPECT_TRUE(absl::IsUnavailable(server.loop.Submit(Make("new", 1)).status()));
  server.Stop(absl::Minutes(1));
  EXPECT_TRUE(absl::IsUnavailable(server.result)) << server.result;
  EXPECT_EQ(server.loop.state(), ServingState::kFailed);
  const ServingLoad load = server.loop.load();
  EXPECT_EQ(load.totals.ended.at("error"), 2);
  EXPECT_EQ(load.num_running + load.num_queued + load.num_queued_tokens, 0);
}

TEST(ServingLoopTest, ChangesOfStateAreToldInOrder) {
  for (int i = 0; i < 200; ++i) {
    ServingLoop loop({});
    std::vector<ServingState> told;
    loop.AddListener([&](ServingState state) { told.push_back(state); });
    std::thread drains([&] { loop.Drain(absl::ZeroDuration()); });
    loop.Fail(absl::UnavailableError("rank 1 is gone"));
    drains.join();
    ASSERT_FALSE(told.empty());
    EXPECT_EQ(told.back(), ServingState::kFailed);
  }
}

TEST(ServingLoopTest, LogProbabilitiesComeWithTheEnd) {
  Server server;
  GenerationRequest request = Make("scored", 12);
  request.want_log_probs = true;
  request.num_top_log_probs = 3;
  const Answer answer = Read(**server.loop.Submit(request));
  ASSERT_TRUE(answer.end.status.ok()) << answer.end.status;
  ASSERT_EQ(answer.end.log_probs.size(), 12u);
  ASSERT_EQ(answer.end.top_log_probs.size(), 36u);
  for (size_t i = 0; i < 12; ++i) {
    const TokenLogProb* const top = &answer.end.top_log_probs[3 * i];
    EXPECT_EQ(top[0].token_id, answer.token_ids[i]);
    EXPECT_EQ(top[0].log_prob, answer.end.log_probs[i]);
    EXPECT_GE(top[1].log_prob, top[2].log_prob);
  }
  // Greedy tokens are the most probable ones: none is rarer than a uniform draw.
  for (const float log_prob : answer.end.log_probs) {
    EXPECT_LE(log_prob, 0.0f);
    EXPECT_GT(log_prob, -std::log(1024.0f));
  }
  ExpectIdle(server.loop);
  request.num_top_log_probs = 21;
  EXPECT_TRUE(absl::IsInvalidArgument(server.loop.Submit(request).status()));
  request.num_top_log_probs = 1;
  request.want_log_probs = false;
  EXPECT_TRUE(absl::IsInvalidArgument(server.loop.Submit(request).status()));
}

TEST(ServingLoopTest, LogProbabilitiesNeedRoomForTheLastToken) {
  // Generation computes all but the last token, scoring all.
  Server server({}, 1, 1, /*num_pages=*/2);
  ASSERT_EQ(server.loop.load().kv_pages, 2);
  const int64_t longest = 2 * server.loop.load().page_size + 1 - 4;
  GenerationRequest request = Make("x", longest);
  request.want_log_probs = true;
  const absl::Status refused = server.loop.Submit(request).status();
  EXPECT_TRUE(absl::IsInvalidArgument(refused)) << refused;
  request.params.max_tokens = longest - 1;
  const Answer scored = Read(**server.loop.Submit(request));
  EXPECT_EQ(scored.end.log_probs.size(), static_cast<size_t>(longest - 1)) << scored.end.status;
  EXPECT_EQ(Read(**server.loop.Submit(Make("y", longest))).token_ids.size(),
            static_cast<size_t>(longest));
  ExpectIdle(server.loop);
}

void ExpectEveryRequestOfARandomCrowdToEndOnce(int64_t steps_ahead) {
  ServingLimits limits;
  limits.max_queued_requests = 12;
  Server server(limits, 4, 2, /*num_pages=*/0, steps_ahead);
  constexpr int kThreads = 6;
  constexpr int kEach = 40;
  std::atomic<int64_t> ended = 0, refused = 0;
  std::vector<std::thread> clients;
  for (int t = 0; t < kThreads; ++t) {
    clients.emplace_back([&, t] {
      std::mt19937 random(t);
      for (int i = 0; i < kEach; ++i) {
        GenerationRequest request = Make(absl::StrCat(t, "-", i), 1 + random() % 60);
        request.priority = static_cast<int>(random() % 3);
        const uint32_t fate = random() % 4;
        if (fate == 1) request.deadline = ServingClock::now() + milliseconds(random() % 20);
        auto generation = server.loop.Submit(std::move(request));
        if (!generation.ok()) {
          ++refused;
          absl::SleepFor(absl::Milliseconds(2));
          continue;
        }
        if (fate == 2) {
          (*generation)->WaitUntil(ServingClock::now() + milliseconds(random() % 5));
          server.loop.Cancel(**generation, absl::CancelledError("client left"));
        }
        if (fate == 3) server.loop.Abort((*generation)->id(), /*prefix=*/false);
        const Answer answer = Read(**generation);
        EXPECT_EQ(answer.end.num_generated_tokens, static_cast<int64_t>(answer.token_ids.size()));
        ++ended;
      }
    });
  }
  for (std::thread& client : clients) client.join();
  ExpectIdle(server.loop);
  int64_t counted = 0;
  const ServingLoad load = server.loop.load();
  for (const auto& [reason, count] : load.totals.ended) counted += count;
  EXPECT_EQ(ended + refused, kThreads * kEach);
  EXPECT_EQ(counted, ended);
  EXPECT_EQ(load.totals.e2e.count(), ended);
}

TEST(ServingLoopTest, EveryRequestOfARandomCrowdEndsOnce) {
  for (const int64_t steps_ahead : {0, 1}) ExpectEveryRequestOfARandomCrowdToEndOnce(steps_ahead);
}

}  // namespace
}  // namespace thinwire
