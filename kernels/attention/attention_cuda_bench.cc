// Decoding steps on a GPU: bytes of K and V over the time of a call, against the rate of a plain
// copy. Arguments: bits of K, bits of V (16: fp16 pages; 0: codes of 4, 3, 3 and 2 bits for a
// quarter of the channels each; -4, -3: of mixed widths, 4 or 3 bits on average over K and V),
// sequences, context, KV heads, query heads a KV head. Heads have 128 channels, pages 16 tokens in
// random order. Pages of one call exceed the caches unless the context is short. "prompt" counts
// multiply-adds of causal attention instead.
#include <algorithm>
#include <cstdint>
#include <memory>
#include <numeric>
#include <random>
#include <utility>
#include <vector>

#include "benchmark/benchmark.h"
#include "kernels/attention/coded_attention.h"
#include "kernels/attention/paged_attention.h"
#include "kernels/testing/gpu_data.h"

namespace thinwire {
namespace {

constexpr int64_t kHeadDim = 128;
constexpr int64_t kPageSize = 16;
constexpr int64_t kMixed = 0;

// Of the units of a head.
std::vector<uint8_t> Widths(int64_t range, bool is_k) {
  if (range == kMixed) return {4, 4, 3, 3, 3, 3, 2, 2};
  if (range == -4 && is_k) return {8, 6, 5, 4, 4, 3, 3, 2};
  if (range == -4) return {5, 4, 4, 4, 4, 3, 3, 2};
  if (range == -3 && is_k) return {6, 5, 4, 3, 3, 2, 2, 2};
  if (range == -3) return {4, 3, 3, 3, 3, 2, 2, 1};
  return std::vector<uint8_t>(kHeadDim / kKvUnit, static_cast<uint8_t>(range));
}

KvCodes SomeCodes(int64_t num_heads, int64_t range, bool is_k, Device device) {
  KvHeadCodes head;
  head.order.resize(kHeadDim);
  std::iota(head.order.begin(), head.order.end(), 0);
  head.bits = Widths(range, is_k);
  head.step.assign(kHeadDim, 0.1f);
  head.zero.assign(kHeadDim, 2.5f);
  return KvCodes::Create(kHeadDim, std::vector<KvHeadCodes>(static_cast<size_t>(num_heads), head),
                         device)
      .value();
}

struct Sequences {
  Sequences(int64_t num_seqs, int64_t num_tokens, int64_t context) {
    const int64_t pages = (context + kPageSize - 1) / kPageSize;
    for (int64_t s = 0; s <= num_seqs; ++s) {
      token_offsets.push_back(static_cast<int32_t>(s * num_tokens));
      page_offsets.push_back(static_cast<int32_t>(s * pages));
    }
    context_lens.assign(static_cast<size_t>(num_seqs), static_cast<int32_t>(context));
    page_ids.resize(static_cast<size_t>(num_seqs * pages));
    std::iota(page_ids.begin(), page_ids.end(), 0);
    std::shuffle(page_ids.begin(), page_ids.end(), std::mt19937(3));
  }

  template <typename Args>
  void Set(Args& args) const {
    args.token_offsets = token_offsets;
    args.context_lens = context_lens;
    args.page_offsets = page_offsets;
    args.page_ids = page_ids;
  }

