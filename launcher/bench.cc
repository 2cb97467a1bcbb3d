// thinwire bench: measurements.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "kernels/core/status_macros.h"
#include "kernels/host_rates/host_rates.h"
#include "kernels/kernel_bench/kernel_bench.h"
#include "launcher/bench_comm.h"
#include "launcher/bench_kernels.h"
#ifdef THINWIRE_HAS_SERVER
#include "launcher/bench_serve.h"
#endif
#include "launcher/command.h"
#include "launcher/engine_flags.h"
#include "launcher/job.h"
#include "launcher/output.h"
#include "runtime/batch/engine_bench.h"
#include "runtime/checkpoint/model_config.h"

namespace thinwire {
namespace {

// What all ranks' devices together can do while all of them try.
struct JobLimits {
  bool gpus = false;
  double memory_rate = 0.0;   // bytes/s, as DeviceLimits has it
  double weight_rate = 0.0;   // CPUs: bytes/s of a working set as large as the weights
  double product_rate = 0.0;  // flop/s, as DeviceLimits has it
};

class BenchCommand : public Command {
 public:
  explicit BenchCommand(CLI::App& app)
      : app_(app.add_subcommand("bench", "Measure speed beside the machine's limits")) {
    app_->require_subcommand(1);
    engine_ = app_->add_subcommand("engine", "Prefill and decode of a model");
    flags_.AddTo(*engine_);
    engine_->add_option("--batch", load_.batch, "Sequences that decode together")
        ->type_name("N")
        ->check(CLI::Range(int64_t{1}, int64_t{65536}))
        ->capture_default_str();
    prompt_tokens_ = engine_->add_option("--prompt-tokens", load_.prompt_tokens,
                                         "Length of the prompts; if not given, no more than the "
                                         "model's context leaves");
    prompt_tokens_->type_name("N")
        ->check(CLI::Range(int64_t{1}, int64_t{1} << 24))
        ->capture_default_str();
    engine_->add_option("--new-tokens", load_.new_tokens, "Tokens decoded from each")
        ->type_name("N")
        ->check(CLI::Range(int64_t{4}, int64_t{1} << 24))
        ->capture_default_str();
    engine_
        ->add_option("--context", load_.context,
                     "Decode behind N tokens instead of the prompt, without computing them: K and "
                     "V are whatever the cache holds")
        ->type_name("N")
        ->check(CLI::Range(int64_t{2}, int64_t{1} << 24));
    engine_->add_option("--repeats", load_.repeats, "Runs; medians are reported")
        ->type_name("N")
        ->check(CLI::Range(1, 1000))
        ->capture_default_str();
    engine_->add_flag("--kernels", kernels_,
                      "What rank 0's GPU runs in a decode step, kernel by kernel");
    engine_->add_flag("--json", json_, "One JSON object on standard output");
    engine_->footer(
        "Limits are measured in the same run, on all ranks at once. CPUs: the rate of reading 256 "
        "MiB\n"
        "per rank, of reading as much as the weights take, and of sgemm. GPUs: that of a copy, "
        "bytes\n"
        "read and written, and of fp16 products. The decode floor is the bytes of weights and KV "
        "over\n"
        "the memory rate, the prefill floor the multiply-adds over the rate of products.");
    comm_ = app_->add_subcommand("comm", "What strategies of --wire take and send on these links");
    bench_comm_.AddTo(*comm_);
    kernels_app_ = app_->add_subcommand("kernels", "Operators beside the limits of a device");
    bench_kernels_.AddTo(*kernels_app_);
#ifdef THINWIRE_HAS_SERVER
    serve_ = app_->add_subcommand("serve", "A server under load: latencies, rates, goodput");
    bench_serve_.AddTo(*serve_);
#else
    missing_ = app_->add_subcommand("serve");
    missing_->group("");
    missing_->allow_extras()->fallthrough(false);
    missing_->set_help_flag();
#endif
  }

  bool chosen() const override { return app_->parsed(); }

  absl::Status Run(Job& job) override {
    if (missing_ != nullptr && missing_->parsed()) {
      return UsageError(absl::UnimplementedError("'bench serve' is not in this build"));
    }
    if (comm_->parsed()) return bench_comm_.Run(job);
    if (kernels_app_->parsed()) return bench_kernels_.Run(job);
#ifdef THINWIRE_HAS_SERVER
    if (serve_->parsed()) return bench_serve_.Run(job);
#endif
    flags_.max_seqs = std::max(flags_.max_seqs, load_.batch);
    TW_RETURN_IF_ERROR(FitContext());
    TW_ASSIGN_OR_RETURN(const std::unique_ptr<EngineSession> session,
                        EngineSession::Open(flags_, job));
    TW_ASSIGN_OR_RETURN(const JobLimits limits, MeasureLimits(job, *session));
    if (!job.leader()) return session->Follow();
    const absl::Status status = Lead(session->engine(), limits);
    const absl::Status stopped = session->engine().Stop();
    return status.ok() ? stopped : status;
  }

