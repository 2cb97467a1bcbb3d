// Linear against what bounds it: the rate of reading the weight for few tokens, one thread's plain
// sgemm times the threads for many. Arguments: dtype of the weight, num_tokens, out, in, threads.
#include <cstdint>
#include <string>
#include <vector>

#include "benchmark/benchmark.h"
#include "kernels/core/fastest.h"
#include "kernels/core/tensor.h"
#include "kernels/host_rates/host_rates.h"
#include "kernels/linear/blas.h"
#include "kernels/linear/linear_cpu.h"
#include "kernels/testing/benchmark_rates.h"
#include "kernels/testing/rounded.h"

namespace thinwire {
namespace {

struct Problem {
  Problem(DType weight_dtype, int64_t num_tokens, int64_t out, int64_t in)
      : x(static_cast<size_t>(num_tokens * in), 0.01f),
        weight(RoundedTensor(std::vector<float>(static_cast<size_t>(out * in), 0.03f), weight_dtype,
                             out, in)),
        bias(static_cast<size_t>(out), 0.5f),
        y(static_cast<size_t>(num_tokens * out)) {
    args.x = ConstTensorView(x.data(), DType::kF32, {num_tokens, in});
    args.weight = weight.view();
    args.bias = ConstTensorView(bias.data(), DType::kF32, {out});
    args.y = TensorView(y.data(), DType::kF32, {num_tokens, out});
  }

  std::vector<float> x;
  Tensor weight;
  std::vector<float> bias;
  std::vector<float> y;
  LinearArgs args;
};

template <absl::Status (*kLinear)(const LinearArgs&, Stream&)>
void BM_Linear(benchmark::State& state) {
  const auto dtype = static_cast<DType>(state.range(0));
  const int64_t num_tokens = state.range(1), out = state.range(2), in = state.range(3);
  Problem problem(dtype, num_tokens, out, in);
  ThreadPool pool(static_cast<int>(state.range(4)));
  Stream stream = Stream::Cpu(&pool);
  const double best = FastestIteration(
      state, [&] { benchmark::DoNotOptimize(kLinear(problem.args, stream).ok()); });
  const double flops = 2.0 * static_cast<double>(num_tokens * out * in);
  state.SetLabel(std::string(DTypeName(dtype)));
  state.counters["us"] = best * 1e6;
  state.counters["GFLOP/s"] = flops / best * 1e-9;
  const int64_t num_bytes = problem.weight.size_bytes();
  const double rate = static_cast<double>(num_bytes) / best;
  state.counters["GB/s"] = rate * 1e-9;
  state.counters["of_read"] = rate / MeasureReadRate(num_bytes, pool);
  if (num_tokens >= 64) {
    const std::vector<float> weight(static_cast<size_t>(out * in), 0.03f);
    const double sgemm = FastestSeconds(5, [&] {
      SgemmNT(num_tokens, out, in, problem.x.data(), in, weight.data(), in, 0.0f, problem.y.data(),
              out);
    });
    state.counters["of_sgemm"] = sgemm / best / static_cast<double>(pool.num_threads());
  }
}

void FewAndMany(benchmark::internal::Benchmark* bench) {
  for (const int64_t threads : {1, 2}) {
    for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
      const auto d = static_cast<int64_t>(dtype);
      for (const int64_t tokens : {1, 2, 4, 8}) {
        bench->Args({d, tokens, 2048, 512, threads});
        bench->Args({d, tokens, 4096, 4096, threads});
      }
      for (const int64_t tokens : {64, 512}) {
        bench->Args({d, tokens, 2048, 512, threads});
        bench->Args({d, tokens, 512, 2048, threads});
        bench->Args({d, tokens, 4096, 4096, threads});
      }
    }
  }
}
BENCHMARK(BM_Linear<Linear>)->Apply(FewAndMany);

// Both ways around FewTokens().
void Crossover(benchmark::internal::Benchmark* bench) {
  for (const DType dtype : {DType::kF32, DType::kF16}) {
    for (const int64_t tokens : {8, 16, 32, 48, 64, 96}) {
      bench->Args({static_cast<int64_t>(dtype), tokens, 2048, 512, 1});
      bench->Args({static_cast<int64_t>(dtype), tokens, 4096, 4096, 1});
    }
  }
}
BENCHMARK(BM_Linear<LinearFewTokens>)->Apply(Crossover);
BENCHMARK(BM_Linear<LinearManyTokens>)->Apply(Crossover);

}  // namespace
}  // namespace thinwire
