// thinwire bench: measurements.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "kernels/core/status_macros.h"
#include "kernels/host_rates/host_rates.h"
#include "launcher/bench_comm.h"
#ifdef THINWIRE_HAS_SERVER
#include "launcher/bench_serve.h"
#endif
#include "launcher/command.h"
#include "launcher/engine_flags.h"
#include "launcher/job.h"
#include "launcher/output.h"
#include "runtime/batch/engine_bench.h"

namespace thinwire {
namespace {

// What all ranks together can do while all of them try.
struct HostLimits {
  double memory_rate = 0.0;  // bytes/s of a working set larger than caches
  double weight_rate = 0.0;  // bytes/s of a working set as large as the weights
  double sgemm_rate = 0.0;   // flop/s
};

class BenchCommand : public Command {
 public:
  explicit BenchCommand(CLI::App& app)
      : app_(app.add_subcommand("bench", "Measure speed beside the machine's limits")) {
    app_->require_subcommand(1);
    engine_ = app_->add_subcommand("engine", "Prefill and decode of a model");
    flags_.AddTo(*engine_);
    engine_->add_option("--batch", batch_, "Sequences that decode together")
        ->type_name("N")
        ->check(CLI::Range(int64_t{1}, int64_t{65536}))
        ->capture_default_str();
    engine_->add_option("--prompt-tokens", prompt_tokens_, "Length of the prompts")
        ->type_name("N")
        ->check(CLI::Range(int64_t{1}, int64_t{1} << 24))
        ->capture_default_str();
    engine_->add_option("--new-tokens", new_tokens_, "Tokens decoded from each")
        ->type_name("N")
        ->check(CLI::Range(int64_t{4}, int64_t{1} << 24))
        ->capture_default_str();
    engine_->add_option("--repeats", repeats_, "Runs; medians are reported")
        ->type_name("N")
        ->check(CLI::Range(1, 1000))
        ->capture_default_str();
    engine_->add_flag("--json", json_, "One JSON object on standard output");
    engine_->footer(
        "Limits are measured in the same run, on all ranks at once: the rate of reading 256 MiB "
        "per\n"
        "rank, of reading as much as the weights take, and of sgemm. The decode floor is the bytes "
        "of\n"
        "weights and KV over the memory rate, the prefill floor the multiply-adds over sgemm's.");
    comm_ = app_->add_subcommand("comm", "What strategies of --wire take and send on these links");
    bench_comm_.AddTo(*comm_);
#ifdef THINWIRE_HAS_SERVER
    serve_ = app_->add_subcommand("serve", "A server under load: latencies, rates, goodput");
    bench_serve_.AddTo(*serve_);
    const std::vector<const char*> missing_names = {"kernels"};
#else
    const std::vector<const char*> missing_names = {"kernels", "serve"};
#endif
    for (const char* name : missing_names) {
      CLI::App* missing = app_->add_subcommand(name);
      missing->group("");
      missing->allow_extras()->fallthrough(false);
      missing->set_help_flag();
      missing_.push_back(missing);
    }
  }

  bool chosen() const override { return app_->parsed(); }

  absl::Status Run(Job& job) override {
    for (const CLI::App* missing : missing_) {
      if (missing->parsed()) {
        return UsageError(absl::UnimplementedError(
            absl::StrCat("'bench ", missing->get_name(), "' is not in this version")));
      }
    }
    if (comm_->parsed()) return bench_comm_.Run(job);
#ifdef THINWIRE_HAS_SERVER
    if (serve_->parsed()) return bench_serve_.Run(job);
#endif
    flags_.max_seqs = std::max(flags_.max_seqs, batch_);
    TW_ASSIGN_OR_RETURN(const std::unique_ptr<EngineSession> session,
                        EngineSession::Open(flags_, job));
    TW_ASSIGN_OR_RETURN(const HostLimits limits, MeasureLimits(job, *session));
    if (!job.leader()) return session->Follow();
    const absl::Status status = Lead(session->engine(), limits);
    const absl::Status stopped = session->engine().Stop();
    return status.ok() ? stopped : status;
  }

 private:
  // All ranks measure at the same time, each its own threads; rates add up.
  static absl::StatusOr<HostLimits> MeasureLimits(Job& job, EngineSession& session) {
    Stream stream = Stream::Cpu(&session.pool());
    float rates[3] = {};
    TW_RETURN_IF_ERROR(job.world().Barrier(stream));
    rates[0] = static_cast<float>(MeasureReadRate(int64_t{256} << 20, session.pool()));
    TW_RETURN_IF_ERROR(job.world().Barrier(stream));
    const int64_t weight_bytes = session.rank().Report().memory.weight_bytes;
    rates[1] = static_cast<float>(MeasureReadRate(weight_bytes, session.pool()));
    TW_RETURN_IF_ERROR(job.world().Barrier(stream));
    rates[2] = static_cast<float>(MeasureSgemmRate(session.pool()));
    TW_RETURN_IF_ERROR(
        job.world().AllReduce(TensorView(rates, DType::kF32, {3}), ReduceOp::kSum, stream));
    return HostLimits{rates[0], rates[1], rates[2]};
  }

