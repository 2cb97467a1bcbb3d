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

// Channels in another order, as values or as codes. Arguments: dtype, num_tokens, codes, threads.
void BM_NormInOrder(benchmark::State& state) {
  const auto dtype = static_cast<DType>(state.range(0));
  const int64_t num_tokens = state.range(1);
  const bool codes = state.range(2) != 0;
  ThreadPool pool(static_cast<int>(state.range(3)));
  Stream stream = Stream::Cpu(&pool);
  const auto zeros = [&](DType of) {
    Tensor tensor = Tensor::Allocate(of, {num_tokens, 4096}, Device::Cpu()).value();
    std::memset(tensor.mutable_view().mutable_raw(), 0, static_cast<size_t>(tensor.size_bytes()));
    return tensor;
  };
  Tensor x = zeros(dtype);
  Tensor delta = zeros(dtype);
  Tensor out = zeros(codes ? DType::kU8 : dtype);
  const std::vector<float> weight(4096, 1.0f);
  const std::vector<uint8_t> max_code(4096, 255);
  std::vector<int32_t> order;
  for (int32_t j = 0; j < 4096; ++j) order.push_back(j * 1031 % 4096);
  NormArgs norm;
  norm.x = x.mutable_view();
  norm.delta = delta.view();
  norm.weight = norm.bias = ConstTensorView(weight.data(), DType::kF32, {4096});
  norm.order = ConstTensorView(order.data(), DType::kI32, {4096});
  norm.out = out.mutable_view();
  NormCodesArgs to_codes;
  to_codes.x = norm.x;
  to_codes.delta = norm.delta;
  to_codes.weight = to_codes.bias = norm.weight;
  to_codes.order = norm.order;
  to_codes.max_code = ConstTensorView(max_code.data(), DType::kU8, {4096});
  to_codes.codes = out.mutable_view();
  RunBesideCopy(state, 3 * x.size_bytes() + out.size_bytes(), pool, [&] {
    benchmark::DoNotOptimize((codes ? NormCodes(to_codes, stream) : Norm(norm, stream)).ok());
  });
  state.SetLabel(std::string(codes ? "codes of " : "") + std::string(DTypeName(dtype)));
}
BENCHMARK(BM_NormInOrder)
    ->ArgsProduct({{static_cast<int64_t>(DType::kF32), static_cast<int64_t>(DType::kF16)},
                   {8, 512},
                   {0, 1},
                   {1, 2}});

}  // namespace
}  // namespace thinwire
