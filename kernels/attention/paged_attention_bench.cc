// Prefill against the rate of the multiply-adds that causal attention needs, the pool's sgemm
// being the limit; decode against the rate of reading the pages. Arguments: dtype, query tokens,
// context, heads, KV heads, head_dim, threads.
#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <random>
#include <string>
#include <vector>

#include "benchmark/benchmark.h"
#include "kernels/attention/paged_attention.h"
#include "kernels/core/tensor.h"
#include "kernels/host_rates/host_rates.h"
#include "kernels/testing/benchmark_rates.h"
#include "kernels/testing/rounded.h"

namespace thinwire {
namespace {

constexpr int64_t kPageSize = 16;

Tensor RandomMatrix(DType dtype, int64_t rows, int64_t columns) {
  std::mt19937 random(3);
  std::uniform_real_distribution<float> uniform(-1.0f, 1.0f);
  std::vector<float> values(static_cast<size_t>(rows * columns));
  for (float& value : values) value = uniform(random);
  return RoundedTensor(values, dtype, rows, columns);
}

void BM_PagedAttention(benchmark::State& state) {
  const auto dtype = static_cast<DType>(state.range(0));
  const int64_t num_tokens = state.range(1), context = state.range(2), heads = state.range(3);
  const int64_t kv_heads = state.range(4), head_dim = state.range(5);
  const int64_t num_pages = (context + kPageSize - 1) / kPageSize;
  const int64_t page_elements = kv_heads * kPageSize * head_dim;
  const Tensor k = RandomMatrix(dtype, num_pages, page_elements);
  const Tensor v = RandomMatrix(dtype, num_pages, page_elements);
  const Tensor q = RandomMatrix(dtype, num_tokens, heads * head_dim);
  Tensor out = Tensor::Allocate(dtype, {num_tokens, heads * head_dim}, Device::Cpu()).value();
  std::vector<int32_t> page_ids(static_cast<size_t>(num_pages));
  for (size_t i = 0; i < page_ids.size(); ++i) page_ids[i] = static_cast<int32_t>(i);
  std::shuffle(page_ids.begin(), page_ids.end(), std::mt19937(5));
  const int32_t token_offsets[] = {0, static_cast<int32_t>(num_tokens)};
  const int32_t context_lens[] = {static_cast<int32_t>(context)};
  const int32_t page_offsets[] = {0, static_cast<int32_t>(num_pages)};
  PagedAttentionArgs args;
  args.q = q.view();
  args.out = out.mutable_view();
  args.token_offsets = token_offsets;
  args.context_lens = context_lens;
  args.page_offsets = page_offsets;
  args.page_ids = page_ids;
  const std::initializer_list<int64_t> pages = {num_pages, kv_heads, kPageSize, head_dim};
  args.k_pages = ConstTensorView(k.view().raw(), dtype, pages);
  args.v_pages = ConstTensorView(v.view().raw(), dtype, pages);
  args.num_heads = heads;
  args.scale = 0.125f;
  ThreadPool pool(static_cast<int>(state.range(6)));
  Stream stream = Stream::Cpu(&pool);
  const double best =
      FastestIteration(state, [&] { benchmark::DoNotOptimize(PagedAttention(args, stream).ok()); });
  state.SetLabel(std::string(DTypeName(dtype)));
  state.counters["us"] = best * 1e6;
  const int64_t pairs = num_tokens * (context - num_tokens) + num_tokens * (num_tokens + 1) / 2;
  const double flops = 4.0 * static_cast<double>(pairs * heads * head_dim);
  if (num_tokens > 8) {
    state.counters["GFLOP/s"] = flops / best * 1e-9;
    state.counters["of_sgemm"] = flops / best / MeasureSgemmRate(pool);
  } else {
    const int64_t num_bytes = 2 * k.size_bytes();
    const double rate = static_cast<double>(num_bytes) / best;
    state.counters["GB/s"] = rate * 1e-9;
    state.counters["of_read"] = rate / MeasureReadRate(num_bytes, pool);
  }
}

void Cases(benchmark::internal::Benchmark* bench) {
  for (const int64_t threads : {1, 2}) {
    for (const DType dtype : {DType::kF32, DType::kF16}) {
      const auto d = static_cast<int64_t>(dtype);
      bench->Args({d, 512, 512, 8, 8, 64, threads});
      bench->Args({d, 128, 128, 8, 8, 64, threads});
      bench->Args({d, 512, 4096, 32, 8, 128, threads});
      bench->Args({d, 1, 512, 8, 8, 64, threads});
      bench->Args({d, 1, 8192, 8, 8, 64, threads});
      bench->Args({d, 1, 8192, 32, 8, 128, threads});
      bench->Args({d, 1, 8192, 8, 1, 128, threads});
    }
  }
}
BENCHMARK(BM_PagedAttention)->Apply(Cases);

}  // namespace
}  // namespace thinwire
