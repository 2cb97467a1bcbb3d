#include "tests/golden/golden_suite.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <numeric>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "kernels/core/status_macros.h"
#include "parallel/plan/shard_plan.h"
#include "runtime/batch/perplexity.h"
#include "runtime/cache/paged_kv_cache.h"
#include "runtime/checkpoint/decoder_shape.h"
#include "runtime/checkpoint/model_config.h"
#include "runtime/engine/engine.h"
#include "tests/support/local_mesh.h"

namespace thinwire {
namespace {

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
// Sanitizers make each step about ten times slower. What they look for shows without the longest
// prompts and the later windows.
constexpr size_t kMaxPrompts = 4;
constexpr size_t kMaxNllWindows = 1;
constexpr int kNumSeeds = 2;
#else
constexpr size_t kMaxPrompts = 1000;
constexpr size_t kMaxNllWindows = 1000;
constexpr int kNumSeeds = 3;
#endif

// Both sides sum in fp32 in their own order: |logit| <= ~20 and some hundred roundings of 2^-24
// that mostly cancel lie far below.
constexpr double kLogitTolerance = 1e-3;
constexpr double kNllTolerance = 1e-4;
// Where the two largest logits are closer than this, either may win.
constexpr double kHonestGap = 1e-4;

enum class Submission { kAllAtOnce, kOneByOne };

struct Answers {
  std::vector<Completion> completions;  // as the requests
  EngineCounters counters;
};

// Runs all requests on a mesh to their ends.
absl::StatusOr<Answers> Generate(const EngineOptions& options, const Mesh& mesh,
                                 const std::vector<Request>& requests,
                                 Submission submission = Submission::kAllAtOnce) {
  Answers answers;
  answers.completions.resize(requests.size());
  TW_RETURN_IF_ERROR(RunOnLocalMesh(options, mesh, [&](Engine& engine) -> absl::Status {
    for (size_t i = 0; i < requests.size(); ++i) {
      Request request = requests[i];
      request.on_done = [&answers, i](Completion completion) {
        answers.completions[i] = std::move(completion);
      };
      TW_RETURN_IF_ERROR(engine.Submit(std::move(request)).status());
      while (submission == Submission::kOneByOne && engine.HasWork()) {
        TW_RETURN_IF_ERROR(engine.Step());
      }
    }
    while (engine.HasWork()) TW_RETURN_IF_ERROR(engine.Step());
    answers.counters = engine.counters();
    return absl::OkStatus();
  }));
  return answers;
}

std::vector<Request> GreedyRequests(const Golden& golden) {
  std::vector<Request> requests;
  for (const GoldenPrompt& prompt : golden.prompts) {
    if (requests.size() == kMaxPrompts) break;
    Request request;
    request.prompt_ids = prompt.ids;
    request.max_new_tokens = static_cast<int64_t>(prompt.greedy.size());
    request.want_first_logits = true;
    requests.push_back(std::move(request));
  }
  return requests;
}

// `honest_gap`: where the two largest logits are closer than this, either may win.
void ExpectGreedy(const Golden& golden, const std::vector<Completion>& completions,
                  double honest_gap = kHonestGap) {
  for (size_t i = 0; i < completions.size(); ++i) {
    const GoldenPrompt& prompt = golden.prompts[i];
    const std::vector<int32_t>& found = completions[i].token_ids;
    ASSERT_EQ(found.size(), prompt.greedy.size()) << "prompt " << i;
    for (size_t step = 0; step < found.size(); ++step) {
      if (found[step] == prompt.greedy[step]) continue;
      EXPECT_LT(prompt.gaps[step], honest_gap)
          << "prompt " << i << ", step " << step << ": token " << found[step] << ", expected "
          << prompt.greedy[step];
      break;  // what follows continues another text
    }
  }
}

double LargestDifference(absl::Span<const float> expected, const std::vector<float>& found) {
  if (expected.size() != found.size()) return INFINITY;
  double largest = 0.0;
  for (size_t i = 0; i < found.size(); ++i) {
    const double difference = std::abs(double{expected[i]} - double{found[i]});
    // Not std::max, which loses NaN.
    if (!(difference <= largest)) largest = difference;
  }
  return largest;
}

// `found` may have fewer.
void ExpectSameScores(const std::vector<Completion>& expected,
                      const std::vector<Completion>& found) {
  for (size_t i = 0; i < found.size(); ++i) {
    EXPECT_LE(LargestDifference(expected[i].prompt_log_probs, found[i].prompt_log_probs),
              kLogitTolerance)
        << "prompt " << i;
  }
}

absl::StatusOr<Perplexity> Score(const EngineOptions& options, const Mesh& mesh,
                                 const Golden& golden) {
  std::vector<int32_t> ids = golden.nll_ids;
  const size_t num_windows = std::min(golden.window_nll.size(), kMaxNllWindows);
  ids.resize(num_windows * golden.nll_window());
  Perplexity perplexity;
  TW_RETURN_IF_ERROR(RunOnLocalMesh(options, mesh, [&](Engine& engine) -> absl::Status {
    TW_ASSIGN_OR_RETURN(perplexity, EvaluatePerplexity(engine, ids, golden.nll_window()));
    return absl::OkStatus();
  }));
  return perplexity;
}

// The mean over the windows that Score computed.
double GoldenMeanNll(const Golden& golden) {
  if (golden.window_nll.size() <= kMaxNllWindows) return golden.mean_nll;
  double sum = 0.0;
  for (size_t i = 0; i < kMaxNllWindows; ++i) sum += golden.window_nll[i];
  return sum / static_cast<double>(kMaxNllWindows);
}

EngineOptions OptionsFor(const GoldenCase& test_case) {
  EngineOptions options;
  options.model_dir = test_case.model_dir;
  options.device = test_case.device;
  options.max_seqs = 16;
  options.step_timeout = absl::Minutes(2);
  return options;
}

// The kv_cache_bytes with which the fullest rank has `num_pages` pages.
int64_t BytesOfPages(const EngineOptions& options, const Mesh& mesh, int64_t num_pages) {
  const ModelConfig config = LoadModelConfig(options.model_dir).value();
  int64_t page_bytes = 0;
  for (int rank = 0; rank < mesh.world_size(); ++rank) {
    const ShardPlan plan = ShardPlan::Create(ShapeOf(config), mesh, rank).value();
    const KvCacheShape shape = {.num_layers = plan.layers().size(),
                                .num_kv_heads = plan.kv_heads().size(),
                                .head_dim = config.head_dim,
                                .page_size = options.page_size,
                                .dtype = options.dtype};
    page_bytes = std::max(page_bytes, shape.PageBytes());
  }
  return page_bytes * num_pages;
}

std::string MeshName(const Mesh& mesh) {
  return absl::StrCat("tp ", mesh.tp_size, ", pp ", mesh.pp_size);
}

// The largest relative error of rounding to nearest.
double UnitRoundoff(DType dtype) { return dtype == DType::kBF16 ? 0x1p-8 : 0x1p-11; }

std::vector<Mesh> UsableMeshes(const std::string& model_dir) {
  const absl::StatusOr<ModelConfig> config = LoadModelConfig(model_dir);
  std::vector<Mesh> meshes;
  for (const auto& [tp, pp] : {std::pair(1, 1), {2, 1}, {1, 2}, {2, 2}, {4, 1}}) {
    const Mesh mesh = {.tp_size = tp, .pp_size = pp};
    // A folder that does not load has one case, which says why.
    const bool usable =
        config.ok() ? ShardPlan::Create(ShapeOf(*config), mesh, 0).ok() : mesh.world_size() == 1;
    if (usable) meshes.push_back(mesh);
  }
  return meshes;
}

}  // namespace

void GoldenMeshTest::SetUp() {
  absl::StatusOr<Golden> golden = ReadGolden(GetParam().model_dir);
  ASSERT_TRUE(golden.ok()) << golden.status();
  golden_ = *std::move(golden);
}

int64_t GoldenModelTest::num_layers() const {
  return LoadModelConfig(GetParam().model_dir).value().num_layers;
}

double GoldenModelTest::TypicalLogitError(double unit_roundoff, int64_t num_roundings) const {
  double squares = 0.0;
  for (int64_t row = 0; row < golden_.logits.rows; ++row) {
    const absl::Span<const float> logits = golden_.logits.Row(row);
    const double mean =
        std::accumulate(logits.begin(), logits.end(), 0.0) / static_cast<double>(logits.size());
    for (const float logit : logits) squares += (logit - mean) * (logit - mean);
  }
  const double spread = std::sqrt(squares / static_cast<double>(golden_.logits.values.size()));
  return unit_roundoff * spread * std::sqrt(static_cast<double>(num_roundings));
}

void GoldenModelTest::ExpectClose(const EngineOptions& options, const Mesh& mesh,
                                  double logit_error) const {
  const absl::StatusOr<Perplexity> perplexity = Score(options, mesh, golden_);
  ASSERT_TRUE(perplexity.ok()) << perplexity.status();
  // Errors of either sign cancel in the mean; that they do is not needed.
  const double nll_error = std::abs(perplexity->nll - GoldenMeanNll(golden_));
  EXPECT_LE(nll_error, logit_error + kNllTolerance);

  const absl::StatusOr<Answers> answers = Generate(options, mesh, GreedyRequests(golden_));
  ASSERT_TRUE(answers.ok()) << answers.status();
  // The largest of some thousand errors, at prompts that amplify them: transformers computing in 16
  // bits errs by up to 15 times the typical error on the bundled models.
  const double largest_error = 16.0 * logit_error + kLogitTolerance;
  double largest = 0.0;
  for (size_t i = 0; i < answers->completions.size(); ++i) {
    largest = std::max(largest, LargestDifference(golden_.logits.Row(static_cast<int64_t>(i)),
                                                  answers->completions[i].first_logits));
  }
  EXPECT_LE(largest, largest_error);
  ExpectGreedy(golden_, answers->completions, 2.0 * largest_error);
  std::printf("%s, wire %s, %s: mean NLL differs by %.1e of %.1e, logits by %.1e of %.1e\n",
              std::string(DTypeName(options.dtype)).c_str(),
              WireStrategyName(options.wire.strategy).c_str(), MeshName(mesh).c_str(), nll_error,
              logit_error + kNllTolerance, largest, largest_error);
}

TEST_P(GoldenMeshTest, GreedyTokensAndFirstLogitsAreThoseOfTheReference) {
  const absl::StatusOr<Answers> answers =
      Generate(OptionsFor(GetParam()), GetParam().mesh, GreedyRequests(golden_));
  ASSERT_TRUE(answers.ok()) << answers.status();
  ExpectGreedy(golden_, answers->completions);
  double largest = 0.0;
  for (size_t i = 0; i < answers->completions.size(); ++i) {
    const double difference = LargestDifference(golden_.logits.Row(static_cast<int64_t>(i)),
                                                answers->completions[i].first_logits);
    EXPECT_LE(difference, kLogitTolerance) << "prompt " << i;
    largest = std::max(largest, difference);
  }
  std::printf("largest logit difference %.2e\n", largest);
}

TEST_P(GoldenMeshTest, NllIsThatOfTheReference) {
  const absl::StatusOr<Perplexity> perplexity =
      Score(OptionsFor(GetParam()), GetParam().mesh, golden_);
  ASSERT_TRUE(perplexity.ok()) << perplexity.status();
  for (size_t i = 0; i < perplexity->window_nll.size(); ++i) {
    EXPECT_NEAR(perplexity->window_nll[i], golden_.window_nll[i], kNllTolerance) << "window " << i;
  }
  EXPECT_NEAR(perplexity->nll, GoldenMeanNll(golden_), kNllTolerance);
  std::printf("mean NLL difference %.2e\n", perplexity->nll - GoldenMeanNll(golden_));
}

TEST_P(GoldenModelTest, FewStepsOfTheReferenceAreNearTies) {
  int64_t num_steps = 0;
  int64_t num_near_ties = 0;
  for (const GoldenPrompt& prompt : golden_.prompts) {
    num_steps += static_cast<int64_t>(prompt.gaps.size());
    num_near_ties += std::count_if(prompt.gaps.begin(), prompt.gaps.end(),
                                   [](double gap) { return gap < kHonestGap; });
  }
  std::printf("%d of %d greedy steps are near ties\n", static_cast<int>(num_near_ties),
              static_cast<int>(num_steps));
  // Else the greedy tokens would prove nothing.
  EXPECT_LE(num_near_ties * 100, num_steps);
}

TEST_P(GoldenModelTest, SampledTokensAreTheSameOnEveryMesh) {
  std::vector<Request> requests;
  for (int seed = 0; seed < kNumSeeds; ++seed) {
    for (Request request : GreedyRequests(golden_)) {
      request.sampling = {.temperature = 0.8f,
                          .top_k = 50,
                          .top_p = 0.9f,
                          .seed = static_cast<uint64_t>(1000 + seed)};
      request.want_first_logits = false;
      requests.push_back(std::move(request));
    }
  }
  const EngineOptions options = OptionsFor(GetParam());
  std::vector<std::vector<int32_t>> expected;
  for (const Mesh& mesh : UsableMeshes(GetParam().model_dir)) {
    const absl::StatusOr<Answers> answers = Generate(options, mesh, requests);
    ASSERT_TRUE(answers.ok()) << answers.status();
    std::vector<std::vector<int32_t>> found;
    for (const Completion& completion : answers->completions) {
      found.push_back(completion.token_ids);
    }
    if (expected.empty()) expected = found;
    EXPECT_EQ(found, expected) << MeshName(mesh);
  }
  // Seeds matter: the first prompt's answers differ.
  EXPECT_NE(expected.front(), expected[expected.size() / kNumSeeds]);
}

TEST_P(GoldenModelTest, EngineOptionsChangeNoTokenAndNoScore) {
  struct Case {
    const char* name;
    int64_t page_size = 16;
    int64_t max_step_tokens = 512;
    int64_t max_seqs = 16;
    Submission submission = Submission::kAllAtOnce;
    bool few_pages = false;
  };
  const std::vector<Case> cases = {
      {.name = "pages of 1", .page_size = 1},
      {.name = "pages of 5", .page_size = 5},
      {.name = "steps of 7 tokens", .max_step_tokens = 7},
      {.name = "2 sequences at a time", .max_seqs = 2},
      {.name = "one by one", .submission = Submission::kOneByOne},
      {.name = "few pages", .page_size = 4, .few_pages = true},
      {.name = "few pages and short steps",
       .page_size = 3,
       .max_step_tokens = 7,
       .few_pages = true},
  };
  std::vector<Request> all = GreedyRequests(golden_);
  for (Request& request : all) request.score_prompt = true;
  const absl::StatusOr<Answers> plain = Generate(OptionsFor(GetParam()), Mesh(), all);
  ASSERT_TRUE(plain.ok()) << plain.status();
  // Where pages are few, the last and longest prompt would leave no room for company.
  const std::vector<Request> shorter(all.begin(), all.end() - 1);
  int64_t longest = 0;
  for (const Request& request : shorter) {
    const auto prompt_size = static_cast<int64_t>(request.prompt_ids.size());
    longest = std::max(longest, prompt_size + request.max_new_tokens);
  }
  // What options act on is the scheduler, which knows of meshes only how deep the pipeline is.
  for (const Mesh& mesh : UsableMeshes(GetParam().model_dir)) {
    if (mesh.tp_size != mesh.pp_size) continue;
    for (const Case& c : cases) {
      SCOPED_TRACE(absl::StrCat(MeshName(mesh), ", ", c.name));
      EngineOptions options = OptionsFor(GetParam());
      options.page_size = c.page_size;
      options.max_step_tokens = c.max_step_tokens;
      options.max_seqs = c.max_seqs;
      if (c.few_pages) {
        // The longest sequence alone fits; several have to give way to each other.
        options.kv_cache_bytes =
            BytesOfPages(options, mesh, (longest + c.page_size - 1) / c.page_size);
      }
      const absl::StatusOr<Answers> answers =
          Generate(options, mesh, c.few_pages ? shorter : all, c.submission);
      ASSERT_TRUE(answers.ok()) << answers.status();
      ExpectGreedy(golden_, answers->completions);
      ExpectSameScores(plain->completions, answers->completions);
      if (c.few_pages) {
        EXPECT_GT(answers->counters.num_preemptions, 0);
      }
    }
  }
}

TEST_P(GoldenModelTest, SixteenBitActivationsStayClose) {
  for (const DType dtype : {DType::kF16, DType::kBF16}) {
    // Per layer: residual, norm, projection, rotation, attention and sum, the same for the second
    // half; weights are not rounded.
    const double error = TypicalLogitError(UnitRoundoff(dtype), 10 * num_layers());
    for (const Mesh& mesh : UsableMeshes(GetParam().model_dir)) {
      SCOPED_TRACE(absl::StrCat(DTypeName(dtype), ", ", MeshName(mesh)));
      EngineOptions options = OptionsFor(GetParam());
      options.dtype = dtype;
      ExpectClose(options, mesh, error);
    }
  }
}

TEST_P(GoldenModelTest, Fp16OnTheWireStaysClose) {
  // Per layer: two sums of parts that are rounded and rounded again; the hop, and the logits.
  const double error = TypicalLogitError(UnitRoundoff(DType::kF16), 4 * num_layers() + 2);
  for (const Mesh& mesh : UsableMeshes(GetParam().model_dir)) {
    SCOPED_TRACE(MeshName(mesh));
    EngineOptions options = OptionsFor(GetParam());
    options.wire = ParseWireOptions("fp16", "auto").value();
    ExpectClose(options, mesh, error);
  }
}

TEST_P(GoldenModelTest, CodesOnTheWireStayClose) {
  // A code of 8 bits is off by half a step at most, a step being 2 / 255 of a group's largest
  // value: as a roundoff of the value, 2^-6 for values down to a quarter of that. Per layer: two
  // sums, and two norms where owners share them; and the hop.
  const double error = TypicalLogitError(0x1p-6, 4 * num_layers() + 1);
  for (const Mesh& mesh : UsableMeshes(GetParam().model_dir)) {
    if (mesh.world_size() == 1) continue;
    for (const char* wire : {"one-shot-q8", "token-owner-q8"}) {
      // One-shot differs from fp16's flow in its sums alone: one mesh has all of it.
      if (wire[0] == 'o' && (mesh.tp_size != 2 || mesh.pp_size != 2)) continue;
      SCOPED_TRACE(absl::StrCat(wire, ", ", MeshName(mesh)));
      EngineOptions options = OptionsFor(GetParam());
      options.wire = ParseWireOptions(wire, "auto").value();
      ExpectClose(options, mesh, error);
    }
  }
}

std::vector<std::string> FindGoldenModels(const std::string& root) {
  std::vector<std::string> dirs;
  std::error_code failed;
  for (const auto& entry : std::filesystem::directory_iterator(root, failed)) {
    if (std::filesystem::exists(entry.path() / "golden.json", failed)) {
      dirs.push_back(entry.path().string());
    }
  }
  std::sort(dirs.begin(), dirs.end());
  return dirs;
}

std::vector<GoldenCase> CasesByMesh(const std::vector<std::string>& model_dirs) {
  std::vector<GoldenCase> cases;
  for (const std::string& dir : model_dirs) {
    for (const Mesh& mesh : UsableMeshes(dir)) cases.push_back({dir, mesh});
  }
  return cases;
}

std::vector<GoldenCase> CasesByModel(const std::vector<std::string>& model_dirs, Device device) {
  std::vector<GoldenCase> cases;
  for (const std::string& dir : model_dirs) cases.push_back({dir, Mesh(), device});
  return cases;
}

std::string GoldenModelName(const ::testing::TestParamInfo<GoldenCase>& info) {
  std::string name = std::filesystem::path(info.param.model_dir).filename().string();
  for (char& c : name) {
    if (!std::isalnum(static_cast<unsigned char>(c))) c = '_';
  }
  return name;
}

std::string GoldenCaseName(const ::testing::TestParamInfo<GoldenCase>& info) {
  return absl::StrCat(GoldenModelName(info), "_tp", info.param.mesh.tp_size, "_pp",
                      info.param.mesh.pp_size);
}

}  // namespace thinwire
