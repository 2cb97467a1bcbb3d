// The query heads of a 7B model (32 heads of 128), one decode step of 8 sequences and a prefill
// chunk.
#include <cmath>
#include <cstring>
#include <numeric>
#include <string>
#include <vector>

#include "benchmark/benchmark.h"
#include "kernels/core/tensor.h"
#include "kernels/rope/rope.h"
#include "kernels/testing/benchmark_rates.h"

namespace thinwire {
namespace {

void BM_Rope(benchmark::State& state) {
  const auto dtype = static_cast<DType>(state.range(0));
  const int64_t num_tokens = state.range(1);
  ThreadPool pool(static_cast<int>(state.range(2)));
  Stream stream = Stream::Cpu(&pool);
  RopeArgs args;
  args.num_heads = 32;
  args.head_dim = 128;
  Tensor x = Tensor::Allocate(dtype, {num_tokens, 4096}, Device::Cpu()).value();
  std::memset(x.mutable_view().mutable_raw(), 0, static_cast<size_t>(x.size_bytes()));
  std::vector<int32_t> positions(static_cast<size_t>(num_tokens));
  std::iota(positions.begin(), positions.end(), 1000);
  std::vector<float> inv_freq(64);
  for (size_t i = 0; i < 64; ++i) inv_freq[i] = std::pow(10000.0f, -static_cast<float>(i) / 64.0f);
  args.x = x.mutable_view();
  args.positions = ConstTensorView(positions.data(), DType::kI32, {num_tokens});
  args.inv_freq = ConstTensorView(inv_freq.data(), DType::kF32, {64});
  RunBesideCopy(state, 2 * x.size_bytes(), pool,
                [&] { benchmark::DoNotOptimize(Rope(args, stream).ok()); });
  state.SetLabel(std::string(DTypeName(dtype)));
}
BENCHMARK(BM_Rope)->ArgsProduct({{static_cast<int64_t>(DType::kF32),
                                  static_cast<int64_t>(DType::kF16),
                                  static_cast<int64_t>(DType::kBF16)},
                                 {8, 512},
                                 {1, 2}});

}  // namespace
}  // namespace thinwire
