#include "runtime/quant/vptq_gpu.h"

#include "absl/strings/str_cat.h"
#include "kernels/core/has_cuda.h"
#include "kernels/core/status_macros.h"

namespace thinwire {

absl::Status VptqColumnsOnGpu::Open(const VptqMatrixShape& shape, absl::Span<const float> targets,
                                    absl::Span<const float> factor, absl::Span<const float> hessian,
                                    Stream& stream) {
  if constexpr (kHasCuda) {
    TW_ASSIGN_OR_RETURN(gpu_, GpuVptq::Create(shape, targets, factor, hessian, stream));
    return absl::OkStatus();
  } else {
    return absl::UnimplementedError(
        absl::StrCat("VPTQ on ", DeviceName(stream.device()), ": this build has no CUDA"));
  }
}

void VptqColumnsOnGpu::Feedback(const VptqBooks& books, absl::Span<float> moved,
                                const VptqChoice& choice) {
  if constexpr (kHasCuda) {
    if (status_.ok()) status_ = gpu_->Feedback(books, moved, choice);
  }
}

void VptqColumnsOnGpu::Descend(const VptqBooks& books, int sweeps, const VptqChoice& choice) {
  if constexpr (kHasCuda) {
    if (status_.ok()) status_ = gpu_->Descend(books, sweeps, choice);
  }
}

double VptqColumnsOnGpu::Energy(absl::Span<const float> values, absl::Span<const float> shift,
                                absl::Span<const float> multiplier, int64_t outputs) {
  if constexpr (kHasCuda) {
    if (status_.ok()) {
      const absl::StatusOr<double> energy = gpu_->Energy(values, shift, multiplier, outputs);
      status_ = energy.status();
      if (energy.ok()) return *energy;
    }
  }
  return 0.0;
}

}  // namespace thinwire
