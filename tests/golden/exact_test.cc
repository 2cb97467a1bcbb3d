// What --wire exact promises: the same bits for every number of ranks, however requests share
// steps.
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "kernels/core/status_macros.h"
#include "parallel/comm/local_communicator.h"
#include "runtime/checkpoint/model_config.h"
#include "runtime/engine/engine.h"
#include "runtime/quantizer/quantize_model.h"
#include "tests/support/local_mesh.h"

namespace thinwire {
namespace {

namespace fs = std::filesystem;

struct ExactCase {
  std::string model_dir;
  std::string scheme;         // "": as it is
  std::vector<int> tp_sizes;  // beside 1

  std::string model() const { return fs::path(model_dir).filename().string(); }
};

void PrintTo(const ExactCase& c, std::ostream* out) { *out << c.model() << " " << c.scheme; }

std::vector<int32_t> RandomIds(int64_t count, int64_t vocab, unsigned seed) {
  std::mt19937 engine(seed);
  std::uniform_int_distribution<int32_t> uniform(3, static_cast<int32_t>(vocab) - 1);
  std::vector<int32_t> ids(count);
  for (int32_t& id : ids) id = uniform(engine);
  return ids;
}

// Everything that a request is answered.
struct Answers {
  std::vector<std::vector<int32_t>> token_ids;
  std::vector<std::vector<float>> prompt_log_probs;
  std::vector<std::vector<float>> first_logits;
};

absl::StatusOr<Answers> Answer(const EngineOptions& options, const Mesh& mesh, bool one_by_one) {
  TW_ASSIGN_OR_RETURN(const ModelConfig config, LoadModelConfig(options.model_dir));
  constexpr int64_t kLengths[] = {1, 2, 9, 40, 70};
  Answers answers;
  answers.token_ids.resize(std::size(kLengths));
  answers.prompt_log_probs.resize(std::size(kLengths));
  answers.first_logits.resize(std::size(kLengths));
  TW_RETURN_IF_ERROR(RunOnLocalMesh(options, mesh, [&](Engine& engine) -> absl::Status {
    for (size_t i = 0; i < std::size(kLengths); ++i) {
      Request request;
      request.prompt_ids = RandomIds(kLengths[i], config.vocab, static_cast<unsigned>(i));
      request.max_new_tokens = 6;
      request.score_prompt = true;
      request.want_first_logits = true;
      request.on_done = [&answers, i](Completion completion) {
        answers.token_ids[i] = std::move(completion.token_ids);
        answers.prompt_log_probs[i] = std::move(completion.prompt_log_probs);
        answers.first_logits[i] = std::move(completion.first_logits);
      };
      TW_RETURN_IF_ERROR(engine.Submit(std::move(request)).status());
      while (one_by_one && engine.HasWork()) TW_RETURN_IF_ERROR(engine.Step());
    }
    while (engine.HasWork()) TW_RETURN_IF_ERROR(engine.Step());
    return absl::OkStatus();
  }));
  return answers;
}

void ExpectSameBits(const std::vector<std::vector<float>>& expected,
                    const std::vector<std::vector<float>>& found) {
  ASSERT_EQ(expected.size(), found.size());
  for (size_t i = 0; i < expected.size(); ++i) {
    ASSERT_EQ(expected[i].size(), found[i].size()) << "request " << i;
    if (expected[i].empty()) continue;  // memcmp takes no null
    EXPECT_EQ(std::memcmp(expected[i].data(), found[i].data(), expected[i].size() * sizeof(float)),
              0)
        << "request " << i;
  }
}

class ExactTest : public ::testing::TestWithParam<ExactCase> {
 protected:
  void SetUp() override {
    model_dir_ = GetParam().model_dir;
    const std::string scheme = GetParam().scheme;
    if (scheme.empty()) return;
    const ModelConfig config = LoadModelConfig(model_dir_).value();
    QuantizeOptions options;
    options.model_dir = model_dir_;
    options.out_dir = absl::StrCat(::testing::TempDir(), "exact_", GetParam().model(), "_", scheme);
    fs::remove_all(options.out_dir);
    fs::remove_all(options.out_dir + ".partial");
    options.layer.scheme = ParseScheme(scheme).value();
    options.layer.group_size = 16;
    options.layer.tp = GetParam().tp_sizes.back();
    options.tool_version = "test";
    const std::vector<int32_t> ids = RandomIds(4 * 64, config.vocab, 1000);
    std::vector<std::vector<int32_t>> windows;
    for (int64_t w = 0; w < 4; ++w) {
      windows.emplace_back(ids.begin() + w * 64, ids.begin() + (w + 1) * 64);
    }
    options.calibration = MakeSelfCalibrationSet(std::move(windows));
    auto world = CreateLocalCommunicators(1);
    ThreadPool pool(1);
    const absl::Status status = QuantizeModel(options, *world[0], pool);
    ASSERT_TRUE(status.ok()) << status;
    model_dir_ = options.out_dir;
  }

