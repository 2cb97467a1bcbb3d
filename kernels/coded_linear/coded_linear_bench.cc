// Linear layers on codes against what bounds them. One token: the bytes of the codes, scales and
// zeros, over the rate at which the same threads read as much plain memory. 512 tokens: the
// products, over those of plain sgemm of the same shape, one thread's times the threads. Arguments:
// bits, num_tokens, out, in, columns of a segment (groups have 128), threads.
#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "benchmark/benchmark.h"
#include "kernels/coded_linear/coded_linear.h"
#include "kernels/coded_linear/coded_linear_cpu.h"
#include "kernels/core/fastest.h"
#include "kernels/host_rates/host_rates.h"
#include "kernels/linear/blas.h"
#include "kernels/testing/benchmark_rates.h"

namespace thinwire {
namespace {

constexpr int64_t kGroup = 128;

struct Problem {
  Problem(int bits, int64_t num_tokens, int64_t out, int64_t in, int64_t segment)
      : codes(static_cast<size_t>(num_tokens * in)),
        x(codes.size(), 0.01f),
        y(static_cast<size_t>(num_tokens * out)),
        bias(static_cast<size_t>(out), 0.5f),
        gains(static_cast<size_t>(num_tokens), 1.0f) {
    for (size_t i = 0; i < codes.size(); ++i) codes[i] = static_cast<uint8_t>(i * 37);
    std::vector<int32_t> groups;
    for (int64_t i = 0; i < in; i += kGroup) groups.push_back(static_cast<int32_t>(i));
    groups.push_back(static_cast<int32_t>(in));
    for (int64_t i = 0; i < in; i += segment) segments.push_back(static_cast<int32_t>(i));
    segments.push_back(static_cast<int32_t>(in));
    steps.assign(segments.size() - 1, 0.01f);
    weights = CodedWeights::Allocate(out, in, bits, groups, Device::Cpu()).value();
    const auto num_groups = weights.num_groups();
    std::vector<uint8_t> row(static_cast<size_t>(in));
    for (size_t i = 0; i < row.size(); ++i) row[i] = static_cast<uint8_t>(i * 5 % (1u << bits));
    const std::vector<float> scales(static_cast<size_t>(num_groups), 0.01f);
    const std::vector<uint8_t> zeros(scales.size(), static_cast<uint8_t>(1 << (bits - 1)));
    for (int64_t o = 0; o < out; ++o) {
      const absl::Status status =
          weights.SetRows(o, ConstTensorView(row.data(), DType::kU8, {1, in}),
                          ConstTensorView(scales.data(), DType::kF32, {1, num_groups}),
                          ConstTensorView(zeros.data(), DType::kU8, {1, num_groups}));
      TW_CHECK(status.ok());
    }
    integer.codes = ConstTensorView(codes.data(), DType::kU8, {num_tokens, in});
    integer.gains = ConstTensorView(gains.data(), DType::kF32, {num_tokens});
    integer.segment_offsets = segments;
    integer.segment_step = steps;
    integer.weights = &weights;
    integer.bias = integer.offset = ConstTensorView(bias.data(), DType::kF32, {out});
    integer.y = TensorView(y.data(), DType::kF32, {num_tokens, out});
    coded.x = ConstTensorView(x.data(), DType::kF32, {num_tokens, in});
    coded.weights = &weights;
    coded.bias = integer.bias;
    coded.y = integer.y;
  }

