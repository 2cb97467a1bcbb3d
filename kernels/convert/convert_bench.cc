// Conversion against a plain copy of as many bytes.
#include <algorithm>
#include <chrono>
#include <cstring>
#include <vector>

#include "benchmark/benchmark.h"
#include "kernels/convert/convert.h"

namespace thinwire {
namespace {

double Seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Best bytes/s, read and written, of memcpy of `bytes` / 2 bytes on one thread.
double CopyRate(int64_t bytes) {
  const auto half = static_cast<size_t>(bytes / 2);
  std::vector<char> from(half, 1);
  std::vector<char> to(half);
  double best = 1e30;
  for (int i = 0; i < 20; ++i) {
    const double start = Seconds();
    std::memcpy(to.data(), from.data(), half);
    benchmark::DoNotOptimize(to.data());
    benchmark::ClobberMemory();
    best = std::min(best, Seconds() - start);
  }
  return static_cast<double>(bytes) / best;
}

void BM_Convert(benchmark::State& state) {
  const auto from_dtype = static_cast<DType>(state.range(0));
  const auto to_dtype = static_cast<DType>(state.range(1));
  const int64_t n = state.range(2);
  std::vector<float> floats(static_cast<size_t>(n), 0.3f);
  std::vector<uint8_t> from(static_cast<size_t>(DTypeBytes(from_dtype, n)));
  std::vector<uint8_t> to(static_cast<size_t>(DTypeBytes(to_dtype, n)));
  ConvertFromFloat(floats.data(), from.data(), from_dtype, n);
  ThreadPool pool(1);
  Stream stream = Stream::Cpu(&pool);
  const TensorView source(from.data(), from_dtype, {n});
  const TensorView target(to.data(), to_dtype, {n});
  double best = 1e30;
  for (auto _ : state) {
    const double start = Seconds();
    benchmark::DoNotOptimize(Convert(source, target, stream).ok());
    best = std::min(best, Seconds() - start);
  }
  const auto bytes = static_cast<double>(from.size() + to.size());
  const double copy = CopyRate(static_cast<int64_t>(bytes));
  state.SetLabel(std::string(DTypeName(from_dtype)) + " -> " + std::string(DTypeName(to_dtype)));
  state.counters["GB/s"] = bytes / best * 1e-9;
  state.counters["of_memcpy"] = bytes / best / copy;
}

void Pairs(benchmark::internal::Benchmark* bench) {
  for (const int64_t n : {int64_t{1} << 16, int64_t{1} << 24}) {
    for (const DType narrow : {DType::kF16, DType::kBF16}) {
      bench->Args({static_cast<int64_t>(narrow), static_cast<int64_t>(DType::kF32), n});
      bench->Args({static_cast<int64_t>(DType::kF32), static_cast<int64_t>(narrow), n});
    }
    bench->Args({static_cast<int64_t>(DType::kF16), static_cast<int64_t>(DType::kBF16), n});
  }
}
BENCHMARK(BM_Convert)->Apply(Pairs);

}  // namespace
}  // namespace thinwire
