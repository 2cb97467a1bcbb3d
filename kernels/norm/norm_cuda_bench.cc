// Norms on a GPU with the addition before them, at widths of 7B to 175B models: a decode step of 64
// sequences, a prefill chunk. Arguments: dtype, num_tokens, hidden, what (0: values, 1: values in
// another order, 2: codes in another order).
#include <cstdint>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "benchmark/benchmark.h"
#include "kernels/norm/norm.h"
#include "kernels/testing/gpu_rates.h"
#include "kernels/testing/rounded.h"

namespace thinwire {
namespace {

void BM_NormCuda(benchmark::State& state) {
  const std::unique_ptr<Gpu> gpu = Gpu::Open(state);
  if (gpu == nullptr) return;
  Stream& stream = gpu->stream;
  const auto dtype = static_cast<DType>(state.range(0));
  const int64_t tokens = state.range(1), hidden = state.range(2), what = state.range(3);
  const DType out_dtype = what == 2 ? DType::kU8 : dtype;
  const int64_t bytes =
      3 * DTypeBytes(dtype, tokens * hidden) + DTypeBytes(out_dtype, tokens * hidden);
  const int64_t sets = NumSets(stream.device(), bytes);
  const Tensor values = NormalTensor(dtype, tokens, hidden);
  std::vector<Tensor> x = Copies(values.view(), sets, stream);
  const std::vector<Tensor> delta = Copies(values.view(), sets, stream);
  std::vector<Tensor> out;
  for (int64_t i = 0; i < sets; ++i) {
    out.push_back(Tensor::Allocate(out_dtype, {tokens, hidden}, stream.device()).value());
  }
  const Tensor weight =
      VectorOnDevice(std::vector<float>(static_cast<size_t>(hidden), 1.0f), stream);
  const Tensor max_code =
      VectorOnDevice(std::vector<uint8_t>(static_cast<size_t>(hidden), 255), stream);
  std::vector<int32_t> channels(static_cast<size_t>(hidden));
  std::iota(channels.begin(), channels.end(), 0);
  std::shuffle(channels.begin(), channels.end(), std::mt19937(1));
  const Tensor order = VectorOnDevice(channels, stream);
  RunBesideGpuCopy(state, bytes, sets, stream, [&](int64_t set) {
    const auto i = static_cast<size_t>(set);
    if (what == 2) {
      NormCodesArgs args;
      args.x = x[i].mutable_view();
      args.delta = delta[i].view();
      args.order = order.view();
      args.weight = args.bias = weight.view();
      args.max_code = max_code.view();
      args.codes = out[i].mutable_view();
      TW_CHECK(NormCodes(args, stream).ok());
    } else {
      NormArgs args;
      args.x = x[i].mutable_view();
      args.delta = delta[i].view();
      if (what == 1) args.order = order.view();
      args.weight = args.bias = weight.view();
      args.out = out[i].mutable_view();
      TW_CHECK(Norm(args, stream).ok());
    }
  });
  state.SetLabel(std::string(DTypeName(dtype)));
}
BENCHMARK(BM_NormCuda)
    ->ArgsProduct({{static_cast<int64_t>(DType::kF16), static_cast<int64_t>(DType::kF32)},
                   {64, 4096},
                   {4096, 9216, 12288},
                   {0, 1, 2}})
    ->UseManualTime()
    ->Iterations(1);

}  // namespace
}  // namespace thinwire