 private:
  // Before the weights are read. What is wrong with the model itself, reading them will say.
  absl::Status FitContext() {
    const absl::StatusOr<ModelConfig> config = LoadModelConfig(flags_.model);
    if (!config.ok()) return absl::OkStatus();
    if (prompt_tokens_->count() == 0) {
      const int64_t room = config->max_positions - load_.new_tokens;
      load_.prompt_tokens = std::clamp<int64_t>(room, 1, load_.prompt_tokens);
    }
    const int64_t longest = std::max(load_.prompt_tokens, load_.context) + load_.new_tokens;
    if (longest <= config->max_positions) return absl::OkStatus();
    const char* const before = load_.context > load_.prompt_tokens ? "--context "
                               : prompt_tokens_->count() > 0       ? "--prompt-tokens "
                                                                   : "a prompt of ";
    return UsageError(absl::InvalidArgumentError(
        absl::StrCat(before, std::max(load_.prompt_tokens, load_.context), " and --new-tokens ",
                     load_.new_tokens, " exceed the model's context of ", config->max_positions)));
  }

  // All ranks measure at the same time, each its own threads or GPU; rates add up.
  static absl::StatusOr<JobLimits> MeasureLimits(Job& job, EngineSession& session) {
    Stream host = Stream::Cpu(&session.pool());
    const Device device = session.rank().options().device;
    const bool gpus = device.kind == DeviceKind::kCuda;
    float rates[3] = {};
    TW_RETURN_IF_ERROR(job.world().Barrier(host));
    {
      TW_ASSIGN_OR_RETURN(Stream stream, gpus ? Stream::Cuda(device, &session.pool())
                                              : Stream::Cpu(&session.pool()));
      TW_ASSIGN_OR_RETURN(const DeviceLimits limits, MeasureDeviceLimits(stream));
      rates[0] = static_cast<float>(limits.byte_rate);
      rates[2] = static_cast<float>(limits.operation_rate);
    }
    if (!gpus) {
      TW_RETURN_IF_ERROR(job.world().Barrier(host));
      const int64_t weight_bytes = session.rank().Report().memory.weight_bytes;
      rates[1] = static_cast<float>(MeasureReadRate(weight_bytes, session.pool()));
    }
    TW_RETURN_IF_ERROR(
        job.world().AllReduce(TensorView(rates, DType::kF32, {3}), ReduceOp::kSum, host));
    return JobLimits{gpus, rates[0], rates[1], rates[2]};
  }

  absl::Status Lead(Engine& engine, const JobLimits& limits) {
    const ModelConfig& config = engine.rank().config();
    if (kernels_ && engine.rank().options().device == Device::Cpu()) {
      return absl::InvalidArgumentError("--kernels: expected --device cuda, found cpu");
    }
    TW_ASSIGN_OR_RETURN(const EngineTiming timing, TimeEngine(engine, load_));
    TW_ASSIGN_OR_RETURN(const std::vector<RankReport> reports, engine.CollectReports());
    ModelBytes bytes;
    for (const RankReport& report : reports) {
      bytes.weights += report.memory.weight_bytes;
      bytes.kv_per_token += report.memory.kv_cache_bytes;
    }
    const SchedulerLimits cache = engine.rank().scheduler_limits(0);
    bytes.kv_per_token /= static_cast<double>(cache.num_pages * cache.page_size);
    // An untied token embedding is looked up, not read whole.
    if (!config.tie_embeddings) {
      bytes.weights -= static_cast<double>(config.vocab) * config.embed_dim *
                       DTypeBits(config.weights_dtype) / 8;
    }
    const StepCost prefill = PrefillCost(config, bytes, load_.prompt_tokens);
    const StepCost decode =
        DecodeCost(config, bytes, load_.batch, load_.decode_context() + load_.new_tokens * 3 / 8);
    std::optional<DecodeTrace> trace;
    if (kernels_) {
      TW_ASSIGN_OR_RETURN(trace, TraceDecode(engine, load_));
    }
    if (json_) return WriteOutput(ToJson(engine, limits, timing, prefill, decode, trace));
    TW_RETURN_IF_ERROR(WriteOutput(ToText(limits, timing, prefill, decode)));
    return trace.has_value() ? WriteOutput(ToText(*trace)) : absl::OkStatus();
  }

  std::string ToText(const JobLimits& limits, const EngineTiming& timing, const StepCost& prefill,
                     const StepCost& decode) const {
    const double flop_rate = prefill.flops / timing.prefill_seconds;
    const double byte_rate = decode.bytes / timing.decode_step_seconds;
    std::string text =
        limits.gpus
            ? absl::StrFormat("limits   copy %.1f GB/s; fp16 products %.1f GF/s\n",
                              limits.memory_rate / 1e9, limits.product_rate / 1e9)
            : absl::StrFormat(
                  "limits   read %.1f GB/s from memory, %.1f GB/s over the weights' size; "
                  "sgemm %.1f GF/s\n",
                  limits.memory_rate / 1e9, limits.weight_rate / 1e9, limits.product_rate / 1e9);
    absl::StrAppendFormat(
        &text,
        "prefill  %d tokens: %.2f ms, %.0f tokens/s, %.1f GF/s = %.0f %% of %s\n"
        "decode   batch %d: %.3f ms a step, %.1f tokens/s, %.1f GB/s = %.0f %% of "
        "%s",
        load_.prompt_tokens, timing.prefill_seconds * 1e3,
        load_.prompt_tokens / timing.prefill_seconds, flop_rate / 1e9,
        100 * flop_rate / limits.product_rate, limits.gpus ? "products" : "sgemm", load_.batch,
        timing.decode_step_seconds * 1e3, load_.batch / timing.decode_step_seconds, byte_rate / 1e9,
        100 * byte_rate / limits.memory_rate, limits.gpus ? "copy" : "memory");
    if (!limits.gpus) {
      absl::StrAppendFormat(&text, ", %.0f %% of the weights' rate",
                            100 * byte_rate / limits.weight_rate);
    }
    text += "\n";
    return text;
  }

