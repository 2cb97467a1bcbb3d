// The steps of GPTQ on a GPU.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kernels/core/stream.h"
#include "kernels/quantize/device_array.h"

namespace thinwire {

// How the scale and the zero of a row's group are found: as GptqOptions says.
struct GpuGridOptions {
  int shrink_steps = 0;
  float smallest_shrink = 0.5f;
  float error_power = 2.0f;
  bool local_search = false;
};

// Weights w[o, i] ~= scales[o, g] * (codes[o, i] - zeros[o, g]), all in host memory.
struct GpuGptqCodes {
  absl::Span<uint8_t> codes;  // [out, in]
  absl::Span<float> scales;   // [out, num_groups]
  absl::Span<uint8_t> zeros;  // [out, num_groups]
};

// Holds a matrix, its codes and the Hessian on a GPU. Each step does what the CPU's in
// runtime/quant does, up to the rounding of sums in another order (fp32, not TF32); two runs on
// GPUs of one kind give the same bits. Move-only; the stream outlives it.
class GpuGptq {
 public:
  // Columns of a block at most.
  static constexpr int kMostColumns = 128;

  // weights: [out, in]; bits in [1, 8]. importance: [in] of errors in the search for scales, or
  // empty: all alike. ResourceExhausted names what asked for memory.
  static absl::StatusOr<GpuGptq> Create(int64_t out, int64_t in, int bits,
                                        absl::Span<const int32_t> group_offsets,
                                        absl::Span<const float> weights,
                                        absl::Span<const float> importance, Stream& stream);

  // [in, in]: the factor that errors are fed along; the Hessian, for Slopes, Sweep and Systems.
  absl::Status SetFactor(absl::Span<const double> factor);
  absl::Status SetHessian(absl::Span<const double> hessian);

  // Grids of all groups from the weights as they came.
  absl::Status FitAllGroups(const GpuGridOptions& options);

  // Columns one after another, in blocks [begin, end) of at most kMostColumns; without a factor,
  // nothing is fed on. `fit`: groups get their grids when their first column comes. Returns the
  // smallest row * in + column whose scale or error is no finite number, or -1.
  absl::StatusOr<int64_t> FeedForward(absl::Span<const std::pair<int64_t, int64_t>> blocks,
                                      bool fit, const GpuGridOptions& options);

  // E H of the codes as they are.
  absl::Status Slopes();

  // A sweep of coordinate descent, from slopes to slopes.
  absl::Status Sweep(absl::Span<const std::pair<int64_t, int64_t>> blocks);

  // Of each of rows [first, first + num_rows), [num_rows, num_groups, num_groups] (lower triangles)
  // and [num_rows, num_groups]: K^T H K and K^T (E H), column block g of K being the group's code -
  // zero. With small groups the systems are larger than the matrix by far: hence some rows at a
  // time.
  absl::Status Systems(int64_t first, int64_t num_rows, std::vector<double>& systems,
                       std::vector<double>& slopes);

  absl::Status SetScales(absl::Span<const float> scales);
  absl::Status Get(const GpuGptqCodes& codes) const;

  struct BlockArgs;  // of the kernels

 private:
  GpuGptq(int64_t out, int64_t in, int bits, int64_t num_groups, Stream& stream)
      : out_(out), in_(in), bits_(bits), num_groups_(num_groups), stream_(&stream) {}

  // What all kernels are told.
  BlockArgs Args(const GpuGridOptions& options) const;

  int64_t out_, in_;
  int bits_;
  int64_t num_groups_;
  Stream* stream_;
  std::vector<int32_t> host_offsets_;
  DeviceArray<int32_t> offsets_, group_of_;
  DeviceArray<float> weights_, importance_, factor_, hessian_;
  DeviceArray<float> state_, scratch_;  // [out, in]: weights as moved, or slopes; errors
  DeviceArray<float> owed_;             // [out, kMostColumns]
  DeviceArray<uint8_t> codes_, zeros_;
  DeviceArray<float> scales_;
};

}  // namespace thinwire
