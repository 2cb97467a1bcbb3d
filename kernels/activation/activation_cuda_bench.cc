// Feed-forward layers' activations on a GPU. Arguments: kind, dtype, num_tokens, gated. Width
// 14336.
#include <cstdint>
#include <vector>

#include "benchmark/benchmark.h"
#include "kernels/activation/activation.h"
#include "kernels/testing/gpu_rates.h"
#include "kernels/testing/rounded.h"

namespace thinwire {
namespace {

void BM_ActivationCuda(benchmark::State& state) {
  const std::unique_ptr<Gpu> gpu = Gpu::Open(state);
  if (gpu == nullptr) return;
  Stream& stream = gpu->stream;
  const auto kind = static_cast<ActivationKind>(state.range(0));
  const auto dtype = static_cast<DType>(state.range(1));
  const bool gated = state.range(3) != 0;
  const Tensor values = NormalTensor(dtype, state.range(2), 14336);
  const int64_t bytes = (gated ? 3 : 2) * values.size_bytes();
  const int64_t sets = NumSets(stream.device(), bytes);
  std::vector<Tensor> x = Copies(values.view(), sets, stream);
  const std::vector<Tensor> up = Copies(values.view(), sets, stream);
  RunBesideGpuCopy(state, bytes, sets, stream, [&](int64_t set) {
    const auto i = static_cast<size_t>(set);
    const TensorView view = x[i].mutable_view();
    TW_CHECK((gated ? GatedActivation({kind, view, up[i].view(), view}, stream)
                    : Activate(kind, view, stream))
                 .ok());
  });
}
BENCHMARK(BM_ActivationCuda)
    ->ArgsProduct({{static_cast<int64_t>(ActivationKind::kRelu),
                    static_cast<int64_t>(ActivationKind::kSilu),
                    static_cast<int64_t>(ActivationKind::kGelu)},
                   {static_cast<int64_t>(DType::kF16), static_cast<int64_t>(DType::kF32)},
                   {64, 2048},
                   {0, 1}})
    ->UseManualTime()
    ->Iterations(1);

}  // namespace
}  // namespace thinwire
