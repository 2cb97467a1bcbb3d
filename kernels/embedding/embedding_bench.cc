// Rows of a 32000 x 4096 table: a decode step of 8 sequences and a prefill chunk.
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "benchmark/benchmark.h"
#include "kernels/core/tensor.h"
#include "kernels/embedding/embedding.h"
#include "kernels/testing/benchmark_rates.h"

namespace thinwire {
namespace {

constexpr int64_t kRows = 32000;
constexpr int64_t kWidth = 4096;

void BM_Embedding(benchmark::State& state) {
  const auto from_dtype = static_cast<DType>(state.range(0));
  const auto to_dtype = static_cast<DType>(state.range(1));
  const int64_t num_tokens = state.range(2);
  ThreadPool pool(static_cast<int>(state.range(3)));
  Stream stream = Stream::Cpu(&pool);
  Tensor table = Tensor::Allocate(from_dtype, {kRows, kWidth}, Device::Cpu()).value();
  std::memset(table.mutable_view().mutable_raw(), 0, static_cast<size_t>(table.size_bytes()));
  Tensor out = Tensor::Allocate(to_dtype, {num_tokens, kWidth}, Device::Cpu()).value();
  std::mt19937 random(1);
  std::vector<int32_t> ids(static_cast<size_t>(num_tokens));
  for (int32_t& id : ids) id = std::uniform_int_distribution<int32_t>(0, kRows - 1)(random);
  EmbeddingArgs args;
  args.ids = ConstTensorView(ids.data(), DType::kI32, {num_tokens});
  args.table = table.view();
  args.out = out.mutable_view();
  RunBesideCopy(state, out.size_bytes() + DTypeBytes(from_dtype, num_tokens * kWidth), pool,
                [&] { benchmark::DoNotOptimize(Embedding(args, stream).ok()); });
  state.SetLabel(std::string(DTypeName(from_dtype)) + " -> " + std::string(DTypeName(to_dtype)));
}
BENCHMARK(BM_Embedding)
    ->ArgsProduct({{static_cast<int64_t>(DType::kF16)},
                   {static_cast<int64_t>(DType::kF16), static_cast<int64_t>(DType::kF32)},
                   {8, 512},
                   {1, 2}});

}  // namespace
}  // namespace thinwire
