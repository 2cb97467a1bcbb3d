// thinwire run: prompts in, texts out.
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <chrono>
#include <cstdio>
#include <limits>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "kernels/core/atomic_file.h"
#include "kernels/core/status_macros.h"
#include "launcher/command.h"
#include "launcher/engine_flags.h"
#include "launcher/job.h"
#include "launcher/log.h"
#include "launcher/output.h"
#include "launcher/progress.h"
#include "runtime/batch/model_tokenizer.h"
#include "runtime/batch/prompt.h"
#include "runtime/batch/run_report.h"
#include "runtime/batch/text_batch.h"

namespace thinwire {
namespace {

constexpr char kExamples[] =
    "Examples:\n"
    "  thinwire run --model DIR --prompt \"The\" --max-tokens 32\n"
    "  mpirun -np 2 thinwire run --model DIR --tp 2 --prompts p.jsonl --json --report r.json\n"
    "  mpirun -np 3 thinwire run --model DIR --prefill-ranks 2 --decode-ranks 1 --prompts "
    "p.jsonl\n"
    "Lines of p.jsonl: {\"id\": \"a\", \"prompt\": \"...\"} or {\"id\": \"a\", \"token_ids\": "
    "[..]},\n"
    "optionally with max_tokens, temperature, top_p, top_k, seed, stop.\n"
    "thinwire report r.json -o report.html draws what --report wrote.\n"
    "--json prints {\"id\", \"prompt_tokens\", \"token_ids\", \"text\", \"finish_reason\"} per "
    "prompt.";

class RunCommand : public Command {
 public:
  explicit RunCommand(CLI::App& app)
      : app_(app.add_subcommand("run", "Generate text for one prompt or a file of prompts")) {
    flags_.AddTo(*app_);
    flags_.AddGroupsTo(*app_);
    auto* input = app_->add_option_group("input", "What to continue");
    input->add_option("--prompt", prompt_, "One prompt")->type_name("TEXT");
    input->add_option("--prompts", prompts_path_, "Prompts, one JSON object per line")
        ->type_name("FILE.jsonl");
    input->require_option(1);
    app_->add_option("--max-tokens", params_.max_tokens, "Tokens to generate per prompt")
        ->type_name("N")
        ->check(CLI::Range(int64_t{1}, int64_t{1} << 31))
        ->capture_default_str();
    app_->add_option("--temperature", params_.sampling.temperature, "0: greedy")
        ->type_name("T")
        ->capture_default_str();
    app_->add_option("--top-p", params_.sampling.top_p,
                     "Sample from the most probable tokens that reach this mass")
        ->type_name("P")
        ->capture_default_str();
    app_->add_option("--top-k", params_.sampling.top_k,
                     "Sample from the K most probable tokens; 0: all")
        ->type_name("K")
        ->capture_default_str();
    app_->add_option("--seed", params_.sampling.seed,
                     "Same seed, same text, whatever --tp, --pp and the other prompts: to the bit "
                     "with --wire exact, with native up to the rounding of sums")
        ->type_name("S")
        ->check(CLI::Range(int64_t{0}, std::numeric_limits<int64_t>::max()))
        ->capture_default_str();
    app_->add_option("--stop", params_.stop, "Text before which generation ends; repeatable")
        ->type_name("TEXT");
    app_->add_flag("--ignore-eos", params_.ignore_eos, "Generate past the end-of-text token");
    app_->add_flag("--json", json_, "One JSON object per prompt on standard output");
    app_->add_option("--report", report_path_, "Write speed, wire bytes and memory as JSON")
        ->type_name("FILE.json");
    app_->footer(kExamples);
  }

  bool chosen() const override { return app_->parsed(); }

  absl::Status Run(Job& job) override {
    TW_RETURN_IF_ERROR(UsageError(ValidateSamplingParams(params_.sampling)));
    TW_ASSIGN_OR_RETURN(const std::unique_ptr<EngineSession> session,
                        EngineSession::Open(flags_, job));
    if (!job.leader()) return session->Follow();
    absl::Status status = Lead(session->engine());
    // What failed here alone (a missing prompt file) leaves the engine whole: let the others go
    // home.
    const absl::Status stopped = session->engine().Stop();
    return status.ok() ? stopped : status;
  }

