// Tokens from logits on a GPU. Arguments: num_seqs, vocab, temperature * 10, top_p * 100.
#include <cstdint>
#include <vector>

#include "benchmark/benchmark.h"
#include "kernels/sampling/sampling.h"
#include "kernels/testing/gpu_rates.h"
#include "kernels/testing/rounded.h"

namespace thinwire {
namespace {

void BM_SampleCuda(benchmark::State& state) {
  const std::unique_ptr<Gpu> gpu = Gpu::Open(state);
  if (gpu == nullptr) return;
  Stream& stream = gpu->stream;
  const int64_t seqs = state.range(0);
  const Tensor logits = OnDevice(NormalTensor(DType::kF32, seqs, state.range(1)).view(), stream);
  SamplingParams params;
  params.temperature = static_cast<float>(state.range(2)) / 10.0f;
  params.top_p = static_cast<float>(state.range(3)) / 100.0f;
  const std::vector<SamplingParams> all(static_cast<size_t>(seqs), params);
  const std::vector<int64_t> positions(static_cast<size_t>(seqs), 5);
  std::vector<int32_t> ids(static_cast<size_t>(seqs));
  for (auto _ : state) {
    const double seconds = MedianGpuSeconds(stream, 10, 1, [&](int64_t) {
      TW_CHECK(Sample({logits.view(), all, positions, absl::MakeSpan(ids)}, stream).ok());
    });
    state.SetIterationTime(seconds);
    state.counters["us"] = seconds * 1e6;
  }
}
BENCHMARK(BM_SampleCuda)
    ->ArgsProduct({{1, 64}, {32000, 128256}, {0}, {100}})
    ->ArgsProduct({{1, 64}, {32000, 128256}, {10}, {100, 90}})
    ->UseManualTime()
    ->Iterations(1);

}  // namespace
}  // namespace thinwire
