// The columns of one matrix on a GPU, for Vptq: nothing is done after the first failure, which is
// kept.
#pragma once

#include <cstdint>
#include <optional>
#include <utility>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "kernels/core/stream.h"
#include "kernels/quantize/gpu_vptq.h"

namespace thinwire {

class VptqColumnsOnGpu {
 public:
  // As GpuVptq::Create. Unimplemented in a build without CUDA.
  absl::Status Open(const VptqMatrixShape& shape, absl::Span<const float> targets,
                    absl::Span<const float> factor, absl::Span<const float> hessian,
                    Stream& stream);
  bool is_open() const { return gpu_.has_value(); }

  // As GpuVptq's, while it is open.
  void Feedback(const VptqBooks& books, absl::Span<float> moved, const VptqChoice& choice);
  void Descend(const VptqBooks& books, int sweeps, const VptqChoice& choice);
  double Energy(absl::Span<const float> values, absl::Span<const float> shift,
                absl::Span<const float> multiplier, int64_t outputs);

  void Fail(absl::Status status) { status_ = std::move(status); }
  const absl::Status& status() const { return status_; }

 private:
  std::optional<GpuVptq> gpu_;
  absl::Status status_;
};

}  // namespace thinwire
