// Products of weights with matrices as large as a Hessian, in double on a GPU.
#pragma once

#include <cstdint>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kernels/core/stream.h"

namespace thinwire {

// target [out, in] = w + strength * w c u^T u, rounded once. All in host memory: w [out, in], c and
// u [in, in]. ResourceExhausted names what asked for memory on the GPU.
absl::Status MovedTargetOnGpu(int64_t out, int64_t in, absl::Span<const float> w,
                              absl::Span<const double> c, absl::Span<const double> u,
                              double strength, absl::Span<float> target, Stream& stream);

// tr(e h e^T) / tr(w h w^T), e = coded - w, all [out, in] and h [in, in] in host memory; 0 when the
// denominator is.
absl::StatusOr<double> RelativeErrorOnGpu(int64_t out, int64_t in, absl::Span<const float> w,
                                          absl::Span<const float> coded, absl::Span<const double> h,
                                          Stream& stream);

}  // namespace thinwire
