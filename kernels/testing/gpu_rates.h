// For benchmarks of CUDA code: the time of a kernel on data that no cache holds, and its rate
// beside that of a plain copy.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <vector>

#include "absl/functional/function_ref.h"
#include "benchmark/benchmark.h"
#include "kernels/core/check.h"
#include "kernels/core/copy.h"
#include "kernels/core/device_properties.h"
#include "kernels/core/event.h"
#include "kernels/core/tensor.h"
#include "kernels/testing/on_device.h"

namespace thinwire {

// The first GPU, or null where there is none: then the benchmark is skipped.
struct Gpu {
  static std::unique_ptr<Gpu> Open(benchmark::State& state) {
    if (NumCudaDevices() > 0) return std::make_unique<Gpu>();
    state.SkipWithError("no GPU here");
    return nullptr;
  }

  ThreadPool pool{1};
  Stream stream = Stream::Cuda(Device::Cuda(0), &pool).value();
};

// Median seconds of one call among `rounds` of `calls` calls each, after one to warm up: kernel(i)
// for i = 0, 1 and so on. Reports it as the benchmark's time.
inline double MedianGpuSeconds(Stream& stream, int rounds, int calls,
                               absl::FunctionRef<void(int64_t)> kernel) {
  std::vector<double> seconds;
  int64_t call = 0;
  Event start = Event::Create(stream.device(), Event::Kind::kTimed).value();
  Event end = Event::Create(stream.device(), Event::Kind::kTimed).value();
  for (int round = 0; round <= rounds; ++round) {
    TW_CHECK(start.Record(stream).ok());
    for (int i = 0; i < calls; ++i) kernel(call++);
    TW_CHECK(end.Record(stream).ok());
    const absl::Status done = stream.Synchronize();
    if (!done.ok()) internal::CheckFailed(__FILE__, __LINE__, done.ToString());
    if (round > 0) seconds.push_back(end.MillisecondsSince(start).value() / 1e3 / calls);
  }
  std::nth_element(seconds.begin(), seconds.begin() + rounds / 2, seconds.end());
  return seconds[static_cast<size_t>(rounds / 2)];
}

// How many sets of buffers of `bytes` each outgrow the caches three times, at least 1.
inline int64_t NumSets(const Device& device, int64_t bytes) {
  return 3 * GetDeviceProperties(device).value().l2_bytes / std::max<int64_t>(1, bytes) + 1;
}

// `count` tensors like `view`, with the same contents.
inline std::vector<Tensor> Copies(ConstTensorView view, int64_t count, Stream& stream) {
  std::vector<Tensor> copies;
  for (int64_t i = 0; i < count; ++i) copies.push_back(OnDevice(view, stream));
  return copies;
}

// kernel(i) works on set i of `num_sets` and reads and writes `bytes` of it. Sets the time and the
// counters "us", "GB/s", and "of_copy": the share of the rate at which the GPU copies bytes / 2 at
// a time, likewise in turns.
inline void RunBesideGpuCopy(benchmark::State& state, int64_t bytes, int64_t num_sets,
                             Stream& stream, absl::FunctionRef<void(int64_t)> kernel) {
  constexpr int kRounds = 15;
  const int calls = static_cast<int>(std::clamp<int64_t>((int64_t{1} << 30) / bytes, 4, 200));
  double seconds = 0.0;
  for (auto _ : state) {
    seconds = MedianGpuSeconds(stream, kRounds, calls, [&](int64_t i) { kernel(i % num_sets); });
    state.SetIterationTime(seconds);
  }
  std::vector<Tensor> from, to;
  for (int64_t i = 0; i < num_sets; ++i) {
    for (auto* tensors : {&from, &to}) {
      tensors->push_back(Tensor::Allocate(DType::kU8, {bytes / 2}, stream.device()).value());
    }
  }
  const double copy_seconds = MedianGpuSeconds(stream, kRounds, calls, [&](int64_t i) {
    const auto set = static_cast<size_t>(i % num_sets);
    TW_CHECK(Copy(from[set].view(), to[set].mutable_view(), stream).ok());
  });
  state.counters["us"] = seconds * 1e6;
  state.counters["GB/s"] = static_cast<double>(bytes) / seconds * 1e-9;
  state.counters["of_copy"] = copy_seconds / seconds;
}

}  // namespace thinwire
