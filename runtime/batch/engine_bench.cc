#include "runtime/batch/engine_bench.h"

#include <algorithm>
#include <chrono>
#include <memory>
#include <utility>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "kernels/core/status_macros.h"

namespace thinwire {
namespace {

using Clock = std::chrono::steady_clock;

double SecondsSince(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

// Multiply-adds of all linears but the head, per token.
double LinearsPerToken(const ModelConfig& config, bool gated) {
  const double attention = static_cast<double>(config.hidden) * config.head_dim *
                           (2 * config.num_heads + 2 * config.num_kv_heads);
  const double mlp = static_cast<double>(config.hidden) * config.ffn * (gated ? 3 : 2);
  return config.num_layers * (attention + mlp);
}

double Head(const ModelConfig& config) { return static_cast<double>(config.vocab) * config.hidden; }

bool IsGated(const ModelConfig& config) { return config.family != ModelFamily::kOpt; }

Request RandomRequest(const ModelConfig& config, int64_t prompt_tokens, int64_t new_tokens,
                      uint64_t seed) {
  Request request;
  for (int64_t i = 0; i < prompt_tokens; ++i) {
    request.prompt_ids.push_back(
        static_cast<int32_t>(UniformRandom(seed, i) * static_cast<double>(config.vocab)));
  }
  request.max_new_tokens = new_tokens;
  return request;
}

// Seconds until one prompt has its first token.
absl::StatusOr<double> TimePrefill(Engine& engine, int64_t prompt_tokens, uint64_t seed) {
  const Clock::time_point start = Clock::now();
  TW_RETURN_IF_ERROR(
      engine.Submit(RandomRequest(engine.rank().config(), prompt_tokens, 1, seed)).status());
  while (engine.HasWork()) TW_RETURN_IF_ERROR(engine.Step());
  return SecondsSince(start);
}

// Decodes with the whole batch; `on_step` is told whenever the last sequence gets a token while all
// of them decode.
absl::Status DecodeTogether(Engine& engine, const EngineLoad& load,
                            absl::FunctionRef<void()> on_step) {
  int64_t num_started = 0;
  for (int64_t i = 0; i < load.batch; ++i) {
    Request request =
        RandomRequest(engine.rank().config(), load.decode_context(), load.new_tokens, i);
    request.on_token = [&, first = true, last = i + 1 == load.batch](int32_t) mutable {
      if (first) ++num_started;
      first = false;
      if (last && num_started == load.batch) on_step();
      return true;
    };
    TW_RETURN_IF_ERROR(load.context > 0 ? engine.SubmitInContext(std::move(request)).status()
                                        : engine.Submit(std::move(request)).status());
  }
  while (engine.HasWork()) TW_RETURN_IF_ERROR(engine.Step());
  return absl::OkStatus();
}

// Median seconds between two tokens of a sequence while `batch` of them decode.
absl::StatusOr<double> TimeDecode(Engine& engine, const EngineLoad& load) {
  std::vector<Clock::time_point> times;
  TW_RETURN_IF_ERROR(DecodeTogether(engine, load, [&] { times.push_back(Clock::now()); }));
  std::vector<double> gaps;
  // The tail, where the first sequences have ended, is left out.
  const size_t end = times.size() * 3 / 4;
  for (size_t i = 1; i < end; ++i) {
    gaps.push_back(std::chrono::duration<double>(times[i] - times[i - 1]).count());
  }
  if (gaps.empty()) {
    return absl::InvalidArgumentError("too few new tokens to time decoding; expected at least 4");
  }
  return Median(std::move(gaps));
}

}  // namespace

StepCost DecodeCost(const ModelConfig& config, const ModelBytes& bytes, int64_t batch,
                    int64_t context) {
  const double attention =
      2.0 * config.num_layers * config.num_heads * config.head_dim * context;  // multiply-adds
  return {
      .bytes = bytes.weights + bytes.kv_per_token * static_cast<double>(context * batch),
      .flops = 2.0 * batch * (LinearsPerToken(config, IsGated(config)) + Head(config) + attention)};
}

StepCost PrefillCost(const ModelConfig& config, const ModelBytes& bytes, int64_t num_tokens) {
  const auto n = static_cast<double>(num_tokens);
  const double attention = config.num_layers * config.num_heads * config.head_dim * n * (n + 1);
  return {.bytes = bytes.weights + bytes.kv_per_token * n,
          .flops = 2.0 * (n * LinearsPerToken(config, IsGated(config)) + Head(config) + attention)};
}

absl::StatusOr<DecodeTrace> TraceDecode(Engine& engine, const EngineLoad& load) {
  DecodeTrace trace;
  absl::StatusOr<std::unique_ptr<KernelTrace>> started;
  int64_t token = 0;
  const int64_t end = std::max<int64_t>(2, load.new_tokens * 3 / 4);
  absl::StatusOr<KernelTimes> times = absl::InternalError("decoding was not traced");
  TW_RETURN_IF_ERROR(DecodeTogether(engine, load, [&] {
    ++token;
    if (token == 1) {
      started = KernelTrace::Start();
    } else if (token == end && started.ok()) {
      times = (*started)->Stop();
    }
  }));
  TW_RETURN_IF_ERROR(started.status());
  TW_ASSIGN_OR_RETURN(trace.times, std::move(times));
  trace.num_steps = end - 1;
  return trace;
}

absl::StatusOr<EngineTiming> TimeEngine(Engine& engine, const EngineLoad& load) {
  std::vector<double> prefill, decode;
  // Touches all memory once.
  TW_RETURN_IF_ERROR(TimePrefill(engine, load.prompt_tokens, 0).status());
  for (int i = 0; i < load.repeats; ++i) {
    TW_ASSIGN_OR_RETURN(const double prefill_seconds, TimePrefill(engine, load.prompt_tokens, i));
    TW_ASSIGN_OR_RETURN(const double decode_seconds, TimeDecode(engine, load));
    prefill.push_back(prefill_seconds);
    decode.push_back(decode_seconds);
  }
  return EngineTiming{Median(std::move(prefill)), Median(std::move(decode))};
}

}  // namespace thinwire
