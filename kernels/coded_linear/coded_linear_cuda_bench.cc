// Coded linears on a GPU. Few tokens: bytes of the weights over the time of a call, against the
// rate of a plain copy; calls take copies of the weights in turn, so that no cache holds them. Many
// tokens: products. Arguments: bits, num_tokens, out, in; groups have 128 columns, as have
// segments.
#include <cstdint>
#include <memory>
#include <vector>

#include "benchmark/benchmark.h"
#include "kernels/coded_linear/coded_linear.h"
#include "kernels/linear/linear.h"
#include "kernels/testing/gpu_data.h"

namespace thinwire {
namespace {

constexpr int64_t kGroup = 128;

std::vector<int32_t> Offsets(int64_t in) {
  std::vector<int32_t> offsets;
  for (int64_t i = 0; i < in; i += kGroup) offsets.push_back(static_cast<int32_t>(i));
  offsets.push_back(static_cast<int32_t>(in));
  return offsets;
}

CodedWeights SomeWeights(int64_t out, int64_t in, int bits, Device device) {
  CodedWeights weights = CodedWeights::Allocate(out, in, bits, Offsets(in), Device::Cpu()).value();
  std::vector<uint8_t> codes(static_cast<size_t>(16 * in));
  const std::vector<float> scales(static_cast<size_t>(16 * weights.num_groups()), 0.01f);
  const std::vector<uint8_t> zeros(scales.size(), static_cast<uint8_t>(1 << (bits - 1)));
  uint32_t random = 1;
  for (uint8_t& code : codes) {
    random = random * 1664525u + 1013904223u;
    code = static_cast<uint8_t>(random >> 24 & ((1u << bits) - 1u));
  }
  for (int64_t o = 0; o < out; o += 16) {
    const int64_t n = std::min<int64_t>(16, out - o);
    const auto rows = [&](const void* data, DType dtype, int64_t columns) {
      return ConstTensorView(data, dtype, {n, columns});
    };
    TW_CHECK(weights
                 .SetRows(o, rows(codes.data(), DType::kU8, in),
                          rows(scales.data(), DType::kF32, weights.num_groups()),
                          rows(zeros.data(), DType::kU8, weights.num_groups()))
                 .ok());
  }
  return weights.CopyTo(device).value();
}

struct Shape {
  explicit Shape(const benchmark::State& state)
      : bits(static_cast<int>(state.range(0))),
        num_tokens(state.range(1)),
        out(state.range(2)),
        in(state.range(3)) {}
  int bits;
  int64_t num_tokens, out, in;
};

// kernel(i): with set i of the weights.
void Run(benchmark::State& state, const Shape& shape, int64_t weight_bytes, Stream& stream,
         absl::FunctionRef<absl::Status(int64_t)> kernel) {
  double seconds = 0.0;
  for (auto _ : state) {
    seconds = MedianGpuSeconds(stream, 7, 20, [&](int64_t i) { TW_CHECK(kernel(i).ok()); });
    state.SetIterationTime(seconds);
  }
  static const double copy_rate = GpuCopyRate(stream);
  const double rate = static_cast<double>(weight_bytes) / seconds;
  const auto products = static_cast<double>(shape.num_tokens * shape.out * shape.in);
  state.counters["us"] = seconds * 1e6;
  state.counters["GB/s"] = rate * 1e-9;
  state.counters["of_copy"] = rate / copy_rate;
  state.counters["Tflop/s"] = 2.0 * products / seconds * 1e-12;
}

ConstTensorView Matrix(const Tensor& bytes, DType dtype, int64_t rows, int64_t columns) {
  return ConstTensorView(bytes.view().raw(), dtype, {rows, columns}, bytes.view().device());
}
TensorView Matrix(Tensor& bytes, DType dtype, int64_t rows, int64_t columns) {
  return TensorView(bytes.mutable_view().mutable_raw(), dtype, {rows, columns},
                    bytes.view().device());
}

template <DType kDType>
void Float(benchmark::State& state) {
  const std::unique_ptr<Gpu> gpu = Gpu::Open(state);
  if (gpu == nullptr) return;
  const Shape shape(state);
  const Tensor x = RandomOnGpu(shape.num_tokens * shape.in * 2, true, gpu->stream);
  Tensor y = RandomOnGpu(shape.num_tokens * shape.out * 2, true, gpu->stream);
  std::vector<CodedWeights> weights;
  const int64_t sets = shape.num_tokens > 64
                           ? 1
                           : NumSets(gpu->stream.device(), shape.out * shape.in * shape.bits / 8);
  for (int64_t i = 0; i < sets; ++i) {
    weights.push_back(SomeWeights(shape.out, shape.in, shape.bits, gpu->stream.device()));
  }
  CodedLinearArgs args;
  args.x = Matrix(x, kDType, shape.num_tokens, shape.in);
  args.y = Matrix(y, kDType, shape.num_tokens, shape.out);
  Run(state, shape, weights[0].size_bytes(), gpu->stream, [&](int64_t i) {
    args.weights = &weights[static_cast<size_t>(i % sets)];
    return CodedLinear(args, gpu->stream);
  });
}

void Integer(benchmark::State& state) {
  const std::unique_ptr<Gpu> gpu = Gpu::Open(state);
  if (gpu == nullptr) return;
  const Shape shape(state);
  const Tensor x = RandomOnGpu(shape.num_tokens * shape.in, false, gpu->stream);
  Tensor y = RandomOnGpu(shape.num_tokens * shape.out * 2, true, gpu->stream);
  std::vector<CodedWeights> weights;
  const int64_t sets = shape.num_tokens > 64
                           ? 1
                           : NumSets(gpu->stream.device(), shape.out * shape.in * shape.bits / 8);
  for (int64_t i = 0; i < sets; ++i) {
    weights.push_back(SomeWeights(shape.out, shape.in, shape.bits, gpu->stream.device()));
  }
  const std::vector<int32_t> segments = Offsets(shape.in);
  const std::vector<float> steps(segments.size() - 1, 0.01f);
  IntegerLinearArgs args;
  args.codes = Matrix(x, DType::kU8, shape.num_tokens, shape.in);
  args.segment_offsets = segments;
  args.segment_step = steps;
  args.y = Matrix(y, DType::kF16, shape.num_tokens, shape.out);
  Run(state, shape, weights[0].size_bytes(), gpu->stream, [&](int64_t i) {
    args.weights = &weights[static_cast<size_t>(i % sets)];
    return IntegerLinear(args, gpu->stream);
  });
}

// The same of dense weights.
void Dense(benchmark::State& state) {
  const std::unique_ptr<Gpu> gpu = Gpu::Open(state);
  if (gpu == nullptr) return;
  const Shape shape(state);
  const Tensor x = RandomOnGpu(shape.num_tokens * shape.in * 2, true, gpu->stream);
  const Tensor w = RandomOnGpu(shape.out * shape.in * 2, true, gpu->stream);
  Tensor y = RandomOnGpu(shape.num_tokens * shape.out * 2, true, gpu->stream);
  LinearArgs args;
  args.x = Matrix(x, DType::kF16, shape.num_tokens, shape.in);
  args.weight = Matrix(w, DType::kF16, shape.out, shape.in);
  args.y = Matrix(y, DType::kF16, shape.num_tokens, shape.out);
  Run(state, shape, shape.out * shape.in * 2, gpu->stream,
      [&](int64_t) { return Linear(args, gpu->stream); });
}

void Few(benchmark::internal::Benchmark* benchmark) {
  for (const int bits : {4, 3}) {
    for (const int tokens : {1, 4, 8, 16}) benchmark->Args({bits, tokens, 28672, 8192});
    for (const int tokens : {1, 16}) {
      benchmark->Args({bits, tokens, 8192, 8192})->Args({bits, tokens, 4096, 4096});
    }
  }
  benchmark->Args({4, 64, 28672, 8192});
  // Llama 2 70B by two ranks, with the first: qkv, o, down.
  for (const int tokens : {1, 16}) {
    benchmark->Args({4, tokens, 5120, 8192})
        ->Args({4, tokens, 8192, 4096})
        ->Args({4, tokens, 8192, 14336});
  }
}
void Many(benchmark::internal::Benchmark* benchmark) {
  for (const int bits : {4, 3}) benchmark->Args({bits, 4096, 28672, 8192});
}
BENCHMARK(Float<DType::kF16>)->Apply(Few)->Apply(Many)->Iterations(1)->UseManualTime();
BENCHMARK(Float<DType::kBF16>)
    ->ArgsProduct({{4, 3}, {1, 8, 16}, {28672}, {8192}})
    ->Apply(Many)
    ->Iterations(1)
    ->UseManualTime();
BENCHMARK(Integer)->Apply(Few)->Apply(Many)->Iterations(1)->UseManualTime();
BENCHMARK(Dense)
    ->ArgsProduct({{16}, {1, 8, 16, 4096}, {28672}, {8192}})
    ->Iterations(1)
    ->UseManualTime();

}  // namespace
}  // namespace thinwire
