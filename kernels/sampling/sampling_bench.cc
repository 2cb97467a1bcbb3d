// A batch of logits: greedy, nucleus and top-k draws, and log-probabilities. Bytes are those of the
// logits.
#include <random>
#include <vector>

#include "benchmark/benchmark.h"
#include "kernels/sampling/sampling.h"
#include "kernels/testing/benchmark_rates.h"

namespace thinwire {
namespace {

std::vector<float> Logits(int64_t count) {
  std::mt19937 random(1);
  std::normal_distribution<float> normal(0.0f, 3.0f);
  std::vector<float> logits(static_cast<size_t>(count));
  for (float& logit : logits) logit = normal(random);
  return logits;
}

void RunSample(benchmark::State& state, const SamplingParams& params) {
  const int64_t num_seqs = state.range(0);
  const int64_t vocab = state.range(1);
  ThreadPool pool(static_cast<int>(state.range(2)));
  Stream stream = Stream::Cpu(&pool);
  const std::vector<float> logits = Logits(num_seqs * vocab);
  const std::vector<SamplingParams> all_params(static_cast<size_t>(num_seqs), params);
  std::vector<int64_t> positions(static_cast<size_t>(num_seqs));
  std::vector<int32_t> tokens(static_cast<size_t>(num_seqs));
  SampleArgs args;
  args.logits = ConstTensorView(logits.data(), DType::kF32, {num_seqs, vocab});
  args.params = all_params;
  args.positions = positions;
  args.token_ids = absl::MakeSpan(tokens);
  RunBesideCopy(state, num_seqs * vocab * 4, pool, [&] {
    for (int64_t& position : positions) ++position;
    benchmark::DoNotOptimize(Sample(args, stream).ok());
  });
}

void BM_Greedy(benchmark::State& state) { RunSample(state, {}); }
void BM_Plain(benchmark::State& state) { RunSample(state, {.temperature = 1.0f}); }
void BM_TopP(benchmark::State& state) { RunSample(state, {.temperature = 0.8f, .top_p = 0.9f}); }
void BM_TopK(benchmark::State& state) { RunSample(state, {.temperature = 0.8f, .top_k = 50}); }

void BM_LogProbs(benchmark::State& state) {
  const int64_t num_rows = state.range(0);
  const int64_t vocab = state.range(1);
  ThreadPool pool(static_cast<int>(state.range(2)));
  Stream stream = Stream::Cpu(&pool);
  const std::vector<float> logits = Logits(num_rows * vocab);
  const std::vector<int32_t> targets(static_cast<size_t>(num_rows), 17);
  std::vector<float> log_probs(static_cast<size_t>(num_rows));
  LogProbArgs args;
  args.logits = ConstTensorView(logits.data(), DType::kF32, {num_rows, vocab});
  args.targets = targets;
  args.log_probs = absl::MakeSpan(log_probs);
  RunBesideCopy(state, num_rows * vocab * 4, pool,
                [&] { benchmark::DoNotOptimize(LogProbs(args, stream).ok()); });
}

void Shapes(benchmark::internal::Benchmark* bench) {
  bench->ArgsProduct({{1, 64}, {50272, 128256}, {1, 2}});
}
BENCHMARK(BM_Greedy)->Apply(Shapes);
BENCHMARK(BM_Plain)->Apply(Shapes);
BENCHMARK(BM_TopP)->Apply(Shapes);
BENCHMARK(BM_TopK)->Apply(Shapes);
BENCHMARK(BM_LogProbs)->Apply(Shapes);

}  // namespace
}  // namespace thinwire
