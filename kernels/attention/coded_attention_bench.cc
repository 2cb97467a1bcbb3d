// Attention over codes beside attention over fp16 pages, in turns within one run: the fastest call
// of each, and how many times as fast as fp16 each kind of codes is. Every call reads the pages of
// another layer; all layers' fp16 pages together have 128 MiB, their 3-bit codes 24 MiB: more than
// the second-level caches, so a step finds none of its pages there.
// Arguments: sequences, query tokens of each, context, heads, KV heads, head_dim, threads.
#include <algorithm>
#include <array>
#include <chrono>
#include <cstdint>
#include <initializer_list>
#include <random>
#include <string>
#include <vector>

#include "benchmark/benchmark.h"
#include "kernels/attention/coded_attention.h"
#include "kernels/attention/paged_attention.h"
#include "kernels/core/fastest.h"
#include "kernels/core/tensor.h"
#include "kernels/host_rates/host_rates.h"
#include "kernels/testing/rounded.h"

namespace thinwire {
namespace {

constexpr int64_t kPageSize = 16;
constexpr int64_t kFp16Bytes = 128 << 20;

struct Shape {
  int64_t seqs, tokens, context, heads, kv_heads, head_dim;

  int64_t pages() const { return seqs * (context / kPageSize); }
  int64_t fp16_bytes() const { return 2 * pages() * kv_heads * kPageSize * head_dim * 2; }
  int64_t layers() const { return std::max<int64_t>(1, kFp16Bytes / fp16_bytes()); }
};

// What all kinds of pages share.
struct Batch {
  explicit Batch(const Shape& shape) {
    for (int64_t s = 0; s <= shape.seqs; ++s) {
      token_offsets.push_back(static_cast<int32_t>(s * shape.tokens));
      page_offsets.push_back(static_cast<int32_t>(s * (shape.context / kPageSize)));
      if (s < shape.seqs) context_lens.push_back(static_cast<int32_t>(shape.context));
    }
    for (int64_t i = 0; i < shape.pages(); ++i) page_ids.push_back(static_cast<int32_t>(i));
    std::shuffle(page_ids.begin(), page_ids.end(), std::mt19937(5));
    const int64_t rows = shape.seqs * shape.tokens, columns = shape.heads * shape.head_dim;
    std::mt19937 random(3);
    std::uniform_real_distribution<float> uniform(-1.0f, 1.0f);
    std::vector<float> values(static_cast<size_t>(rows * columns));
    for (float& value : values) value = uniform(random);
    q = RoundedTensor(values, DType::kF16, rows, columns);
    out = Tensor::Allocate(DType::kF16, {rows, columns}, Device::Cpu()).value();
  }

  template <typename Args>
  void Fill(const Shape& shape, Args& args) {
    args.q = q.view();
    args.out = out.mutable_view();
    args.token_offsets = token_offsets;
    args.context_lens = context_lens;
    args.page_offsets = page_offsets;
    args.page_ids = page_ids;
    args.num_heads = shape.heads;
    args.scale = 0.125f;
  }

  std::vector<int32_t> token_offsets, context_lens, page_offsets, page_ids;
  Tensor q, out;
};

// K and V of all layers: [layers, 2, pages, kv_heads, kPageSize, row], values between -1 and 1 or
// any codes.
Tensor RandomPages(const Shape& shape, DType dtype, int64_t row) {
  const int64_t elements = shape.layers() * 2 * shape.pages() * shape.kv_heads * kPageSize * row;
  Tensor tensor = Tensor::Allocate(dtype, {elements}, Device::Cpu()).value();
  std::mt19937 random(7);
  if (dtype == DType::kF16) {
    auto* to = tensor.mutable_view().mutable_data<Half>();
    for (int64_t i = 0; i < elements; ++i) {
      const uint32_t bits = random();
      to[i] = Half{static_cast<uint16_t>((bits & 0x8000u) | (bits % 0x3c00u))};
    }
  } else {
    auto* to = tensor.mutable_view().mutable_data<uint8_t>();
    for (int64_t i = 0; i < elements; ++i) to[i] = static_cast<uint8_t>(random());
  }
  return tensor;
}

class Fp16Kind {
 public:
  Fp16Kind(const Shape& shape, Batch& batch)
      : shape_(shape), pages_(RandomPages(shape, DType::kF16, shape.head_dim)) {
    batch.Fill(shape, args_);
  }

