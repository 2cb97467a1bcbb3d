#include "runtime/cache/noise.h"

#include <algorithm>
#include <cstdint>
#include <random>
#include <vector>

#include "kernels/core/copy.h"
#include "kernels/core/float16.h"
#include "kernels/core/status_macros.h"

namespace thinwire {
namespace {

constexpr int64_t kNoiseElements = int64_t{1} << 20;

// kNoiseElements elements.
std::vector<uint32_t> MakeNoise(DType dtype) {
  std::vector<uint32_t> words(DTypeBytes(dtype, kNoiseElements) / sizeof(uint32_t));
  std::mt19937 random(0);  // the same on every rank and run
  if (!IsFloat(dtype)) {
    for (uint32_t& word : words) word = random();
    return words;
  }
  for (int64_t i = 0; i < kNoiseElements; ++i) {
    const float value = static_cast<float>(random()) * 0x1p-31f - 1.0f;
    if (dtype == DType::kF32) {
      reinterpret_cast<float*>(words.data())[i] = value;
    } else if (dtype == DType::kF16) {
      reinterpret_cast<Half*>(words.data())[i] = ToHalf(value);
    } else {
      reinterpret_cast<BFloat16*>(words.data())[i] = ToBFloat16(value);
    }
  }
  return words;
}

// Repeats `noise` over all of `out`.
absl::Status Fill(const std::vector<uint32_t>& noise, TensorView out, Stream& stream) {
  auto* to = static_cast<std::byte*>(out.mutable_raw());
  const int64_t count = out.num_elements();
  for (int64_t begin = 0; begin < count; begin += kNoiseElements) {
    const int64_t n = std::min(kNoiseElements, count - begin);
    TW_RETURN_IF_ERROR(Copy(
        ConstTensorView(noise.data(), out.dtype(), {n}),
        TensorView(to + DTypeBytes(out.dtype(), begin), out.dtype(), {n}, out.device()), stream));
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status FillWithNoise(PagedKvCache& cache, Stream& stream) {
  const int64_t num_layers = cache.shape().num_layers;
  if (num_layers == 0 || cache.num_pages() == 0) return absl::OkStatus();
  const std::vector<uint32_t> noise = MakeNoise(cache.k_pages(0).dtype());
  const std::vector<uint32_t> exact_noise = MakeNoise(DType::kF16);
  for (int64_t layer = 0; layer < num_layers; ++layer) {
    TW_RETURN_IF_ERROR(Fill(noise, cache.k_pages(layer), stream));
    TW_RETURN_IF_ERROR(Fill(noise, cache.v_pages(layer), stream));
    TW_RETURN_IF_ERROR(Fill(exact_noise, cache.exact_k(layer), stream));
    TW_RETURN_IF_ERROR(Fill(exact_noise, cache.exact_v(layer), stream));
  }
  return stream.Synchronize();
}

}  // namespace thinwire
