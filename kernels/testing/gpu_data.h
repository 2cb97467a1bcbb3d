// For benchmarks of CUDA code: random data in a GPU's memory, and the rate of a plain copy.
#pragma once

#include <algorithm>
#include <cstdint>
#include <random>
#include <vector>

#include "kernels/core/check.h"
#include "kernels/core/copy.h"
#include "kernels/core/stream.h"
#include "kernels/core/tensor.h"
#include "kernels/testing/gpu_rates.h"

namespace thinwire {

// Bytes read and written a second by a copy within the device, of more than its caches hold.
inline double GpuCopyRate(Stream& stream) {
  constexpr int64_t kBytes = int64_t{1} << 30;
  Tensor from = Tensor::Allocate(DType::kU8, {kBytes}, stream.device()).value();
  Tensor to = Tensor::Allocate(DType::kU8, {kBytes}, stream.device()).value();
  const double seconds = MedianGpuSeconds(
      stream, 5, 5, [&](int64_t) { TW_CHECK(Copy(from.view(), to.mutable_view(), stream).ok()); });
  return 2.0 * static_cast<double>(kBytes) / seconds;
}

// Random bytes, repeated every 16 MiB; if `floats`, 16-bit numbers that fp16 and bf16 both take for
// finite ones of moderate size.
inline Tensor RandomOnGpu(int64_t bytes, bool floats, Stream& stream) {
  constexpr int64_t kPeriod = int64_t{1} << 24;
  std::mt19937_64 random(7);
  std::vector<uint64_t> host(kPeriod / 8);
  for (uint64_t& value : host) {
    value = random();
    if (floats) value = (value & 0x8bff8bff8bff8bffu) | 0x3000300030003000u;
  }
  Tensor tensor = Tensor::Allocate(DType::kU8, {bytes}, stream.device()).value();
  const ConstTensorView from(host.data(), DType::kU8, {kPeriod});
  for (int64_t at = 0; at < bytes; at += kPeriod) {
    const int64_t count = std::min(kPeriod, bytes - at);
    TW_CHECK(Copy(from.Rows(0, count), tensor.mutable_view().Rows(at, count), stream).ok());
  }
  TW_CHECK(stream.Synchronize().ok());
  return tensor;
}

}  // namespace thinwire
