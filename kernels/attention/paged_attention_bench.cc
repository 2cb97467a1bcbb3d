// Prefill against the rate of the multiply-adds that causal attention needs, one thread's sgemm
// being the limit; decode against the rate of reading the pages. Arguments: dtype, query tokens,
// context, heads, KV heads, head_dim, threads.
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "benchmark/benchmark.h"
#include "kernels/attention/paged_attention.h"
#include "kernels/convert/convert.h"
#include "kernels/linear/blas.h"

namespace thinwire {
namespace {

constexpr int64_t kPageSize = 16;

double Seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

template <typename F>
double BestOf(int times, F f) {
  double best = 1e30;
  for (int i = 0; i < times; ++i) {
    const double start = Seconds();
    f();
    best = std::min(best, Seconds() - start);
  }
  return best;
}

std::vector<uint8_t> RandomElements(DType dtype, int64_t n) {
  std::mt19937 random(3);
  std::uniform_real_distribution<float> uniform(-1.0f, 1.0f);
  std::vector<float> values(static_cast<size_t>(n));
  for (float& value : values) value = uniform(random);
  std::vector<uint8_t> elements(static_cast<size_t>(DTypeBytes(dtype, n)));
  ConvertFromFloat(values.data(), elements.data(), dtype, n);
  return elements;
}

// Flop/s of a product of the size of one linear layer, on one thread.
double SgemmRate() {
  constexpr int64_t kSize = 512;
  const std::vector<float> a(kSize * kSize, 0.5f), b(kSize * kSize, 0.25f);
  std::vector<float> c(kSize * kSize);
  const double seconds = BestOf(5, [&] {
    SgemmNT(kSize, kSize, kSize, a.data(), kSize, b.data(), kSize, 0.0f, c.data(), kSize);
  });
  return 2.0 * kSize * kSize * kSize / seconds;
}

double ReadSeconds(size_t num_bytes, ThreadPool& pool) {
  const std::vector<uint8_t> bytes(num_bytes, 0);
  return BestOf(20, [&] {
    pool.ParallelFor(static_cast<int64_t>(num_bytes), 64, [&](int64_t begin, int64_t end) {
      const void* found = std::memchr(bytes.data() + begin, 1, static_cast<size_t>(end - begin));
      benchmark::DoNotOptimize(found);
    });
  });
}

void BM_PagedAttention(benchmark::State& state) {
  const auto dtype = static_cast<DType>(state.range(0));
  const int64_t num_tokens = state.range(1), context = state.range(2), heads = state.range(3);
  const int64_t kv_heads = state.range(4), head_dim = state.range(5);
  const int64_t num_pages = (context + kPageSize - 1) / kPageSize;
  const int64_t page_elements = num_pages * kv_heads * kPageSize * head_dim;
  const std::vector<uint8_t> k = RandomElements(dtype, page_elements);
  const std::vector<uint8_t> v = k;
  const std::vector<uint8_t> q = RandomElements(dtype, num_tokens * heads * head_dim);
  std::vector<uint8_t> out(q.size());
  std::vector<int32_t> page_ids(static_cast<size_t>(num_pages));
  for (size_t i = 0; i < page_ids.size(); ++i) page_ids[i] = static_cast<int32_t>(i);
  std::shuffle(page_ids.begin(), page_ids.end(), std::mt19937(5));
  const int32_t token_offsets[] = {0, static_cast<int32_t>(num_tokens)};
  const int32_t context_lens[] = {static_cast<int32_t>(context)};
  const int32_t page_offsets[] = {0, static_cast<int32_t>(num_pages)};
  PagedAttentionArgs args;
  args.q = ConstTensorView(q.data(), dtype, {num_tokens, heads * head_dim});
  args.out = TensorView(out.data(), dtype, {num_tokens, heads * head_dim});
  args.token_offsets = token_offsets;
  args.context_lens = context_lens;
  args.page_offsets = page_offsets;
  args.page_ids = page_ids;
  args.k_pages = ConstTensorView(k.data(), dtype, {num_pages, kv_heads, kPageSize, head_dim});
  args.v_pages = ConstTensorView(v.data(), dtype, {num_pages, kv_heads, kPageSize, head_dim});
  args.num_heads = heads;
  args.scale = 0.125f;
  ThreadPool pool(static_cast<int>(state.range(6)));
  Stream stream = Stream::Cpu(&pool);
  double best = 1e30;
  for (auto _ : state) {
    best = std::min(
        best, BestOf(1, [&] { benchmark::DoNotOptimize(PagedAttention(args, stream).ok()); }));
  }
  state.SetLabel(std::string(DTypeName(dtype)));
  state.counters["us"] = best * 1e6;
  const int64_t pairs = num_tokens * (context - num_tokens) + num_tokens * (num_tokens + 1) / 2;
  const double flops = 4.0 * static_cast<double>(pairs * heads * head_dim);
  if (num_tokens > 8) {
    state.counters["GFLOP/s"] = flops / best * 1e-9;
    state.counters["of_sgemm"] = flops / best / (SgemmRate() * pool.num_threads());
  } else {
    state.counters["GB/s"] = 2.0 * static_cast<double>(k.size()) / best * 1e-9;
    state.counters["of_read"] = ReadSeconds(2 * k.size(), pool) / best;
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
