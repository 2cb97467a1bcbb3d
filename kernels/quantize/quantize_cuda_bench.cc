// k-means, feedback and descent of one matrix on a GPU, on random targets.
#include <cmath>
#include <random>
#include <vector>

#include "benchmark/benchmark.h"
#include "kernels/core/float16.h"
#include "kernels/quantize/gpu_book.h"
#include "kernels/quantize/gpu_vptq.h"
#include "kernels/quantize/inverse_factor.h"
#include "kernels/quantize/vector_clusters.h"
#include "kernels/testing/gpu_rates.h"

namespace thinwire {
namespace {

std::vector<float> Normals(int64_t size, bool halves = false) {
  std::mt19937 random(static_cast<unsigned>(size));
  std::normal_distribution<float> normal;
  // Enough of them, again and again.
  std::vector<float> some(static_cast<size_t>(std::min<int64_t>(size, (1 << 20) - 3)));
  for (float& value : some) value = halves ? ToFloat(ToHalf(normal(random))) : normal(random);
  std::vector<float> values(static_cast<size_t>(size));
  for (size_t i = 0; i < values.size(); ++i) values[i] = some[i % some.size()];
  return values;
}

// Arguments: vectors, length, index bits. Scores a second beside what matrix units and comparisons
// allow: README.md.
void BM_Nearest(benchmark::State& state) {
  const auto gpu = Gpu::Open(state);
  if (gpu == nullptr) return;
  const int64_t n = state.range(0), count = int64_t{1} << state.range(2);
  const int length = static_cast<int>(state.range(1));
  GpuBook book = GpuBook::Allocate(count, length, gpu->stream).value();
  const auto vectors =
      DeviceArray<float>::CopyOf(Normals(count * length, true), "book", gpu->stream).value();
  const auto x = DeviceArray<float>::CopyOf(Normals(n * length), "x", gpu->stream).value();
  const auto nearest = DeviceArray<int32_t>::Allocate(n, "indices", gpu->stream).value();
  TW_CHECK(book.Set(vectors.data(), gpu->stream).ok());
  for (auto _ : state) {
    const double seconds = MedianGpuSeconds(gpu->stream, 3, 1, [&](int64_t) {
      TW_CHECK(NearestOnGpu(book, x.data(), n, nearest.data(), gpu->stream).ok());
    });
    state.SetIterationTime(seconds);
    state.counters["ms"] = seconds * 1e3;
    state.counters["Gscores/s"] =
        static_cast<double>(n) * static_cast<double>(count) / seconds * 1e-9;
  }
}
BENCHMARK(BM_Nearest)
    ->ArgNames({"vectors", "length", "bits"})
    ->Args({7340032, 8, 16})
    ->Args({7340032, 8, 8})
    ->Args({14680064, 4, 12})
    ->Iterations(1)
    ->UseManualTime();

// Arguments: out, in, length, index bits, residual bits (0: none). Without copies to the GPU; with
// those of the result back.
template <bool kDescend>
void BM_Walk(benchmark::State& state) {
  const auto gpu = Gpu::Open(state);
  if (gpu == nullptr) return;
  const int length = static_cast<int>(state.range(2));
  const int64_t rows = 256 / length, in = state.range(1);
  const VptqMatrixShape shape = {
      .num_chunks = (state.range(0) + rows * length - 1) / (rows * length),
      .in = in,
      .rows = rows,
      .length = length};
  const std::vector<float> targets = Normals(shape.size());
  const std::vector<float> main = Normals((int64_t{1} << state.range(3)) * length, true);
  std::vector<float> residual;
  if (state.range(4) > 0) residual = Normals((int64_t{1} << state.range(4)) * length, true);
  std::vector<float> matrix(static_cast<size_t>(in * in));
  for (int64_t i = 0; i < in; ++i) {
    for (int64_t j = i; j < in; ++j) matrix[i * in + j] = i == j ? 1.0f : 1e-3f;
  }
  auto vptq = GpuVptq::Create(shape, targets, matrix, matrix, gpu->stream).value();
  std::vector<float> moved(targets.size()), values(targets.size());
  std::vector<int32_t> indices(static_cast<size_t>(shape.num_vectors())), residuals(indices.size());
  const VptqBooks books = {main, residual, true};
  const VptqChoice choice = {absl::MakeSpan(values), absl::MakeSpan(indices),
                             absl::MakeSpan(residuals)};
  for (auto _ : state) {
    TW_CHECK((kDescend ? vptq.Descend(books, 1, choice)
                       : vptq.Feedback(books, absl::MakeSpan(moved), choice))
                 .ok());
  }
}
void BM_Feedback(benchmark::State& state) { BM_Walk<false>(state); }
void BM_Descend(benchmark::State& state) { BM_Walk<true>(state); }
BENCHMARK(BM_Feedback)
    ->ArgNames({"out", "in", "length", "bits", "residual"})
    ->Args({14336, 4096, 8, 16, 0})
    ->Args({14336, 4096, 8, 16, 8})
    ->Args({4096, 4096, 8, 12, 8})
    ->Args({4096, 4096, 4, 8, 0})
    ->Unit(benchmark::kMillisecond)
    ->Iterations(2)
    ->UseRealTime();
BENCHMARK(BM_Descend)
    ->ArgNames({"out", "in", "length", "bits", "residual"})
    ->Args({14336, 4096, 8, 16, 8})
    ->Args({4096, 4096, 8, 12, 8})
    ->Unit(benchmark::kMillisecond)
    ->Iterations(2)
    ->UseRealTime();

void BM_Factor(benchmark::State& state) {
  const auto gpu = Gpu::Open(state);
  if (gpu == nullptr) return;
  const int64_t n = state.range(0);
  std::vector<double> matrix(static_cast<size_t>(n * n), 0.25);
  for (int64_t i = 0; i < n; ++i) matrix[i * (n + 1)] = 2.0;
  for (auto _ : state) {
    std::vector<double> factor = matrix;
    TW_CHECK(UpperFactorOfInverseOnGpu(n, absl::MakeSpan(factor), gpu->stream).ok());
  }
}
BENCHMARK(BM_Factor)
    ->Arg(4096)
    ->Arg(11008)
    ->Unit(benchmark::kMillisecond)
    ->Iterations(2)
    ->UseRealTime();

}  // namespace
}  // namespace thinwire
