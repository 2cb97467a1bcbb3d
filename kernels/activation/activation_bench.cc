// The feed-forward width of a 7B model: a decode step of 8 sequences and a prefill chunk.
#include <string>
#include <vector>

#include "benchmark/benchmark.h"
#include "kernels/activation/activation.h"
#include "kernels/convert/convert.h"
#include "kernels/core/tensor.h"
#include "kernels/testing/benchmark_rates.h"

namespace thinwire {
namespace {

constexpr int64_t kWidth = 11008;

void BM_GatedActivation(benchmark::State& state) {
  const auto kind = static_cast<ActivationKind>(state.range(0));
  const auto dtype = static_cast<DType>(state.range(1));
  const int64_t num_tokens = state.range(2);
  ThreadPool pool(static_cast<int>(state.range(3)));
  Stream stream = Stream::Cpu(&pool);
  const std::vector<float> values(static_cast<size_t>(num_tokens * kWidth), -0.75f);
  const auto filled = [&] {
    Tensor tensor = Tensor::Allocate(dtype, {num_tokens, kWidth}, Device::Cpu()).value();
    ConvertFromFloat(values.data(), tensor.mutable_view().mutable_raw(), dtype,
                     num_tokens * kWidth);
    return tensor;
  };
  const Tensor gate = filled();
  const Tensor up = filled();
  Tensor out = filled();
  const GatedActivationArgs args{kind, gate.view(), up.view(), out.mutable_view()};
  RunBesideCopy(state, 3 * out.size_bytes(), pool,
                [&] { benchmark::DoNotOptimize(GatedActivation(args, stream).ok()); });
  constexpr const char* kNames[] = {"ReLU ", "SiLU ", "GELU ", "GELU tanh "};
  state.SetLabel(kNames[state.range(0)] + std::string(DTypeName(dtype)));
}
BENCHMARK(BM_GatedActivation)
    ->ArgsProduct({{0, 1, 2, 3},
                   {static_cast<int64_t>(DType::kF32), static_cast<int64_t>(DType::kF16),
                    static_cast<int64_t>(DType::kBF16)},
                   {8, 256},
                   {1, 2}});

}  // namespace
}  // namespace thinwire
