// Calibrating and quantising a layer of LLaMA-2-7B's shape on a GPU: 128 windows of 512 tokens,
// seeded random weights and residuals.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/strings/str_cat.h"
#include "benchmark/benchmark.h"
#include "kernels/core/check.h"
#include "kernels/core/copy.h"
#include "kernels/linear/linear.h"
#include "kernels/testing/gpu_rates.h"
#include "kernels/testing/on_device.h"
#include "parallel/comm/local_communicator.h"
#include "runtime/quantizer/device_sums.h"
#include "runtime/quantizer/layer_quantizer.h"

namespace thinwire {
namespace {

constexpr int64_t kSeqlen = 512;
constexpr int64_t kWindows = 128;
constexpr int64_t kTokens = kSeqlen * kWindows;

ModelConfig Config() {
  ModelConfig config;
  config.family = ModelFamily::kLlama;
  config.architecture = "LlamaForCausalLM";
  config.vocab = 32000;
  config.hidden = config.embed_dim = 4096;
  config.num_layers = 1;
  config.num_heads = config.num_kv_heads = 32;
  config.head_dim = 128;
  config.ffn = 11008;
  config.max_positions = 4096;
  config.norm_epsilon = 1e-5;
  config.activation = ActivationKind::kSilu;
  return config;
}

// Normal numbers that repeat after a million, which no row's length divides.
std::vector<float> Normals(int64_t size, float deviation) {
  std::mt19937 random(static_cast<unsigned>(size));
  std::normal_distribution<float> normal(0.0f, deviation);
  std::vector<float> some(static_cast<size_t>(std::min<int64_t>(size, (1 << 20) - 3)));
  for (float& value : some) value = normal(random);
  std::vector<float> values(static_cast<size_t>(size));
  for (size_t i = 0; i < values.size(); i += some.size()) {
    std::copy_n(some.begin(), std::min(some.size(), values.size() - i), values.begin() + i);
  }
  return values;
}

DenseLayer Layer(const ModelConfig& config) {
  DenseLayer layer;
  for (DenseNorm* norm : {&layer.attention_norm, &layer.mlp_norm}) {
    norm->gain = Normals(config.hidden, 0.2f);
    for (float& gain : norm->gain) gain += 1.0f;
  }
  const auto fill = [&](LinearRole role, int64_t out, int64_t in) {
    layer.at(role) = {.out_features = out,
                      .in_features = in,
                      .weight = Normals(out * in, 1.0f / std::sqrt(static_cast<float>(in)))};
  };
  for (const LinearRole role : {LinearRole::kQ, LinearRole::kK, LinearRole::kV, LinearRole::kOut}) {
    fill(role, config.hidden, config.hidden);
  }
  fill(LinearRole::kGate, config.ffn, config.hidden);
  fill(LinearRole::kUp, config.ffn, config.hidden);
  fill(LinearRole::kDown, config.hidden, config.ffn);
  return layer;
}

struct Job {
  explicit Job(Gpu& gpu)
      : config(Config()),
        pool(static_cast<int>(std::max(1u, std::thread::hardware_concurrency()))),
        world(std::move(CreateLocalCommunicators(1)[0])),
        pass(LayerPass::Create(config, kSeqlen, &pool, &gpu.stream).value()),
        layer(Layer(config)) {}

  ResidualStream Residuals() const {
    ResidualStream stream;
    stream.num_windows = kWindows;
    stream.seqlen = kSeqlen;
    stream.rows = Tensor::Allocate(DType::kF32, {kTokens, config.hidden}, pass->device()).value();
    const std::vector<float> values = Normals(kTokens * config.hidden, 1.0f);
    TW_CHECK(Copy(ConstTensorView(values.data(), DType::kF32, {kTokens, config.hidden}),
                  stream.rows.mutable_view(), pass->stream())
                 .ok());
    TW_CHECK(pass->stream().Synchronize().ok());
    return stream;
  }