  static std::string ToText(const DecodeTrace& trace) {
    const double step_us = 1e6 / static_cast<double>(trace.num_steps);
    const KernelTimes& times = trace.times;
    std::string text = absl::StrFormat(
        "kernels  of rank 0, mean of %d decode steps: %.1f us, of them %.1f us busy (%.0f %%)\n",
        trace.num_steps, times.span_seconds * step_us, times.busy_seconds * step_us,
        100 * times.busy_seconds / times.span_seconds);
    text += "         adds, of all        runs for    calls  kernel and its blocks\n";
    for (const KernelTimes::Kernel& kernel : times.kernels) {
      absl::StrAppendFormat(
          &text, "%10.1f us  %5.1f %%  %9.1f us  %7.1f  %s", kernel.added_seconds * step_us,
          100 * kernel.added_seconds / times.span_seconds, kernel.seconds * step_us,
          static_cast<double>(kernel.calls) / trace.num_steps, kernel.name);
      if (kernel.grid[0] > 0) absl::StrAppend(&text, " ", absl::StrJoin(kernel.grid, "x"));
      text += "\n";
    }
    return text;
  }

  std::string ToJson(const Engine& engine, const JobLimits& limits, const EngineTiming& timing,
                     const StepCost& prefill, const StepCost& decode,
                     const std::optional<DecodeTrace>& trace) const {
    const double flop_rate = prefill.flops / timing.prefill_seconds;
    const double byte_rate = decode.bytes / timing.decode_step_seconds;
    nlohmann::ordered_json json = {
        {"model", flags_.model},
        {"tp", flags_.tp},
        {"pp", flags_.pp},
        {"device", limits.gpus ? "cuda" : "cpu"},
        {"dtype", std::string(DTypeName(engine.rank().options().dtype))},
        {"memory_bytes_per_second", limits.memory_rate},
        {"product_flops", limits.product_rate},
        {"prefill",
         {{"tokens", load_.prompt_tokens},
          {"ms", timing.prefill_seconds * 1e3},
          {"tokens_per_second", load_.prompt_tokens / timing.prefill_seconds},
          {"flop", prefill.flops},
          {"of_products", flop_rate / limits.product_rate}}},
        {"decode",
         {{"batch", load_.batch},
          {"ms_per_step", timing.decode_step_seconds * 1e3},
          {"tokens_per_second", load_.batch / timing.decode_step_seconds},
          {"context", load_.decode_context()},
          {"bytes", decode.bytes},
          {"of_memory", byte_rate / limits.memory_rate}}}};
    if (!limits.gpus) {
      json["weight_size_bytes_per_second"] = limits.weight_rate;
      json["decode"]["of_weight_size_rate"] = byte_rate / limits.weight_rate;
    }
    if (trace.has_value()) {
      const double step_us = 1e6 / static_cast<double>(trace->num_steps);
      nlohmann::ordered_json kernels = nlohmann::ordered_json::array();
      for (const KernelTimes::Kernel& kernel : trace->times.kernels) {
        kernels.push_back({{"name", kernel.name},
                           {"grid", kernel.grid},
                           {"us", kernel.seconds * step_us},
                           {"added_us", kernel.added_seconds * step_us},
                           {"calls", static_cast<double>(kernel.calls) / trace->num_steps}});
      }
      json["step"] = {{"us", trace->times.span_seconds * step_us},
                      {"busy_us", trace->times.busy_seconds * step_us},
                      {"kernels", std::move(kernels)}};
    }
    return json.dump() + "\n";
  }

  CLI::App* app_;
  CLI::App* engine_;
  CLI::App* comm_;
  CLI::App* kernels_app_;
  CLI::Option* prompt_tokens_;
  BenchComm bench_comm_;
  BenchKernels bench_kernels_;
#ifdef THINWIRE_HAS_SERVER
  CLI::App* serve_;
  BenchServe bench_serve_;
#endif
  CLI::App* missing_ = nullptr;  // a subcommand that other builds have
  EngineFlags flags_;
  EngineLoad load_;
  bool kernels_ = false;
  bool json_ = false;
};

}  // namespace

std::unique_ptr<Command> MakeBenchCommand(CLI::App& app) {
  return std::make_unique<BenchCommand>(app);
}

}  // namespace thinwire
