// A codebook on a GPU, laid out for its matrix units. For CUDA sources of kernels/quantize.
#pragma once

#include <cstdint>

#include "absl/status/statusor.h"
#include "kernels/core/stream.h"
#include "kernels/quantize/device_array.h"

namespace thinwire {

struct BookView;

// Owned and move-only.
class GpuBook {
 public:
  // Room for `count` vectors of `length`, up to kMaxSearchLength.
  static absl::StatusOr<GpuBook> Allocate(int64_t count, int length, Stream& stream);

  // Enqueues taking over vectors [count, length] from the GPU's memory: finite numbers. In a search
  // they stand rounded to 11 bits beside the largest of all elements.
  absl::Status Set(const float* vectors, Stream& stream);

  BookView view() const;
  int64_t count() const { return count_; }

 private:
  int64_t count_ = 0;
  int length_ = 0;
  int groups_ = 0;
  DeviceArray<uint32_t> fragments_;
  DeviceArray<float> norms_, centroids_, negative_, scale_;
};

// Enqueues indices[i] = the vector of `book` nearest to x_i = from[i * length, ...), i < n, all in
// the GPU's memory: as VectorBook::Nearest, up to the rounding of GpuBook::Set among vectors that
// the same lane compares.
absl::Status NearestOnGpu(const GpuBook& book, const float* from, int64_t n, int32_t* indices,
                          Stream& stream);

}  // namespace thinwire