  const ModelConfig config;
  ThreadPool pool;
  std::unique_ptr<Communicator> world;
  std::unique_ptr<LayerPass> pass;
  const DenseLayer layer;
};

double SecondsOf(Stream& stream, absl::FunctionRef<void()> work) {
  const auto start = std::chrono::steady_clock::now();
  work();
  TW_CHECK(stream.Synchronize().ok());
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// Operations a second of the library's fp32 product of 2048 rows with 4096 x 4096.
double SgemmRate(Stream& stream) {
  constexpr int64_t kRows = 2048, kWidth = 4096;
  const std::vector<float> values = Normals(kWidth * kWidth, 1.0f);
  const Tensor weight =
      OnDevice(ConstTensorView(values.data(), DType::kF32, {kWidth, kWidth}), stream);
  const Tensor x = OnDevice(ConstTensorView(values.data(), DType::kF32, {kRows, kWidth}), stream);
  Tensor y = Tensor::Allocate(DType::kF32, {kRows, kWidth}, stream.device()).value();
  const double seconds = MedianGpuSeconds(stream, 5, 4, [&](int64_t) {
    TW_CHECK(Linear({.x = x.view(), .weight = weight.view(), .y = y.mutable_view()}, stream).ok());
  });
  return 2.0 * kRows * kWidth * kWidth / seconds;
}

// All windows through the layer once. "of_sgemm": its projections' operations over the time at the
// rate of a large product.
void BM_Advance(benchmark::State& state) {
  const auto gpu = Gpu::Open(state);
  if (gpu == nullptr) return;
  Job job(*gpu);
  const LayerWeights weights = ToLayerWeights(job.layer, gpu->stream).value();
  ResidualStream stream = job.Residuals();
  double weight_count = 0.0;
  for (const DenseLinear& linear : job.layer.linears) {
    weight_count += static_cast<double>(linear.weight.size());
  }
  for (auto _ : state) {
    double seconds = 0.0;
    for (int round = 0; round < 2; ++round) {  // the first warms up
      seconds = SecondsOf(
          gpu->stream, [&] { TW_CHECK(job.pass->Advance(weights, SiteRoundings(), stream).ok()); });
    }
    state.SetIterationTime(seconds);
    state.counters["of_sgemm"] =
        2.0 * weight_count * static_cast<double>(kTokens) / seconds / SgemmRate(gpu->stream);
  }
}
BENCHMARK(BM_Advance)->Unit(benchmark::kMillisecond)->Iterations(1)->UseManualTime();

// Moments of 65536 rows with a target. "of_sgemm": as above, of the products of one triangle and
// one square.
void BM_Moments(benchmark::State& state) {
  const auto gpu = Gpu::Open(state);
  if (gpu == nullptr) return;
  const int64_t width = state.range(0);
  const std::vector<float> values = Normals(2 * kSeqlen * width, 1.0f);
  const Tensor rows =
      OnDevice(ConstTensorView(values.data(), DType::kF32, {2 * kSeqlen, width}), gpu->stream);
  const ConstTensorView x = rows.view().Rows(0, kSeqlen), y = rows.view().Rows(kSeqlen, kSeqlen);
  for (auto _ : state) {
    double seconds = 0.0;
    for (int round = 0; round < 2; ++round) {
      DeviceMoments moments = DeviceMoments::Create(width, true, gpu->stream).value();
      seconds = SecondsOf(gpu->stream, [&] {
        for (int64_t w = 0; w < kWindows; ++w) TW_CHECK(moments.Add(x, y).ok());
      });
      state.counters["download_ms"] =
          1e3 * SecondsOf(gpu->stream, [&] { TW_CHECK(moments.Take().ok()); });
    }
    state.SetIterationTime(seconds);
    state.counters["of_sgemm"] = 3.0 * static_cast<double>(kTokens) * static_cast<double>(width) *
                                 static_cast<double>(width) / seconds / SgemmRate(gpu->stream);
  }
}
BENCHMARK(BM_Moments)
    ->ArgName("width")
    ->Arg(4096)
    ->Arg(11008)
    ->Unit(benchmark::kMillisecond)
    ->Iterations(1)
    ->UseManualTime();

// One layer from its windows to its codes, and both streams through it.
void BM_Layer(benchmark::State& state, const char* scheme) {
  const auto gpu = Gpu::Open(state);
  if (gpu == nullptr) return;
  Job job(*gpu);
  LayerQuantizerOptions options;
  if (const auto parsed = ParseScheme(scheme); parsed.ok()) {
    options.scheme = *parsed;
  } else {
    options.scheme.vptq = ParseVptqShape(scheme).value();
  }
  options.num_windows = kWindows;
  LayerQuantizer quantizer(options, &job.config, job.pass.get(), job.world.get(), &job.pool,
                           &gpu->stream);
  ResidualStream target = job.Residuals(), input = job.Residuals();
  for (auto _ : state) {
    LayerResult result;
    state.counters["quantize_s"] = SecondsOf(gpu->stream, [&] {
      auto made = quantizer.Quantize(job.layer, target, input);
      TW_CHECK(made.ok());
      result = *std::move(made);
    });
    state.counters["advance_s"] = SecondsOf(gpu->stream, [&] {
      const LayerWeights weights = ToLayerWeights(job.layer, gpu->stream).value();
      TW_CHECK(job.pass->Advance(weights, SiteRoundings(), target).ok());
      TW_CHECK(job.pass->Advance(weights, SiteRoundings(result.codes, true), input).ok());
    });
    for (const LinearRole role : kLinearRoles) {
      state.counters[absl::StrCat("error_", RoleWord(role))] =
          result.errors[static_cast<size_t>(role)];
    }
  }
}
BENCHMARK_CAPTURE(BM_Layer, w4a16, "w4a16")
    ->Unit(benchmark::kMillisecond)
    ->Iterations(1)
    ->UseRealTime();
BENCHMARK_CAPTURE(BM_Layer, vptq_v8_k4096_r256, "vptq-v8-k4096-r256")
    ->Unit(benchmark::kMillisecond)
    ->Iterations(1)
    ->UseRealTime();

}  // namespace
}  // namespace thinwire
