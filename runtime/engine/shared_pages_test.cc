// Requests that read each other's KV pages answer as if they were alone.
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "gtest/gtest.h"
#include "kernels/core/status_macros.h"
#include "runtime/engine/page_keys.h"
#include "tests/support/local_mesh.h"

namespace thinwire {
namespace {

TEST(PageKeyChainTest, KeysDependOnSaltAndAllTokensSoFar) {
  std::vector<int32_t> tokens(40, 7);
  const auto keys_of = [&](const char* salt) {
    PageKeyChain chain(salt, 16);
    chain.Extend(absl::MakeConstSpan(tokens).subspan(0, 20));  // in two calls, as in one
    chain.Extend(tokens);
    return chain.keys();
  };
  const std::vector<PageKey> keys = keys_of("a");
  ASSERT_EQ(keys.size(), 2u);
  EXPECT_NE(keys[0], keys[1]);
  EXPECT_EQ(keys, keys_of("a"));
  EXPECT_NE(keys[0], keys_of("b")[0]);
  tokens[31] = 8;
  EXPECT_EQ(keys[0], keys_of("a")[0]);
  EXPECT_NE(keys[1], keys_of("a")[1]);
  tokens[0] = 8;
  EXPECT_NE(keys[0], keys_of("a")[0]);
}

struct Answers {
  std::vector<std::vector<int32_t>> token_ids;
  EngineCounters counters;
};

// Few pages: what nobody reads gives way. Sums that depend on no batch make equal tokens certain.
Answers RunAll(const char* model, const RankLayout& layout, bool share,
               const std::vector<Request>& requests) {
  EngineOptions options;
  options.model_dir = absl::StrCat(THINWIRE_BUNDLED_MODELS "/", model);
  options.max_seqs = 4;
  options.max_step_tokens = 40;
  options.step_timeout = absl::Minutes(2);
  options.share_pages = share;
  options.wire = *ParseWireOptions("exact", "native");
  Answers answers;
  answers.token_ids.resize(requests.size());
  const absl::Status status = RunOnLocalRanks(options, layout, [&](Engine& engine) -> absl::Status {
    for (size_t i = 0; i < requests.size(); ++i) {
      Request request = requests[i];
      request.on_done = [&answers, i](Completion completion) {
        answers.token_ids[i] = std::move(completion.token_ids);
      };
      TW_RETURN_IF_ERROR(engine.Submit(std::move(request)).status());
    }
    while (engine.HasWork()) TW_RETURN_IF_ERROR(engine.Step());
    answers.counters = engine.counters();
    return absl::OkStatus();
  });
  EXPECT_TRUE(status.ok()) << status;
  return answers;
}

std::vector<Request> Conversations() {
  std::vector<Request> requests;
  for (int i = 0; i < 12; ++i) {
    Request request;
    for (int j = 0; j < 50; ++j) request.prompt_ids.push_back(5 + (i % 3 * 31 + j * 11) % 97);
    for (int j = 0; j < i; ++j) request.prompt_ids.push_back(5 + (i * 7 + j) % 97);
    request.max_new_tokens = 12;
    if (i % 2 == 1) {
      request.sampling.temperature = 0.9f;
      request.sampling.seed = i;
    }
    if (i == 11) request.share_salt = "another tenant's";
    requests.push_back(std::move(request));
  }
  return requests;
}

TEST(SharedPagesEngineTest, AnswersAreThoseWithoutSharing) {
  const std::vector<Request> requests = Conversations();
  for (const char* model : {"opt-nano", "llama-nano"}) {
    for (const RankLayout& layout :
         {RankLayout::OneMesh(*Mesh::Create(1, 1, 1)), RankLayout::OneMesh(*Mesh::Create(2, 1, 2)),
          RankLayout::OneMesh(*Mesh::Create(1, 2, 2)), *RankLayout::PrefillAndDecode(1, 1, 1, 2)}) {
      const Answers alone = RunAll(model, layout, /*share=*/false, requests);
      const Answers shared = RunAll(model, layout, /*share=*/true, requests);
      EXPECT_EQ(shared.token_ids, alone.token_ids) << model << " " << layout.Description();
      EXPECT_EQ(alone.counters.num_reused_tokens, 0);
      // Three full pages of every prompt but the first of each conversation, those that began at
      // the same time, and the other tenant's.
      EXPECT_GE(shared.counters.num_reused_tokens, 3 * 48);
      EXPECT_LE(shared.counters.num_reused_tokens, 8 * 48);
      EXPECT_EQ(shared.counters.num_prompt_tokens + shared.counters.num_reused_tokens,
                alone.counters.num_prompt_tokens);
    }
  }
}

}  // namespace
}  // namespace thinwire