  std::vector<uint8_t> codes;
  std::vector<float> x, y, bias, gains, steps;
  std::vector<int32_t> segments;
  CodedWeights weights;
  IntegerLinearArgs integer;
  CodedLinearArgs coded;
};

void RunBesideFloor(benchmark::State& state, Problem& problem, ThreadPool& pool,
                    absl::FunctionRef<void()> kernel) {
  const int64_t num_tokens = state.range(1), out = state.range(2), in = state.range(3);
  const double best = FastestIteration(state, kernel);
  state.counters["us"] = best * 1e6;
  const double flops = 2.0 * static_cast<double>(num_tokens * out * in);
  state.counters["Gop/s"] = flops / best * 1e-9;
  const int64_t num_bytes = problem.weights.size_bytes();
  const double rate = static_cast<double>(num_bytes) / best;
  state.counters["GB/s"] = rate * 1e-9;
  state.counters["of_read"] = rate / MeasureReadRate(num_bytes, pool);
  if (num_tokens < 64) return;
  const std::vector<float> weight(static_cast<size_t>(out * in), 0.03f);
  const double sgemm = FastestSeconds(5, [&] {
    SgemmNT(num_tokens, out, in, problem.x.data(), in, weight.data(), in, 0.0f, problem.y.data(),
            out);
  });
  state.counters["of_sgemm"] = sgemm / best / static_cast<double>(pool.num_threads());
}

template <absl::Status (*kLinear)(const IntegerLinearArgs&, Stream&)>
void BM_Integer(benchmark::State& state) {
  Problem problem(static_cast<int>(state.range(0)), state.range(1), state.range(2), state.range(3),
                  state.range(4));
  ThreadPool pool(static_cast<int>(state.range(5)));
  Stream stream = Stream::Cpu(&pool);
  RunBesideFloor(state, problem, pool,
                 [&] { benchmark::DoNotOptimize(kLinear(problem.integer, stream).ok()); });
}

template <absl::Status (*kLinear)(const CodedLinearArgs&, Stream&)>
void BM_Coded(benchmark::State& state) {
  Problem problem(static_cast<int>(state.range(0)), state.range(1), state.range(2), state.range(3),
                  state.range(4));
  ThreadPool pool(static_cast<int>(state.range(5)));
  Stream stream = Stream::Cpu(&pool);
  RunBesideFloor(state, problem, pool,
                 [&] { benchmark::DoNotOptimize(kLinear(problem.coded, stream).ok()); });
}

// 768 x 768 and 3072 x 768 as in OPT-125m, 4096 x 4096 and 11008 x 4096 as in 7B models.
void Integers(benchmark::internal::Benchmark* bench) {
  for (const int64_t threads : {1, 2}) {
    for (const int64_t bits : {4, 3, 8}) {
      for (const int64_t tokens : {1, 512}) {
        for (const int64_t segment : {128, 16}) {
          bench->Args({bits, tokens, 768, 768, segment, threads});
          bench->Args({bits, tokens, 3072, 768, segment, threads});
          bench->Args({bits, tokens, 4096, 4096, segment, threads});
        }
      }
    }
  }
  bench->Args({4, 1, 11008, 4096, 128, 1});
}
BENCHMARK(BM_Integer<IntegerLinear>)->Apply(Integers);

void Floats(benchmark::internal::Benchmark* bench) {
  for (const int64_t threads : {1, 2}) {
    for (const int64_t bits : {4, 3, 8}) {
      for (const int64_t tokens : {1, 512}) {
        bench->Args({bits, tokens, 768, 768, 128, threads});
        bench->Args({bits, tokens, 3072, 768, 128, threads});
        bench->Args({bits, tokens, 4096, 4096, 128, threads});
      }
    }
  }
}
BENCHMARK(BM_Coded<CodedLinear>)->Apply(Floats);

// Both ways around kFewIntegerTokens and kFewFloatTokens.
void Crossover(benchmark::internal::Benchmark* bench) {
  for (const int64_t bits : {4, 3}) {
    for (const int64_t tokens : {2, 4, 6, 8, 12, 16, 32, 48, 64}) {
      bench->Args({bits, tokens, 2048, 2048, 128, 1});
    }
  }
}
BENCHMARK(BM_Integer<IntegerLinearFewTokens>)->Apply(Crossover);
BENCHMARK(BM_Integer<IntegerLinearManyTokens>)->Apply(Crossover);
BENCHMARK(BM_Coded<CodedLinearFewTokens>)->Apply(Crossover);
BENCHMARK(BM_Coded<CodedLinearManyTokens>)->Apply(Crossover);

}  // namespace
}  // namespace thinwire
