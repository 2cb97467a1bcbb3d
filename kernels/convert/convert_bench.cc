// Conversion against a plain copy of as many bytes.
#include <cstdint>
#include <string>
#include <vector>

#include "benchmark/benchmark.h"
#include "kernels/convert/convert.h"
#include "kernels/testing/benchmark_rates.h"

namespace thinwire {
namespace {

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
  RunBesideCopy(state, static_cast<int64_t>(from.size() + to.size()), pool,
                [&] { benchmark::DoNotOptimize(Convert(source, target, stream).ok()); });
  state.SetLabel(std::string(DTypeName(from_dtype)) + " -> " + std::string(DTypeName(to_dtype)));
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
