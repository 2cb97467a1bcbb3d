// Quantising one matrix on a GPU, seeded random weights and activations.
#include <algorithm>
#include <cstdint>
#include <random>
#include <thread>
#include <vector>

#include "benchmark/benchmark.h"
#include "kernels/core/check.h"
#include "kernels/testing/gpu_rates.h"
#include "runtime/quant/asymmetric_target.h"
#include "runtime/quant/cholesky.h"
#include "runtime/quant/gptq.h"
#include "runtime/quant/vptq.h"

namespace thinwire {
namespace {

int NumThreads() { return static_cast<int>(std::max(1u, std::thread::hardware_concurrency())); }

std::vector<float> Normals(int64_t size) {
  std::mt19937 random(static_cast<unsigned>(size));
  std::normal_distribution<float> normal;
  std::vector<float> some(static_cast<size_t>(std::min<int64_t>(size, (1 << 20) - 3)));
  for (float& value : some) value = normal(random);
  std::vector<float> values(static_cast<size_t>(size));
  for (size_t i = 0; i < values.size(); ++i) values[i] = some[i % some.size()];
  return values;
}

// Of channels that resemble their neighbours: entries 0.5^|i - j|, scaled by random variances.
std::vector<double> Hessian(int64_t width) {
  const std::vector<float> deviations = Normals(width);
  std::vector<double> hessian(static_cast<size_t>(width * width));
  for (int64_t i = 0; i < width; ++i) {
    for (int64_t j = 0; j < width; ++j) {
      const auto apart = static_cast<double>(std::abs(i - j));
      hessian[i * width + j] = apart > 60.0 ? 0.0
                                            : std::exp2(-apart) * (1.5 + deviations[i] * 0.2) *
                                                  (1.5 + deviations[j] * 0.2);
    }
  }
  return hessian;
}

// All that a matrix costs after its moments: two factors, the target, codes. Arguments: out, in.
void BM_GptqOnGpu(benchmark::State& state) {
  const auto gpu = Gpu::Open(state);
  if (gpu == nullptr) return;
  const int64_t out = state.range(0), in = state.range(1);
  ThreadPool pool(NumThreads());
  const std::vector<float> weights = Normals(out * in);
  const std::vector<double> hessian = Hessian(in);
  const std::vector<double> shift(hessian.size(), 1e-6);
  std::vector<int32_t> groups;
  for (int64_t i = 0; i <= in; i += 128) groups.push_back(static_cast<int32_t>(i));
  for (auto _ : state) {
    std::vector<double> factor = hessian, target_factor = hessian;
    DampHessian(Damping::kRelative, 0.01, in, absl::MakeSpan(factor));
    DampHessian(Damping::kRelative, 0.03, in, absl::MakeSpan(target_factor));
    TW_CHECK(UpperFactorOfInverse(in, absl::MakeSpan(factor), &gpu->stream).ok());
    TW_CHECK(UpperFactorOfInverse(in, absl::MakeSpan(target_factor), &gpu->stream).ok());
    const auto target =
        AsymmetricTarget(out, in, weights, shift, target_factor, 1.0, pool, &gpu->stream);
    TW_CHECK(target.ok());
    const auto result = Gptq({.out_features = out,
                              .in_features = in,
                              .weights = *target,
                              .hessian = hessian,
                              .factor = factor,
                              .group_offsets = groups},
                             {.bits = 4,
                              .shrink_steps = 20,
                              .local_search = true,
                              .search_weights = SearchWeights::kConditional,
                              .sweeps = 3,
                              .refits = 1},
                             pool, &gpu->stream);
    TW_CHECK(result.ok());
    state.counters["error"] = result->relative_error;
  }
}
BENCHMARK(BM_GptqOnGpu)
    ->ArgNames({"out", "in"})
    ->Args({4096, 4096})
    ->Args({11008, 4096})
    ->Args({4096, 11008})
    ->Unit(benchmark::kMillisecond)
    ->Iterations(1)
    ->UseRealTime();

// The default recipe for vectors: factor, k-means, feedback, a refit, descent. Arguments: out, in,
// length, index bits, residual bits (0: none).
void BM_VptqOnGpu(benchmark::State& state) {
  const auto gpu = Gpu::Open(state);
  if (gpu == nullptr) return;
  const int64_t out = state.range(0), in = state.range(1);
  ThreadPool pool(NumThreads());
  const std::vector<float> weights = Normals(out * in);
  const std::vector<double> hessian = Hessian(in);
  for (auto _ : state) {
    const auto result =
        Vptq({.out_features = out, .in_features = in, .weights = weights, .hessian = hessian},
             {.length = static_cast<int>(state.range(2)),
              .index_bits = static_cast<int>(state.range(3)),
              .residual = state.range(4) > 0,
              .residual_bits = static_cast<int>(state.range(4))},
             pool, nullptr, &gpu->stream);
    TW_CHECK(result.ok());
    state.counters["error"] = result->relative_error;
  }
}
BENCHMARK(BM_VptqOnGpu)
    ->ArgNames({"out", "in", "length", "bits", "residual"})
    ->Args({4096, 4096, 8, 12, 8})
    ->Args({14336, 4096, 8, 16, 8})
    ->Unit(benchmark::kMillisecond)
    ->Iterations(1)
    ->UseRealTime();

}  // namespace
}  // namespace thinwire