  void Call(int64_t layer, Stream& stream) {
    const int64_t side = shape_.pages() * shape_.kv_heads * kPageSize * shape_.head_dim;
    const Half* first = pages_.view().data<Half>() + 2 * layer * side;
    const std::initializer_list<int64_t> dims = {shape_.pages(), shape_.kv_heads, kPageSize,
                                                 shape_.head_dim};
    args_.k_pages = ConstTensorView(first, DType::kF16, dims);
    args_.v_pages = ConstTensorView(first + side, DType::kF16, dims);
    benchmark::DoNotOptimize(PagedAttention(args_, stream).ok());
  }

 private:
  Shape shape_;
  Tensor pages_;
  PagedAttentionArgs args_;
};

// bits: of the quarters of a head's units.
KvCodes Codes(const Shape& shape, const std::array<uint8_t, 4>& bits) {
  std::mt19937 random(9);
  std::vector<KvHeadCodes> heads(static_cast<size_t>(shape.kv_heads));
  for (KvHeadCodes& head : heads) {
    const int64_t units = shape.head_dim / kKvUnit;
    for (int64_t u = 0; u < units; ++u) {
      head.bits.push_back(bits[static_cast<size_t>(4 * u / units)]);
    }
    for (int64_t j = 0; j < shape.head_dim; ++j) {
      const auto levels = static_cast<float>(1 << head.bits[static_cast<size_t>(j / kKvUnit)]);
      head.order.push_back(static_cast<int32_t>(j));
      head.step.push_back(2.0f / levels);
      head.zero.push_back(levels / 2.0f);
    }
    std::shuffle(head.order.begin(), head.order.end(), random);
  }
  return KvCodes::Create(shape.head_dim, std::move(heads), Device::Cpu()).value();
}

class CodedKind {
 public:
  CodedKind(const Shape& shape, Batch& batch, const std::array<uint8_t, 4>& bits)
      : shape_(shape),
        codes_(Codes(shape, bits)),
        pages_(RandomPages(shape, DType::kU8, codes_.row_bytes())) {
    batch.Fill(shape, args_);
  }

  void Call(int64_t layer, Stream& stream) {
    const int64_t side = shape_.pages() * shape_.kv_heads * kPageSize * codes_.row_bytes();
    const uint8_t* first = pages_.view().data<uint8_t>() + 2 * layer * side;
    const std::initializer_list<int64_t> dims = {shape_.pages(), shape_.kv_heads, kPageSize,
                                                 codes_.row_bytes()};
    args_.k_codes = args_.v_codes = &codes_;
    args_.k_pages = ConstTensorView(first, DType::kU8, dims);
    args_.v_pages = ConstTensorView(first + side, DType::kU8, dims);
    benchmark::DoNotOptimize(CodedPagedAttention(args_, stream).ok());
  }

