// VPTQ linears on a GPU, fp16 activations. Few tokens: bytes of codes and books, as a checkpoint
// has them, over the time of a call, against the rate of a plain copy; calls take copies of the
// weights in turn, so that no cache holds them. Many tokens: products. Arguments: v, index bits,
// residual bits (0: none), num_tokens, out, in, whether books are byte books; Dense: the same of an
// fp16 layer.
#include <cstdint>
#include <memory>
#include <random>
#include <vector>

#include "benchmark/benchmark.h"
#include "kernels/linear/linear.h"
#include "kernels/testing/gpu_data.h"
#include "kernels/vptq_linear/random_vptq.h"
#include "kernels/vptq_linear/vptq_device.h"
#include "kernels/vptq_linear/vptq_linear.h"

namespace thinwire {
namespace {

struct Shape {
  explicit Shape(const benchmark::State& state)
      : length(static_cast<int>(state.range(0))),
        index_bits(static_cast<int>(state.range(1))),
        residual_bits(static_cast<int>(state.range(2))),
        num_tokens(state.range(3)),
        out(state.range(4)),
        in(state.range(5)),
        bytes(state.range(6) != 0) {}
  int length, index_bits, residual_bits;
  int64_t num_tokens, out, in;
  bool bytes;
};

ConstTensorView Matrix(const Tensor& bytes, int64_t rows, int64_t columns) {
  return ConstTensorView(bytes.view().raw(), DType::kF16, {rows, columns}, bytes.view().device());
}
TensorView Matrix(Tensor& bytes, int64_t rows, int64_t columns) {
  return TensorView(bytes.mutable_view().mutable_raw(), DType::kF16, {rows, columns},
                    bytes.view().device());
}

// kernel(i): with set i of the weights.
void Run(benchmark::State& state, const Shape& shape, int64_t weight_bytes, Stream& stream,
         absl::FunctionRef<absl::Status(int64_t)> kernel) {
  double seconds = 0.0;
  const int calls = shape.num_tokens > 64 ? 5 : 20;
  for (auto _ : state) {
    seconds = MedianGpuSeconds(stream, 7, calls, [&](int64_t i) {
      const absl::Status status = kernel(i);
      if (!status.ok()) internal::CheckFailed(__FILE__, __LINE__, status.ToString());
    });
    state.SetIterationTime(seconds);
  }
  static const double copy_rate = GpuCopyRate(stream);
  const double rate = static_cast<double>(weight_bytes) / seconds;
  state.counters["us"] = seconds * 1e6;
  state.counters["GB/s"] = rate * 1e-9;
  state.counters["of_copy"] = rate / copy_rate;
  state.counters["Tflop/s"] =
      2e-12 * static_cast<double>(shape.num_tokens * shape.out * shape.in) / seconds;
}

template <absl::Status (*kLinear)(const VptqLinearArgs&, Stream&)>
void Vptq(benchmark::State& state) {
  const std::unique_ptr<Gpu> gpu = Gpu::Open(state);
  if (gpu == nullptr) return;
  const Shape shape(state);
  std::mt19937 random(1);
  const VptqWeights host = RandomVptq(shape.out,
                                      {{.length = shape.length,
                                        .index_bits = shape.index_bits,
                                        .residual_bits = shape.residual_bits,
                                        .residual = shape.residual_bits > 0,
                                        .group_columns = {shape.in},
                                        .bytes = shape.bytes}},
                                      false, true, random);
  const Tensor x = RandomOnGpu(shape.num_tokens * shape.in * 2, true, gpu->stream);
  Tensor y = RandomOnGpu(shape.num_tokens * shape.out * 2, true, gpu->stream);
  const int64_t sets = shape.num_tokens > 64 ? 1 : NumSets(gpu->stream.device(), host.size_bytes());
  std::vector<VptqWeights> weights;
  for (int64_t i = 0; i < sets; ++i) {
    weights.push_back(host.CopyTo(gpu->stream.device()).value());
  }
  VptqLinearArgs args;
  args.x = Matrix(x, shape.num_tokens, shape.in);
  args.y = Matrix(y, shape.num_tokens, shape.out);
  Run(state, shape, host.size_bytes(), gpu->stream, [&](int64_t i) {
    args.weights = &weights[static_cast<size_t>(i % sets)];
    return kLinear(args, gpu->stream);
  });
}

void Dense(benchmark::State& state) {
  const std::unique_ptr<Gpu> gpu = Gpu::Open(state);
  if (gpu == nullptr) return;
  const Shape shape(state);
  const Tensor x = RandomOnGpu(shape.num_tokens * shape.in * 2, true, gpu->stream);
  const Tensor w = RandomOnGpu(shape.out * shape.in * 2, true, gpu->stream);
  Tensor y = RandomOnGpu(shape.num_tokens * shape.out * 2, true, gpu->stream);
  LinearArgs args;
  args.x = Matrix(x, shape.num_tokens, shape.in);
  args.weight = Matrix(w, shape.out, shape.in);
  args.y = Matrix(y, shape.num_tokens, shape.out);
  Run(state, shape, shape.out * shape.in * 2, gpu->stream,
      [&](int64_t) { return Linear(args, gpu->stream); });
}

void Few(benchmark::internal::Benchmark* benchmark) {
  for (const int bytes : {1, 0}) {
    for (const int tokens : {1, 8, 16, 64}) {
      benchmark->Args({8, 12, 8, tokens, 28672, 8192, bytes});
      benchmark->Args({6, 12, 0, tokens, 28672, 8192, bytes});
    }
    for (const int tokens : {1, 16}) {
      benchmark->Args({4, 8, 0, tokens, 28672, 8192, bytes});
      benchmark->Args({8, 8, 8, tokens, 28672, 8192, bytes});
      benchmark->Args({8, 12, 8, tokens, 8192, 8192, bytes});
      benchmark->Args({8, 12, 8, tokens, 8192, 28672, bytes});
      benchmark->Args({8, 12, 8, tokens, 4096, 4096, bytes});
    }
  }
  for (const int tokens : {1, 16}) {
    benchmark->Args({6, 12, 12, tokens, 28672, 8192, 0});
    benchmark->Args({8, 16, 0, tokens, 28672, 8192, 0});
  }
}
BENCHMARK(Vptq<VptqLinear>)->Apply(Few)->Iterations(1)->UseManualTime();

// Where the two ways cross.
void Both(benchmark::internal::Benchmark* benchmark) {
  for (const int bytes : {1, 0}) {
    for (const int tokens : {96, 128, 160}) {
      benchmark->Args({8, 12, 8, tokens, 28672, 8192, bytes});
      benchmark->Args({6, 12, 0, tokens, 28672, 8192, bytes});
    }
  }
}
BENCHMARK(Vptq<VptqLinearFewTokensCuda>)->Apply(Both)->Iterations(1)->UseManualTime();
BENCHMARK(Vptq<VptqLinearManyTokensCuda>)->Apply(Both)->Iterations(1)->UseManualTime();

void Many(benchmark::internal::Benchmark* benchmark) {
  benchmark->Args({8, 12, 8, 4096, 28672, 8192, 0});
  benchmark->Args({6, 12, 0, 4096, 28672, 8192, 0})->Args({8, 16, 0, 4096, 28672, 8192, 0});
  benchmark->Args({8, 12, 8, 4096, 28672, 8192, 1});
}
BENCHMARK(Vptq<VptqLinearManyTokensCuda>)->Apply(Many)->Iterations(1)->UseManualTime();
BENCHMARK(Dense)
    ->Args({0, 16, 0, 1, 28672, 8192, 0})
    ->Args({0, 16, 0, 16, 28672, 8192, 0})
    ->Args({0, 16, 0, 128, 28672, 8192, 0})
    ->Args({0, 16, 0, 4096, 28672, 8192, 0})
    ->Iterations(1)
    ->UseManualTime();

}  // namespace
}  // namespace thinwire
