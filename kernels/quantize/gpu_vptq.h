// The steps of VPTQ that walk along a matrix's columns, on a GPU.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kernels/core/stream.h"
#include "kernels/quantize/device_array.h"
#include "kernels/quantize/gpu_book.h"

namespace thinwire {

// Outputs in chunks of rows * length, as they lie in memory: [num_chunks, in, rows, length].
struct VptqMatrixShape {
  int64_t num_chunks = 0;
  int64_t in = 0;
  int64_t rows = 0;  // vectors of a chunk's column
  int length = 0;    // up to kMaxGpuVectorLength

  int64_t width() const { return rows * length; }
  int64_t chunk_size() const { return in * width(); }
  int64_t size() const { return num_chunks * chunk_size(); }
  int64_t num_vectors() const { return num_chunks * in * rows; }
};

// What vectors are chosen from.
struct VptqBooks {
  absl::Span<const float> main;      // [count, length]
  absl::Span<const float> residual;  // the same, or empty
  // With a residual: whether a choice of both is improved by another turn.
  bool turns = true;
};

// What has been chosen, in host memory.
struct VptqChoice {
  absl::Span<float> values;       // [size]: the vectors themselves, both books added
  absl::Span<int32_t> indices;    // [num_vectors]
  absl::Span<int32_t> residuals;  // the same, or empty without a residual
};

// Holds a matrix of targets and its Hessian on a GPU, four times the matrix in all. Each step does
// what the CPU's in runtime/quant does, with the same order of operations but in products of
// matrices (fp32, not TF32) and the rounding of GpuBook; two runs on GPUs of one kind give the same
// bits. Move-only; the stream outlives it.
class GpuVptq {
 public:
  // `factor` and `hessian`: [in, in]. ResourceExhausted names what asked for memory.
  static absl::StatusOr<GpuVptq> Create(const VptqMatrixShape& shape,
                                        absl::Span<const float> targets,
                                        absl::Span<const float> factor,
                                        absl::Span<const float> hessian, Stream& stream);

  // Column after column, errors fed to those behind. `moved` [size] gets the columns as they were
  // when they were chosen for.
  absl::Status Feedback(const VptqBooks& books, absl::Span<float> moved, const VptqChoice& choice);

  // `sweeps` of coordinate descent, from and to `choice`.
  absl::Status Descend(const VptqBooks& books, int sweeps, const VptqChoice& choice);

  // tr(X H X^T) for X = values - targets, or targets + shift [in] by column where `values` is
  // empty; columns times `multiplier` [in] first; of the first `outputs` rows. Products in fp32,
  // their sum in double.
  absl::StatusOr<double> Energy(absl::Span<const float> values, absl::Span<const float> shift,
                                absl::Span<const float> multiplier, int64_t outputs);

 private:
  GpuVptq(const VptqMatrixShape& shape, Stream& stream) : shape_(shape), stream_(&stream) {}

  absl::Status SetBooks(const VptqBooks& books);
  template <bool kDescend>
  absl::Status LaunchBlock(const VptqBooks& books, int64_t begin, int64_t end);

  VptqMatrixShape shape_;
  Stream* stream_;
  DeviceArray<float> targets_, factor_, hessian_;
  DeviceArray<float> moved_, values_, errors_;  // like targets_
  DeviceArray<float> block_;                    // [num_chunks, columns of a block, width]
  DeviceArray<int32_t> indices_, residuals_;
  GpuBook main_, residual_;
};

}  // namespace thinwire