 private:
  Shape shape_;
  KvCodes codes_;
  Tensor pages_;
  CodedPagedAttentionArgs args_;
};

void BM_CodedPagedAttention(benchmark::State& state) {
  const Shape shape = {state.range(0), state.range(1), state.range(2),
                       state.range(3), state.range(4), state.range(5)};
  ThreadPool pool(static_cast<int>(state.range(6)));
  Stream stream = Stream::Cpu(&pool);
  Batch batch(shape);
  Fp16Kind fp16(shape, batch);
  CodedKind eight(shape, batch, {8, 8, 8, 8});
  CodedKind four(shape, batch, {4, 4, 4, 4});
  CodedKind three(shape, batch, {3, 3, 3, 3});
  CodedKind mixed(shape, batch, {4, 3, 3, 2});
  CodedKind two(shape, batch, {2, 2, 2, 2});
  constexpr const char* kNames[] = {"fp16", "8bit", "4bit", "3bit", "4332", "2bit"};
  std::array<double, 6> best;
  best.fill(1e30);
  int64_t layer = 0;
  for (auto _ : state) {
    for (int repeat = 0; repeat < 4; ++repeat) {
      layer = (layer + 1) % shape.layers();
      const auto time = [&](auto& kind, double& fastest) {
        fastest = std::min(fastest, FastestSeconds(1, [&] { kind.Call(layer, stream); }));
      };
      time(fp16, best[0]);
      time(eight, best[1]);
      time(four, best[2]);
      time(three, best[3]);
      time(mixed, best[4]);
      time(two, best[5]);
    }
  }
  state.counters["fp16_us"] = best[0] * 1e6;
  for (size_t i = 1; i < best.size(); ++i) {
    state.counters[kNames[i]] = best[0] / best[i];
  }
  state.counters["fp16_GB/s"] = static_cast<double>(shape.fp16_bytes()) / best[0] * 1e-9;
  state.counters["read_GB/s"] = MeasureReadRate(kFp16Bytes, pool) * 1e-9;
}

// Arguments: tokens, KV heads, head_dim, threads.
void BM_CodedKvWrite(benchmark::State& state) {
  const int64_t tokens = state.range(0);
  const Shape shape = {1,
                       tokens,
                       (tokens + kPageSize - 1) / kPageSize * kPageSize,
                       state.range(1),
                       state.range(1),
                       state.range(2)};
  ThreadPool pool(static_cast<int>(state.range(3)));
  Stream stream = Stream::Cpu(&pool);
  Batch batch(shape);
  std::vector<int64_t> slots;
  for (int64_t t = 0; t < tokens; ++t) slots.push_back(t);
  constexpr const char* kNames[] = {"4bit_us", "3bit_us", "4332_us"};
  const std::array<uint8_t, 4> bits[] = {{4, 4, 4, 4}, {3, 3, 3, 3}, {4, 3, 3, 2}};
  double best[3] = {1e30, 1e30, 1e30};
  double best_fp16 = 1e30;
  for (auto _ : state) {
    for (size_t i = 0; i < 3; ++i) {
      const KvCodes codes = Codes(shape, bits[i]);
      Tensor pages = Tensor::Allocate(DType::kU8,
                                      {shape.pages(), shape.kv_heads, kPageSize, codes.row_bytes()},
                                      Device::Cpu())
                         .value();
      CodedKvWriteArgs args;
      args.k = args.v = batch.q.view();
      args.slots = slots;
      args.k_codes = args.v_codes = &codes;
      args.k_pages = args.v_pages = pages.mutable_view();
      best[i] = std::min(best[i], FastestSeconds(4, [&] {
                           benchmark::DoNotOptimize(CodedKvWrite(args, stream).ok());
                         }));
    }
    Tensor pages =
        Tensor::Allocate(DType::kF16, {shape.pages(), shape.kv_heads, kPageSize, shape.head_dim},
                         Device::Cpu())
            .value();
    KvWriteArgs args;
    args.k = args.v = batch.q.view();
    args.slots = slots;
    args.k_pages = args.v_pages = pages.mutable_view();
    best_fp16 =
        std::min(best_fp16,
                 FastestSeconds(4, [&] { benchmark::DoNotOptimize(KvWrite(args, stream).ok()); }));
  }
  state.counters["fp16_us"] = best_fp16 * 1e6;
  for (size_t i = 0; i < 3; ++i) state.counters[kNames[i]] = best[i] * 1e6;
}
BENCHMARK(BM_CodedKvWrite)
    ->Args({1, 8, 64, 1})
    ->Args({1, 8, 128, 1})
    ->Args({512, 8, 64, 1})
    ->Args({512, 8, 64, 2})
    ->Unit(benchmark::kMillisecond);

void Cases(benchmark::internal::Benchmark* bench) {
  for (const int64_t threads : {1, 2}) {
    for (const int64_t head_dim : {64, 128}) {
      for (const int64_t kv_heads : {8, 2}) {
        for (const int64_t seqs : {1, 8}) {
          bench->Args({seqs, 1, 2048, 8, kv_heads, head_dim, threads});
        }
      }
    }
    bench->Args({1, 512, 2048, 8, 8, 64, threads});
  }
}
BENCHMARK(BM_CodedPagedAttention)->Apply(Cases)->Unit(benchmark::kMillisecond);

}  // namespace
}  // namespace thinwire
