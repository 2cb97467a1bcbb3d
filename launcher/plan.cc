// thinwire plan: what fits into how many GPUs.
#include <CLI/CLI.hpp>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <system_error>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "kernels/core/status_macros.h"
#include "launcher/command.h"
#include "launcher/engine_flags.h"
#include "launcher/job.h"
#include "launcher/output.h"
#include "runtime/checkpoint/checkpoint_summary.h"
#include "runtime/checkpoint/quant_scheme.h"
#include "runtime/checkpoint/synthetic_model.h"
#include "runtime/engine/memory_plan.h"

namespace thinwire {
namespace {

constexpr const char* kSchemes[] = {"w16a16", "w4a16",  "w4a8",   "w4a4",
                                    "w4a4kv", "w4a3kv", "w3a3kv", "vptq-v8-k4096-r256"};

// One way to run the model.
struct Option {
  std::string scheme;
  Mesh mesh;
  RankMemory memory;
  bool fits = false;
  int64_t max_batch = 0;
};

class PlanCommand : public Command {
 public:
  explicit PlanCommand(CLI::App& app)
      : app_(app.add_subcommand("plan", "What fits into how many GPUs, by part and scheme")) {
    app_->add_option("--model", model_, "Model folder, or a shape: llama-2-70b, opt-66b, ...")
        ->type_name("DIR|NAME")
        ->required();
    app_->add_option("--gpus", gpus_, "Ranks of the job")
        ->type_name("N")
        ->check(CLI::Range(1, 65536))
        ->required();
    app_->add_option("--gpu-memory", gpu_memory_, "Memory of each: 80G")
        ->type_name("SIZE")
        ->required();
    app_->add_option("--batch", load_.batch, "Sequences at the same time")
        ->type_name("B")
        ->check(CLI::Range(int64_t{1}, int64_t{1} << 20))
        ->capture_default_str();
    app_->add_option("--seqlen", load_.seqlen,
                     "Tokens of a sequence, generated ones included; 0: the model's context")
        ->type_name("S")
        ->check(CLI::Range(int64_t{0}, int64_t{1} << 28))
        ->capture_default_str();
    app_->add_option(
        "--scheme", scheme_,
        "w4a4kv, vptq-v6-k4096, ...; absent: the folder's own, or many where it is not quantised");
    app_->add_option("--dtype", dtype_, "Of activations, and of K and V without codes")
        ->check(CLI::IsMember({"fp32", "fp16", "bf16"}))
        ->capture_default_str();
    app_->add_option("--max-step-tokens", load_.max_step_tokens, "As for run")
        ->type_name("N")
        ->check(CLI::Range(int64_t{1}, int64_t{1} << 20))
        ->capture_default_str();
    app_->add_option("--reserve", reserve_, "What driver and libraries take of each GPU")
        ->type_name("SIZE")
        ->capture_default_str();
    app_->add_flag("--json", json_, "One JSON object per option on standard output");
  }

  bool chosen() const override { return app_->parsed(); }

  absl::Status Run(Job& job) override {
    const auto capacity = ParseBytes(gpu_memory_);
    if (!capacity.ok()) return UsageError(Annotate(capacity.status(), "--gpu-memory"));
    const auto reserve = ParseBytes(reserve_);
    if (!reserve.ok()) return UsageError(Annotate(reserve.status(), "--reserve"));
    if (!scheme_.empty()) {
      TW_RETURN_IF_ERROR(UsageError(Annotate(ParseScheme(scheme_).status(), "--scheme")));
    }
    if (!job.leader()) return absl::OkStatus();
    TW_ASSIGN_OR_RETURN(load_.dtype, ParseDType(dtype_));
    load_.reserve_bytes = *reserve;
    ThreadPool pool(1);
    std::string text;
    int64_t num_options = 0;
    TW_ASSIGN_OR_RETURN(const std::vector<std::string> models, Models());
    for (const std::string& model : models) {
      TW_ASSIGN_OR_RETURN(const CheckpointSummary summary, SummarizeCheckpoint(model));
      MemoryLoad load = load_;
      if (load.seqlen == 0) load.seqlen = summary.config.max_positions;
      if (load.seqlen > summary.config.max_positions) {
        return absl::InvalidArgumentError(absl::StrCat("--seqlen ", load.seqlen,
                                                       ": expected at most the model's context of ",
                                                       summary.config.max_positions));
      }
      TW_ASSIGN_OR_RETURN(const std::vector<Mesh> meshes, UsableMeshes(model, gpus_));
      if (text.empty() && !json_) text = Heading(load);
      for (const Mesh& mesh : meshes) {
        Option option = {.scheme = summary.scheme, .mesh = mesh};
        TW_ASSIGN_OR_RETURN(option.memory, PlanMemory(model, mesh, load, pool));
        option.fits = option.memory.total() <= *capacity;
        option.max_batch = option.memory.MaxBatch(*capacity);
        absl::StrAppend(&text, json_ ? ToJson(option) : ToText(option));
        ++num_options;
      }
    }
    if (num_options == 0) {
      return absl::InvalidArgumentError(
          absl::StrCat("--gpus ", gpus_, ": ", model_, " cannot be cut into as many parts"));
    }
    return WriteOutput(text);
  }

