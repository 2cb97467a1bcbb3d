// thinwire inspect: what is in a checkpoint.
#include <CLI/CLI.hpp>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "kernels/core/status_macros.h"
#include "launcher/command.h"
#include "launcher/job.h"
#include "launcher/output.h"
#include "runtime/checkpoint/checkpoint_summary.h"

namespace thinwire {
namespace {

using Json = nlohmann::ordered_json;

Json GroupJson(const TensorGroup& group) {
  return {{"tensors", group.num_tensors},
          {"parameters", group.num_parameters},
          {"bytes", group.size_bytes},
          {"bits_per_weight", group.bits_per_weight()}};
}

std::string ToJson(const CheckpointSummary& summary) {
  const ModelConfig& config = summary.config;
  Json dtypes = Json::object();
  for (const auto& [name, group] : summary.by_dtype) dtypes[name] = GroupJson(group);
  Json parts = Json::object();
  for (const auto& [name, group] : summary.by_part) parts[name] = GroupJson(group);
  const Json json = {{"architecture", config.architecture},
                     {"family", std::string(FamilyName(config.family))},
                     {"scheme", "w16a16"},
                     {"vocab", config.vocab},
                     {"hidden", config.hidden},
                     {"num_layers", config.num_layers},
                     {"num_heads", config.num_heads},
                     {"num_kv_heads", config.num_kv_heads},
                     {"head_dim", config.head_dim},
                     {"ffn", config.ffn},
                     {"max_positions", config.max_positions},
                     {"tie_embeddings", config.tie_embeddings},
                     {"sliding_window", config.sliding_window},
                     {"kv_elements_per_token", summary.kv_elements_per_token},
                     {"tp_sizes", summary.usable_tp_sizes},
                     {"files", summary.num_files},
                     {"total", GroupJson(summary.total)},
                     {"dtypes", std::move(dtypes)},
                     {"parts", std::move(parts)}};
  return json.dump() + "\n";
}

std::string GroupLine(absl::string_view name, const TensorGroup& group) {
  return absl::StrFormat("  %-12s %6d tensors %12.3f M parameters %12.3f MB %7.2f bits\n", name,
                         group.num_tensors, group.num_parameters / 1e6, group.size_bytes / 1e6,
                         group.bits_per_weight());
}

std::string ToText(const std::string& dir, const CheckpointSummary& summary) {
  const ModelConfig& config = summary.config;
  std::string text = absl::StrFormat(
      "%s: %s\n"
      "  %d layers, hidden %d, %d heads (%d KV) of %d, ffn %d, vocabulary %d, context %d\n",
      dir, config.architecture, config.num_layers, config.hidden, config.num_heads,
      config.num_kv_heads, config.head_dim, config.ffn, config.vocab, config.max_positions);
  if (config.sliding_window > 0) {
    absl::StrAppend(&text, "  sliding window of ", config.sliding_window, " tokens\n");
  }
  absl::StrAppend(&text, "  head ", config.tie_embeddings ? "tied to the embedding" : "untied",
                  "; --tp may be ", absl::StrJoin(summary.usable_tp_sizes, ", "), "; --pp up to ",
                  config.num_layers, "\n");
  absl::StrAppend(&text, absl::StrFormat("  KV cache: %d elements a token, %.1f kB at fp16\n",
                                         summary.kv_elements_per_token,
                                         summary.kv_elements_per_token * 2 / 1e3));
  for (const auto& [name, group] : summary.by_part) absl::StrAppend(&text, GroupLine(name, group));
  for (const auto& [name, group] : summary.by_dtype) {
    absl::StrAppend(&text, GroupLine(name, group));
  }
  absl::StrAppend(&text, GroupLine("total", summary.total));
  return text;
}

class InspectCommand : public Command {
 public:
  explicit InspectCommand(CLI::App& app)
      : app_(app.add_subcommand("inspect", "Show what is in a checkpoint")) {
    app_->add_option("model", dir_, "Folder with config.json and *.safetensors")
        ->type_name("DIR")
        ->required();
    app_->add_flag("--json", json_, "One JSON object on standard output");
  }

  bool chosen() const override { return app_->parsed(); }

  absl::Status Run(Job& job) override {
    if (!job.leader()) return absl::OkStatus();
    TW_ASSIGN_OR_RETURN(const CheckpointSummary summary, SummarizeCheckpoint(dir_));
    return WriteOutput(json_ ? ToJson(summary) : ToText(dir_, summary));
  }

 private:
  CLI::App* app_;
  std::string dir_;
  bool json_ = false;
};

}  // namespace

std::unique_ptr<Command> MakeInspectCommand(CLI::App& app) {
  return std::make_unique<InspectCommand>(app);
}

}  // namespace thinwire
