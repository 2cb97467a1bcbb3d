// Quantising one matrix and gathering its moments, on all processors.
#include <algorithm>
#include <cstdint>
#include <random>
#include <thread>
#include <vector>

#include "benchmark/benchmark.h"
#include "kernels/core/check.h"
#include "runtime/quant/cholesky.h"
#include "runtime/quant/gptq.h"
#include "runtime/quant/second_moments.h"

namespace thinwire {
namespace {

int NumThreads() { return static_cast<int>(std::max(1u, std::thread::hardware_concurrency())); }

std::vector<float> Normals(int64_t size) {
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  std::vector<float> values(static_cast<size_t>(size));
  for (float& value : values) value = normal(random);
  return values;
}

std::vector<double> Hessian(int64_t width, ThreadPool& pool) {
  const std::vector<float> x = Normals(2 * width * width);
  SecondMoments moments(width, false);
  TW_CHECK(moments.Add(x.data(), width, nullptr, 0, 2 * width, pool).ok());
  return moments.Hessian(true);
}

// Arguments: out_features, in_features, shrink steps, sweeps.
void BM_Gptq(benchmark::State& state) {
  const int64_t out = state.range(0);
  const int64_t in = state.range(1);
  ThreadPool pool(NumThreads());
  const std::vector<float> weights = Normals(out * in);
  const std::vector<double> hessian = Hessian(in, pool);
  std::vector<double> factor = hessian;
  DampHessian(Damping::kRelative, 0.01, in, absl::MakeSpan(factor));
  TW_CHECK(UpperFactorOfInverse(in, absl::MakeSpan(factor)).ok());
  std::vector<int32_t> groups;
  for (int64_t i = 0; i <= in; i += 128) groups.push_back(static_cast<int32_t>(i));
  const GptqOptions options{.shrink_steps = static_cast<int>(state.range(2)),
                            .search_weights = SearchWeights::kConditional,
                            .sweeps = static_cast<int>(state.range(3)),
                            .measure_error = false};
  for (auto _ : state) {
    const auto result = Gptq({.out_features = out,
                              .in_features = in,
                              .weights = weights,
                              .hessian = hessian,
                              .factor = factor,
                              .group_offsets = groups},
                             options, pool);
    TW_CHECK(result.ok());
    benchmark::DoNotOptimize(result->codes.codes.data());
  }
}
BENCHMARK(BM_Gptq)
    ->ArgNames({"out", "in", "shrinks", "sweeps"})
    ->Args({2048, 512, 0, 0})
    ->Args({512, 2048, 0, 0})
    ->Args({512, 2048, 40, 0})
    ->Args({512, 2048, 40, 2})
    ->Unit(benchmark::kMillisecond)
    ->UseRealTime();

void BM_RelativeError(benchmark::State& state) {
  const int64_t out = state.range(0);
  const int64_t in = state.range(1);
  ThreadPool pool(NumThreads());
  const std::vector<float> weights = Normals(out * in);
  const std::vector<double> hessian = Hessian(in, pool);
  const std::vector<int32_t> groups = {0, static_cast<int32_t>(in)};
  const auto result =
      Gptq({.out_features = out, .in_features = in, .weights = weights, .group_offsets = groups},
           {}, pool);
  for (auto _ : state) {
    benchmark::DoNotOptimize(RelativeError(weights, result->codes, hessian, pool));
  }
}
BENCHMARK(BM_RelativeError)->Args({512, 2048})->Unit(benchmark::kMillisecond)->UseRealTime();

// Argument: width.
void BM_UpperFactorOfInverse(benchmark::State& state) {
  const int64_t width = state.range(0);
  ThreadPool pool(NumThreads());
  std::vector<double> hessian = Hessian(width, pool);
  DampHessian(Damping::kRelative, 0.01, width, absl::MakeSpan(hessian));
  for (auto _ : state) {
    std::vector<double> factor = hessian;
    TW_CHECK(UpperFactorOfInverse(width, absl::MakeSpan(factor)).ok());
  }
}
BENCHMARK(BM_UpperFactorOfInverse)->Arg(512)->Arg(2048)->Unit(benchmark::kMillisecond);

// Arguments: width, whether there is a target. One window of 512 rows.
void BM_SecondMoments(benchmark::State& state) {
  const int64_t width = state.range(0);
  const bool with_target = state.range(1) != 0;
  ThreadPool pool(NumThreads());
  const std::vector<float> x = Normals(512 * width);
  SecondMoments moments(width, with_target);
  for (auto _ : state) {
    TW_CHECK(moments.Add(x.data(), width, with_target ? x.data() : nullptr, width, 512, pool).ok());
  }
}
BENCHMARK(BM_SecondMoments)
    ->ArgNames({"width", "target"})
    ->ArgsProduct({{512, 2048}, {0, 1}})
    ->Unit(benchmark::kMillisecond)
    ->UseRealTime();

}  // namespace
}  // namespace thinwire
