// Look-ups against what bounds them. Few tokens: the bytes of the codes over the rate at which the
// same threads read as much plain memory, and time beside a dense fp16 layer of the same shape.
// Many: the products over those of plain sgemm. Arguments: v, index bits, residual bits (0: none),
// num_tokens, out, in, threads.
#include <random>
#include <vector>

#include "benchmark/benchmark.h"
#include "kernels/core/fastest.h"
#include "kernels/host_rates/host_rates.h"
#include "kernels/linear/linear.h"
#include "kernels/testing/benchmark_rates.h"
#include "kernels/vptq_linear/random_vptq.h"
#include "kernels/vptq_linear/vptq_linear.h"
#include "kernels/vptq_linear/vptq_linear_cpu.h"

namespace thinwire {
namespace {

template <absl::Status (*kLinear)(const VptqLinearArgs&, Stream&)>
void BM_Vptq(benchmark::State& state) {
  const int64_t num_tokens = state.range(3), out = state.range(4), in = state.range(5);
  std::mt19937 random(1);
  const VptqWeights weights = RandomVptq(out,
                                         {{.length = static_cast<int>(state.range(0)),
                                           .index_bits = static_cast<int>(state.range(1)),
                                           .residual_bits = static_cast<int>(state.range(2)),
                                           .residual = state.range(2) > 0,
                                           .group_columns = {in}}},
                                         false, true, random);
  ThreadPool pool(static_cast<int>(state.range(6)));
  Stream stream = Stream::Cpu(&pool);
  const std::vector<float> x(static_cast<size_t>(num_tokens * in), 0.01f);
  std::vector<float> y(static_cast<size_t>(num_tokens * out));
  const ConstTensorView x_view(x.data(), DType::kF32, {num_tokens, in});
  const TensorView y_view(y.data(), DType::kF32, {num_tokens, out});
  const double best = FastestIteration(state, [&] {
    benchmark::DoNotOptimize(kLinear({.x = x_view, .weights = &weights, .y = y_view}, stream).ok());
  });
  state.counters["us"] = best * 1e6;
  const double weights_per_second = static_cast<double>(out * in) / best;
  state.counters["Gw/s"] = weights_per_second * 1e-9;
  const double rate = static_cast<double>(weights.size_bytes()) / best;
  state.counters["of_read"] = rate / MeasureReadRate(weights.size_bytes(), pool);
  const std::vector<Half> dense(static_cast<size_t>(out * in), ToHalf(0.03f));
  const double plain = FastestSeconds(5, [&] {
    benchmark::DoNotOptimize(
        Linear({.x = x_view,
                .weight = ConstTensorView(dense.data(), DType::kF16, {out, in}),
                .y = y_view},
               stream)
            .ok());
  });
  state.counters["x_fp16"] = plain / best;
}

void Shapes(benchmark::internal::Benchmark* bench) {
  for (const int64_t tokens : {1, 4, 16, 32, 256}) {
    bench->Args({8, 12, 8, tokens, 4096, 4096, 2});
    bench->Args({6, 12, 0, tokens, 4096, 4096, 2});
    bench->Args({4, 8, 0, tokens, 4096, 4096, 2});
    bench->Args({8, 16, 0, tokens, 4096, 4096, 2});
  }
}
BENCHMARK(BM_Vptq<VptqLinear>)->Apply(Shapes);

// Both ways around kFewVptqTokens.
void Crossover(benchmark::internal::Benchmark* bench) {
  for (const int64_t tokens : {4, 8, 12, 16, 24, 32}) {
    bench->Args({8, 12, 8, tokens, 2048, 2048, 1});
  }
}
BENCHMARK(BM_Vptq<VptqLinearFewTokens>)->Apply(Crossover);
BENCHMARK(BM_Vptq<VptqLinearManyTokens>)->Apply(Crossover);

}  // namespace
}  // namespace thinwire
