// Dense layers on a GPU. Arguments: dtype, num_tokens, bias, batch_invariant. 8192 features in and
// out. For few tokens, the share of a copy's rate at which weights are read; for many, operations.
#include <cstdint>
#include <vector>

#include "benchmark/benchmark.h"
#include "kernels/linear/linear.h"
#include "kernels/testing/gpu_rates.h"
#include "kernels/testing/rounded.h"

namespace thinwire {
namespace {

constexpr int64_t kFeatures = 8192;

void BM_LinearCuda(benchmark::State& state) {
  const std::unique_ptr<Gpu> gpu = Gpu::Open(state);
  if (gpu == nullptr) return;
  Stream& stream = gpu->stream;
  const auto dtype = static_cast<DType>(state.range(0));
  const int64_t tokens = state.range(1);
  const std::vector<Tensor> weight =
      Copies(NormalTensor(dtype, kFeatures, kFeatures).view(), 4, stream);
  const Tensor x = OnDevice(NormalTensor(dtype, tokens, kFeatures).view(), stream);
  const Tensor bias = VectorOnDevice(std::vector<float>(kFeatures, 1.0f), stream);
  Tensor y = Tensor::Allocate(dtype, {tokens, kFeatures}, stream.device()).value();
  const int64_t bytes = weight[0].size_bytes() + x.size_bytes() + y.size_bytes();
  RunBesideGpuCopy(state, bytes, 4, stream, [&](int64_t set) {
    LinearArgs args{x.view(), weight[static_cast<size_t>(set)].view(), {}, y.mutable_view()};
    if (state.range(2) != 0) args.bias = bias.view();
    args.batch_invariant = state.range(3) != 0;
    TW_CHECK(Linear(args, stream).ok());
  });
  state.counters["TFLOP/s"] = 2e-12 * static_cast<double>(tokens * kFeatures * kFeatures) /
                              (state.counters["us"].value * 1e-6);
}
BENCHMARK(BM_LinearCuda)
    ->ArgsProduct({{static_cast<int64_t>(DType::kF16), static_cast<int64_t>(DType::kBF16),
                    static_cast<int64_t>(DType::kF32)},
                   {1, 16, 2048},
                   {0, 1},
                   {0, 1}})
    ->UseManualTime()
    ->Iterations(1);

}  // namespace
}  // namespace thinwire