  absl::Status Lead(Engine& engine, const HostLimits& limits) {
    const ModelConfig& config = engine.rank().config();
    if (prompt_tokens_ + new_tokens_ > config.max_positions) {
      return absl::InvalidArgumentError(
          absl::StrCat("--prompt-tokens ", prompt_tokens_, " and --new-tokens ", new_tokens_,
                       " exceed the model's context of ", config.max_positions));
    }
    TW_ASSIGN_OR_RETURN(const EngineTiming timing,
                        TimeEngine(engine, batch_, prompt_tokens_, new_tokens_, repeats_));
    TW_ASSIGN_OR_RETURN(const std::vector<RankReport> reports, engine.CollectReports());
    double weight_bytes = 0.0;
    for (const RankReport& report : reports) weight_bytes += report.memory.weight_bytes;
    // An untied token embedding is looked up, not read whole.
    if (!config.tie_embeddings) {
      weight_bytes -= static_cast<double>(config.vocab) * config.embed_dim *
                      DTypeBits(config.weights_dtype) / 8;
    }
    const DType dtype = engine.rank().options().dtype;
    const StepCost prefill = PrefillCost(config, weight_bytes, dtype, prompt_tokens_);
    const StepCost decode =
        DecodeCost(config, weight_bytes, dtype, batch_, prompt_tokens_ + new_tokens_ * 3 / 8);
    return WriteOutput(json_ ? ToJson(engine, limits, timing, prefill, decode)
                             : ToText(limits, timing, prefill, decode));
  }

  std::string ToText(const HostLimits& limits, const EngineTiming& timing, const StepCost& prefill,
                     const StepCost& decode) const {
    const double flop_rate = prefill.flops / timing.prefill_seconds;
    const double byte_rate = decode.bytes / timing.decode_step_seconds;
    return absl::StrFormat(
        "limits   read %.1f GB/s from memory, %.1f GB/s over the weights' size; sgemm %.1f GF/s\n"
        "prefill  %d tokens: %.2f ms, %.0f tokens/s, %.1f GF/s = %.0f %% of sgemm\n"
        "decode   batch %d: %.3f ms a step, %.1f tokens/s, %.1f GB/s = %.0f %% of memory, %.0f %% "
        "of the weights' rate\n",
        limits.memory_rate / 1e9, limits.weight_rate / 1e9, limits.sgemm_rate / 1e9, prompt_tokens_,
        timing.prefill_seconds * 1e3, prompt_tokens_ / timing.prefill_seconds, flop_rate / 1e9,
        100 * flop_rate / limits.sgemm_rate, batch_, timing.decode_step_seconds * 1e3,
        batch_ / timing.decode_step_seconds, byte_rate / 1e9, 100 * byte_rate / limits.memory_rate,
        100 * byte_rate / limits.weight_rate);
  }

  std::string ToJson(const Engine& engine, const HostLimits& limits, const EngineTiming& timing,
                     const StepCost& prefill, const StepCost& decode) const {
    const double flop_rate = prefill.flops / timing.prefill_seconds;
    const double byte_rate = decode.bytes / timing.decode_step_seconds;
    const nlohmann::ordered_json json = {
        {"model", flags_.model},
        {"tp", flags_.tp},
        {"pp", flags_.pp},
        {"dtype", std::string(DTypeName(engine.rank().options().dtype))},
        {"memory_bytes_per_second", limits.memory_rate},
        {"weight_size_bytes_per_second", limits.weight_rate},
        {"sgemm_flops", limits.sgemm_rate},
        {"prefill",
         {{"tokens", prompt_tokens_},
          {"ms", timing.prefill_seconds * 1e3},
          {"tokens_per_second", prompt_tokens_ / timing.prefill_seconds},
          {"flop", prefill.flops},
          {"of_sgemm", flop_rate / limits.sgemm_rate}}},
        {"decode",
         {{"batch", batch_},
          {"ms_per_step", timing.decode_step_seconds * 1e3},
          {"tokens_per_second", batch_ / timing.decode_step_seconds},
          {"bytes", decode.bytes},
          {"of_memory", byte_rate / limits.memory_rate},
          {"of_weight_size_rate", byte_rate / limits.weight_rate}}}};
    return json.dump() + "\n";
  }

  CLI::App* app_;
  CLI::App* engine_;
  CLI::App* comm_;
  BenchComm bench_comm_;
#ifdef THINWIRE_HAS_SERVER
  CLI::App* serve_;
  BenchServe bench_serve_;
#endif
  std::vector<CLI::App*> missing_;
  EngineFlags flags_;
  int64_t batch_ = 1;
  int64_t prompt_tokens_ = 512;
  int64_t new_tokens_ = 64;
  int repeats_ = 5;
  bool json_ = false;
};

}  // namespace

std::unique_ptr<Command> MakeBenchCommand(CLI::App& app) {
  return std::make_unique<BenchCommand>(app);
}

}  // namespace thinwire