  std::vector<int32_t> token_offsets, context_lens, page_offsets, page_ids;
};

// Calls the operator, and sets the counters.
void Run(benchmark::State& state, Stream& stream, double bytes, double flops,
         absl::FunctionRef<absl::Status()> call) {
  double seconds = 0.0;
  for (auto _ : state) {
    seconds = MedianGpuSeconds(stream, 5, 10, [&](int64_t) { TW_CHECK(call().ok()); });
    state.SetIterationTime(seconds);
  }
  static const double copy_rate = GpuCopyRate(stream);
  state.counters["us"] = seconds * 1e6;
  state.counters["GB/s"] = bytes / seconds * 1e-9;
  state.counters["of_copy"] = bytes / seconds / copy_rate;
  state.counters["copy_GB/s"] = copy_rate * 1e-9;
  state.counters["Tflop/s"] = flops / seconds * 1e-12;
}

void Attend(benchmark::State& state, int64_t num_tokens) {
  const int64_t k_range = state.range(0), v_range = state.range(1);
  const std::vector<uint8_t> k_widths = Widths(k_range, true), v_widths = Widths(v_range, false);
  // Of a row.
  const int64_t k_bits = 16 * std::accumulate(k_widths.begin(), k_widths.end(), int64_t{0});
  const int64_t v_bits = 16 * std::accumulate(v_widths.begin(), v_widths.end(), int64_t{0});
  const int64_t num_seqs = state.range(2);
  const int64_t context = state.range(3), num_kv_heads = state.range(4), group = state.range(5);
  const std::unique_ptr<Gpu> gpu = Gpu::Open(state);
  if (gpu == nullptr) return;
  Stream& stream = gpu->stream;
  const Sequences seqs(num_seqs, num_tokens, context);
  const auto num_pages = static_cast<int64_t>(seqs.page_ids.size());
  const int64_t width = num_kv_heads * group * kHeadDim;
  const Tensor q = RandomOnGpu(num_seqs * num_tokens * width * 2, true, stream);
  Tensor out = RandomOnGpu(num_seqs * num_tokens * width * 2, true, stream);
  const ConstTensorView q_view(q.view().raw(), DType::kF16, {num_seqs * num_tokens, width},
                               stream.device());
  const TensorView out_view(out.mutable_view().mutable_raw(), DType::kF16,
                            {num_seqs * num_tokens, width}, stream.device());
  const int64_t rows = num_pages * num_kv_heads * kPageSize;
  const Tensor k = RandomOnGpu(rows * k_bits / 8, k_range == 16, stream);
  const Tensor v = RandomOnGpu(rows * v_bits / 8, v_range == 16, stream);
  const double bytes = static_cast<double>(num_seqs * context * num_kv_heads) *
                       static_cast<double>(k_bits + v_bits) / 8.0;
  // A query sees on average half of its own prompt.
  const double keys = static_cast<double>(context) - static_cast<double>(num_tokens - 1) / 2.0;
  const double flops = 4.0 * keys * static_cast<double>(num_seqs * num_tokens * width);
  const auto set = [&](auto& args, DType dtype, int64_t k_row, int64_t v_row) {
    args.q = q_view;
    args.out = out_view;
    seqs.Set(args);
    args.k_pages = ConstTensorView(k.view().raw(), dtype,
                                   {num_pages, num_kv_heads, kPageSize, k_row}, stream.device());
    args.v_pages = ConstTensorView(v.view().raw(), dtype,
                                   {num_pages, num_kv_heads, kPageSize, v_row}, stream.device());
    args.num_heads = num_kv_heads * group;
    args.scale = 0.088f;
  };
  if (k_range == 16) {
    PagedAttentionArgs args;
    set(args, DType::kF16, kHeadDim, kHeadDim);
    Run(state, stream, bytes, flops, [&] { return PagedAttention(args, stream); });
    return;
  }
  const KvCodes k_codes = SomeCodes(num_kv_heads, k_range, true, stream.device());
  const KvCodes v_codes = SomeCodes(num_kv_heads, v_range, false, stream.device());
  CodedPagedAttentionArgs args;
  set(args, DType::kU8, k_codes.row_bytes(), v_codes.row_bytes());
  args.k_codes = &k_codes;
  args.v_codes = &v_codes;
  Run(state, stream, bytes, flops, [&] { return CodedPagedAttention(args, stream); });
}

void Decode(benchmark::State& state) { Attend(state, 1); }
void Prompt(benchmark::State& state) { Attend(state, state.range(3)); }

void Shapes(benchmark::internal::Benchmark* benchmark) {
  for (const auto& [kv_heads, group] : {std::pair(8, 8), std::pair(8, 4), std::pair(9, 1)}) {
    for (const auto& [k, v] :
         {std::pair(16, 16), std::pair(8, 8), std::pair(4, 4), std::pair(3, 3), std::pair(4, 3),
          std::pair(5, 5), std::pair(0, 0), std::pair(-4, -4), std::pair(-3, -3)}) {
      benchmark->Args({k, v, 64, 8192, kv_heads, group});
    }
  }
  for (const int bits : {16, 4, 3}) {
    benchmark->Args({bits, bits, 1, 8192, 8, 8})->Args({bits, bits, 1, 32768, 8, 8});
  }
}
BENCHMARK(Decode)->Apply(Shapes)->Iterations(1)->UseManualTime();
BENCHMARK(Prompt)
    ->Args({16, 16, 1, 4096, 8, 4})
    ->Args({4, 4, 1, 4096, 8, 4})
    ->Args({3, 3, 1, 4096, 8, 4})
    ->Iterations(1)
    ->UseManualTime();

}  // namespace
}  // namespace thinwire