  void TearDown() override {
    if (!GetParam().scheme.empty()) fs::remove_all(model_dir_);
  }

  EngineOptions Options() const {
    EngineOptions options;
    options.model_dir = model_dir_;
    options.wire = ParseWireOptions("exact", "auto").value();
    options.max_seqs = 8;
    options.step_timeout = absl::Minutes(2);
    return options;
  }

  std::string model_dir_;
};

TEST_P(ExactTest, LogitsAreTheSameBitsOnEveryMeshAndInEveryBatch) {
  struct Run {
    Mesh mesh;
    int64_t max_step_tokens = 512;
    bool one_by_one = false;
    DType dtype = DType::kF32;
  };
  const Mesh largest = {.tp_size = GetParam().tp_sizes.back()};
  std::vector<Run> runs = {{.mesh = {}, .max_step_tokens = 7}, {.mesh = {}, .one_by_one = true}};
  for (const int tp : GetParam().tp_sizes) runs.push_back({.mesh = {.tp_size = tp}});
  runs.push_back({.mesh = {.tp_size = 2, .pp_size = 2}, .max_step_tokens = 11});
  runs.push_back({.mesh = largest, .one_by_one = true});
  runs.push_back({.mesh = largest, .max_step_tokens = 11, .dtype = DType::kF16});

  std::map<DType, Answers> expected;
  for (const DType dtype : {DType::kF32, DType::kF16}) {
    EngineOptions options = Options();
    options.dtype = dtype;
    absl::StatusOr<Answers> answers = Answer(options, Mesh(), /*one_by_one=*/false);
    ASSERT_TRUE(answers.ok()) << answers.status();
    expected[dtype] = *std::move(answers);
  }
  for (const Run& run : runs) {
    SCOPED_TRACE(absl::StrCat("tp ", run.mesh.tp_size, ", pp ", run.mesh.pp_size, ", steps of ",
                              run.max_step_tokens, run.one_by_one ? ", one by one" : "", ", ",
                              DTypeName(run.dtype)));
    EngineOptions options = Options();
    options.max_step_tokens = run.max_step_tokens;
    options.dtype = run.dtype;
    const absl::StatusOr<Answers> found = Answer(options, run.mesh, run.one_by_one);
    ASSERT_TRUE(found.ok()) << found.status();
    EXPECT_EQ(found->token_ids, expected[run.dtype].token_ids);
    ExpectSameBits(expected[run.dtype].prompt_log_probs, found->prompt_log_probs);
    ExpectSameBits(expected[run.dtype].first_logits, found->first_logits);
  }
}

std::vector<ExactCase> Cases() {
  std::vector<ExactCase> cases;
  const auto add = [&](const std::string& dir, std::vector<const char*> schemes,
                       const std::vector<int>& tp_sizes) {
    for (const char* scheme : schemes) cases.push_back({dir, scheme, tp_sizes});
  };
  const std::string bundled = THINWIRE_BUNDLED_MODELS;
  add(bundled + "/opt-nano", {"", "w4a16", "w4a8", "w4a4"}, {2, 4});
  add(bundled + "/llama-nano", {"", "w4a8", "w4a4", "w4a4kv"}, {2, 4});
  add(bundled + "/tiny-mistral", {"", "w4a8kv16", "w4a4kv16"}, {2, 4, 8});
  add(bundled + "/tiny-opt-post-norm", {""}, {2, 4});
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
  // Of a size at which a sanitizer takes minutes.
  if (const char* root = std::getenv("THINWIRE_MODELS"); root != nullptr) {
    for (const char* model : {"/opt-mini", "/llama-mini"}) {
      add(std::string(root) + model, {"w4a8", "w4a4"}, {2, 4, 8});
    }
  }
#endif
  return cases;
}

INSTANTIATE_TEST_SUITE_P(Models, ExactTest, ::testing::ValuesIn(Cases()),
                         [](const ::testing::TestParamInfo<ExactCase>& info) {
                           std::string name =
                               absl::StrCat(info.param.model(), "_", info.param.scheme);
                           for (char& c : name) {
                             if (c == '-') c = '_';
                           }
                           return name;
                         });

}  // namespace
}  // namespace thinwire
