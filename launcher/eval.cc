// thinwire eval: perplexity of a text.
#include <CLI/CLI.hpp>
#include <fstream>
#include <iterator>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "kernels/core/mapped_file.h"
#include "kernels/core/status_macros.h"
#include "launcher/command.h"
#include "launcher/engine_flags.h"
#include "launcher/job.h"
#include "launcher/output.h"
#include "launcher/progress.h"
#include "runtime/batch/model_tokenizer.h"
#include "runtime/batch/perplexity.h"

namespace thinwire {
namespace {

constexpr char kExplanation[] =
    "The text is encoded whole, without special tokens, and cut into windows of --window tokens\n"
    "(the remainder is dropped). Each window predicts its last window - 1 tokens; perplexity is "
    "the\n"
    "exponential of the mean negative log-likelihood over all predictions.";

class EvalCommand : public Command {
 public:
  explicit EvalCommand(CLI::App& app)
      : app_(app.add_subcommand("eval", "Measure the perplexity of a text")) {
    flags_.AddTo(*app_);
    app_->add_option("--text", text_path_, "Text, UTF-8")->type_name("FILE")->required();
    app_->add_option("--window", window_,
                     "Tokens of a window; 0: the model's context, at most 2048")
        ->type_name("N")
        ->check(CLI::Range(int64_t{0}, int64_t{1} << 31))
        ->capture_default_str();
    app_->add_option("--max-tokens", max_tokens_, "Use only the first N tokens of the text; 0: all")
        ->type_name("N")
        ->check(CLI::Range(int64_t{0}, int64_t{1} << 40))
        ->capture_default_str();
    app_->add_flag("--json", json_, "Print {\"perplexity\", \"nll\", \"tokens\"}");
    app_->footer(kExplanation);
  }

  bool chosen() const override { return app_->parsed(); }

  absl::Status Run(Job& job) override {
    TW_ASSIGN_OR_RETURN(const std::unique_ptr<EngineSession> session,
                        EngineSession::Open(flags_, job));
    if (!job.leader()) return session->Follow();
    const absl::Status status = Lead(session->engine());
    const absl::Status stopped = session->engine().Stop();
    return status.ok() ? stopped : status;
  }

 private:
  absl::StatusOr<std::vector<int32_t>> ReadIds() const {
    TW_ASSIGN_OR_RETURN(const std::unique_ptr<Tokenizer> tokenizer,
                        LoadModelTokenizer(flags_.model));
    TW_ASSIGN_OR_RETURN(const MappedFile file, MappedFile::Open(text_path_));
    const absl::string_view text(reinterpret_cast<const char*>(file.bytes().data()),
                                 file.bytes().size());
    auto ids = tokenizer->Encode(text, /*add_special_tokens=*/false);
    if (!ids.ok()) return Annotate(ids.status(), text_path_);
    if (max_tokens_ > 0 && static_cast<int64_t>(ids->size()) > max_tokens_) {
      ids->resize(max_tokens_);
    }
    return ids;
  }

  absl::Status Lead(Engine& engine) {
    TW_ASSIGN_OR_RETURN(const std::vector<int32_t> ids, ReadIds());
    const int64_t window =
        window_ > 0 ? window_ : std::min<int64_t>(engine.rank().config().max_positions, 2048);
    Progress progress("windows", true);
    const auto result = EvaluatePerplexity(
        engine, ids, window, [&](int64_t done, int64_t total) { progress.Update(done, total); });
    progress.Finish();
    if (!result.ok()) return Annotate(result.status(), text_path_);
    if (json_) {
      const nlohmann::ordered_json line = {{"perplexity", result->value()},
                                           {"nll", result->nll},
                                           {"tokens", result->num_predictions}};
      return WriteOutput(line.dump() + "\n");
    }
    return WriteOutput(
        absl::StrFormat("perplexity %.4f  (nll %.6f over %d tokens in windows of %d)\n",
                        result->value(), result->nll, result->num_predictions, window));
  }

  CLI::App* app_;
  EngineFlags flags_;
  std::string text_path_;
  int64_t window_ = 0;
  int64_t max_tokens_ = 0;
  bool json_ = false;
};

}  // namespace

std::unique_ptr<Command> MakeEvalCommand(CLI::App& app) {
  return std::make_unique<EvalCommand>(app);
}

}  // namespace thinwire
