// Codes of one byte on a GPU. Arguments: gain kind, num_tokens. Rows of 8192 channels, fp16.
#include <cstdint>
#include <vector>

#include "benchmark/benchmark.h"
#include "kernels/codes/codes.h"
#include "kernels/testing/gpu_rates.h"
#include "kernels/testing/rounded.h"

namespace thinwire {
namespace {

constexpr int64_t kWidth = 8192;

void BM_QuantizeCuda(benchmark::State& state) {
  const std::unique_ptr<Gpu> gpu = Gpu::Open(state);
  if (gpu == nullptr) return;
  Stream& stream = gpu->stream;
  const int64_t tokens = state.range(1);
  const Tensor values = NormalTensor(DType::kF16, tokens, kWidth);
  const int64_t bytes = 3 * tokens * kWidth;
  const int64_t sets = NumSets(stream.device(), bytes);
  const std::vector<Tensor> x = Copies(values.view(), sets, stream);
  std::vector<Tensor> codes;
  for (int64_t i = 0; i < sets; ++i) {
    codes.push_back(Tensor::Allocate(DType::kU8, {tokens, kWidth}, stream.device()).value());
  }
  const Tensor inverse_step = VectorOnDevice(std::vector<float>(kWidth, 25.0f), stream);
  const Tensor zero = VectorOnDevice(std::vector<float>(kWidth, 128.0f), stream);
  const Tensor max_code = VectorOnDevice(std::vector<uint8_t>(kWidth, 255), stream);
  Tensor gains = VectorOnDevice(std::vector<float>(static_cast<size_t>(tokens), 1.0f), stream);
  QuantizeArgs args;
  args.inverse_step = inverse_step.view();
  args.zero = zero.view();
  args.max_code = max_code.view();
  args.gain = static_cast<GainKind>(state.range(0));
  args.gains = gains.mutable_view();
  RunBesideGpuCopy(state, bytes, sets, stream, [&](int64_t set) {
    args.x = x[static_cast<size_t>(set)].view();
    args.codes = codes[static_cast<size_t>(set)].mutable_view();
    TW_CHECK(Quantize(args, stream).ok());
  });
}
BENCHMARK(BM_QuantizeCuda)
    ->ArgsProduct({{static_cast<int64_t>(GainKind::kNone), static_cast<int64_t>(GainKind::kRms),
                    static_cast<int64_t>(GainKind::kMax)},
                   {64, 4096}})
    ->UseManualTime()
    ->Iterations(1);

}  // namespace
}  // namespace thinwire