 private:
  // What to plan, as --model of other commands.
  absl::StatusOr<std::vector<std::string>> Models() const {
    std::error_code error;
    const bool folder = std::filesystem::exists(model_, error);
    if (folder && scheme_.empty()) {
      TW_ASSIGN_OR_RETURN(const CheckpointSummary summary, SummarizeCheckpoint(model_));
      if (summary.scheme != SchemeName(QuantScheme())) return std::vector<std::string>{model_};
    }
    if (IsSyntheticModel(model_)) return std::vector<std::string>{model_};
    const std::string shape = absl::StrCat("synthetic:", model_, ":");
    if (!scheme_.empty()) return std::vector<std::string>{shape + scheme_};
    std::vector<std::string> models;
    for (const char* scheme : kSchemes) models.push_back(shape + scheme);
    return models;
  }

  std::string Heading(const MemoryLoad& load) const {
    return absl::StrFormat(
        "%d GPUs of %s, %d sequences of %d tokens; GB of the GPU that needs most\n"
        "%-18s %3s %3s %9s %9s %11s %8s %8s %8s  %s\n",
        gpus_, gpu_memory_, load.batch, load.seqlen, "scheme", "tp", "pp", "weights", "KV",
        "activations", "exchange", "reserve", "total", "fits");
  }

  static std::string ToText(const Option& option) {
    const RankMemory& memory = option.memory;
    return absl::StrFormat(
        "%-18s %3d %3d %9.2f %9.2f %11.2f %8.2f %8.2f %8.2f  %s\n", option.scheme,
        option.mesh.tp_size, option.mesh.pp_size, memory.weight_bytes / 1e9, memory.kv_bytes / 1e9,
        memory.activation_bytes / 1e9, memory.exchange_bytes / 1e9, memory.reserve_bytes / 1e9,
        memory.total() / 1e9,
        option.fits            ? absl::StrCat("yes, up to ", option.max_batch, " sequences")
        : option.max_batch > 0 ? absl::StrCat("no, only ", option.max_batch, " sequences")
                               : "no");
  }

  static std::string ToJson(const Option& option) {
    const RankMemory& memory = option.memory;
    const nlohmann::ordered_json json = {{"scheme", option.scheme},
                                         {"tp", option.mesh.tp_size},
                                         {"pp", option.mesh.pp_size},
                                         {"weight_bytes", memory.weight_bytes},
                                         {"kv_bytes", memory.kv_bytes},
                                         {"activation_bytes", memory.activation_bytes},
                                         {"exchange_bytes", memory.exchange_bytes},
                                         {"reserve_bytes", memory.reserve_bytes},
                                         {"total_bytes", memory.total()},
                                         {"fits", option.fits},
                                         {"max_batch", option.max_batch}};
    return json.dump() + "\n";
  }

  CLI::App* app_;
  std::string model_;
  int gpus_ = 1;
  std::string gpu_memory_;
  std::string scheme_;
  std::string dtype_ = "fp16";
  std::string reserve_ = "1536M";
  MemoryLoad load_;
  bool json_ = false;
};

}  // namespace

std::unique_ptr<Command> MakePlanCommand(CLI::App& app) {
  return std::make_unique<PlanCommand>(app);
}

}  // namespace thinwire
