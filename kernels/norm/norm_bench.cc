// Residual addition and norm at the width of a 7B model: a decode step of 8 sequences, a prefill
// chunk.
#include <cstring>
#include <string>
#include <vector>

#include "benchmark/benchmark.h"
#include "kernels/core/tensor.h"
#include "kernels/norm/norm.h"
#include "kernels/testing/benchmark_rates.h"

namespace thinwire {
namespace {

void BM_Norm(benchmark::State& state) {
  const auto kind = static_cast<NormKind>(state.range(0));
  const auto dtype = static_cast<DType>(state.range(1));
  const int64_t num_tokens = state.range(2);
  ThreadPool pool(static_cast<int>(state.range(3)));
  Stream stream = Stream::Cpu(&pool);
  const auto zeros = [&] {
    Tensor tensor = Tensor::Allocate(dtype, {num_tokens, 4096}, Device::Cpu()).value();
    std::memset(tensor.mutable_view().mutable_raw(), 0, static_cast<size_t>(tensor.size_bytes()));
    return tensor;
  };
  Tensor x = zeros();
  Tensor delta = zeros();
  Tensor out = zeros();
  const std::vector<float> weight(4096, 1.0f);
  NormArgs args;
  args.kind = kind;
  args.x = x.mutable_view();
  args.delta = delta.view();
  args.weight = ConstTensorView(weight.data(), DType::kF32, {4096});
  args.out = out.mutable_view();
  RunBesideCopy(state, 4 * x.size_bytes(), pool,
                [&] { benchmark::DoNotOptimize(Norm(args, stream).ok()); });
  state.SetLabel(std::string(kind == NormKind::kLayerNorm ? "LayerNorm " : "RMSNorm ") +
                 std::string(DTypeName(dtype)));
}
BENCHMARK(BM_Norm)->ArgsProduct(
    {{static_cast<int64_t>(NormKind::kLayerNorm), static_cast<int64_t>(NormKind::kRmsNorm)},
     {static_cast<int64_t>(DType::kF32), static_cast<int64_t>(DType::kF16),
      static_cast<int64_t>(DType::kBF16)},
     {8, 512},
     {1, 2}});

}  // namespace
}  // namespace thinwire