 private:
  absl::Status Lead(Engine& engine) {
    TW_ASSIGN_OR_RETURN(const std::unique_ptr<Tokenizer> tokenizer,
                        LoadModelTokenizer(flags_.model));
    // A report that cannot be written is known before the work, not after.
    if (!report_path_.empty()) TW_RETURN_IF_ERROR(AtomicFile::CheckCreatable(report_path_));
    TW_ASSIGN_OR_RETURN(const PromptSource source, MakeSource());
    const auto start = std::chrono::steady_clock::now();
    const TextBatchCallbacks callbacks = {
        .on_result = [this](const TextResult& result) { return Take(result); },
        .on_text = StreamsText() ? [](const std::string&,
                                      const std::string& piece) { return WriteOutput(piece); }
                                 : decltype(TextBatchCallbacks::on_text)(),
    };
    const absl::Status ran = RunTextBatch(engine, *tokenizer, source, callbacks);
    summary_.seconds =
        std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    progress_.Finish();
    TW_RETURN_IF_ERROR(ran);
    if (summary_.num_prompts == 0) {
      return absl::InvalidArgumentError(absl::StrCat(prompts_path_, ": no prompts"));
    }
    TW_RETURN_IF_ERROR(Report(engine));
    if (summary_.num_failed > 0 && !prompts_path_.empty()) {
      LogWarning(absl::StrCat(summary_.num_failed, " of ", summary_.num_prompts,
                              " prompts failed; the others ran"));
    }
    return first_failure_;
  }

  // A single prompt to a terminal appears as it is generated.
  bool StreamsText() const { return prompts_path_.empty() && !json_; }

  absl::StatusOr<PromptSource> MakeSource() {
    if (prompts_path_.empty()) {
      Prompt prompt = {.id = "0", .text = prompt_, .params = params_};
      return PromptSource([prompt = std::move(prompt), taken = false]() mutable {
        std::optional<PromptFile::Line> line;
        if (!taken) line = PromptFile::Line{1, prompt.id, prompt};
        taken = true;
        return line;
      });
    }
    TW_ASSIGN_OR_RETURN(PromptFile opened, PromptFile::Open(prompts_path_, params_));
    auto file = std::make_shared<PromptFile>(std::move(opened));  // std::function wants a copy
    return PromptSource([file] { return file->Next(); });
  }

  absl::Status Take(const TextResult& result) {
    summary_.model_dir = flags_.model;
    ++summary_.num_prompts;
    if (result.status.ok()) {
      summary_.ttft_ms.push_back(result.ttft_ms);
    } else {
      ++summary_.num_failed;
      progress_.Finish();
      if (first_failure_.ok()) first_failure_ = AlreadyPrinted(result.status);
      PrintError(result.status.message());
    }
    progress_.Update(summary_.num_prompts, 0);
    if (json_) {
      nlohmann::ordered_json line = {{"id", result.id},
                                     {"prompt_tokens", result.num_prompt_tokens},
                                     {"token_ids", result.token_ids},
                                     {"text", result.text},
                                     {"finish_reason", result.finish_reason}};
      if (!result.status.ok()) line["error"] = std::string(result.status.message());
      return WriteOutput(line.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) +
                         "\n");
    }
    if (!result.status.ok()) return absl::OkStatus();
    return WriteOutput(StreamsText() ? "\n" : absl::StrCat(result.id, ": ", result.text, "\n"));
  }

  absl::Status Report(Engine& engine) {
    TW_ASSIGN_OR_RETURN(const std::vector<RankReport> reports, engine.CollectReports());
    const EngineCounters counters = engine.counters();
    Ledger wire;
    for (const RankReport& rank : reports) wire += rank.ledger;
    LogInfo(absl::StrFormat(
        "%d prompts, %d prompt and %d generated tokens in %.2f s: %.1f tokens/s",
        summary_.num_prompts, counters.num_prompt_tokens, counters.num_generated_tokens,
        summary_.seconds, counters.num_generated_tokens / std::max(summary_.seconds, 1e-9)));
    LogInfo(DescribeWire(wire));
    for (const std::string& line : DescribeGroups(engine, wire)) LogInfo(line);
    if (report_path_.empty()) return absl::OkStatus();
    return WriteFileAtomically(report_path_, RunReportJson(summary_, engine, reports));
  }

  CLI::App* app_;
  EngineFlags flags_;
  std::string prompt_;
  std::string prompts_path_;
  GenerationParams params_;
  bool json_ = false;
  std::string report_path_;

  RunSummary summary_;
  absl::Status first_failure_;
  Progress progress_{"prompts done:", true};
};

}  // namespace

std::unique_ptr<Command> MakeRunCommand(CLI::App& app) { return std::make_unique<RunCommand>(app); }

}  // namespace thinwire
