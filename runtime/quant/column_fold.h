// Scales of a linear layer's input channels that make its weights easier to round.
//
// y = sum_i W_oi x_i = sum_i (W_oi f_i) (x_i / f_i): whoever produces x divides by f, at no cost at
// run time, and the weights that are rounded are W_oi f_i.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/types/span.h"

namespace thinwire {

// f = rms^alpha / norm^(1 - alpha), up to a factor: alpha 0 gives columns of equal norm, alpha 1
// inputs of equal rms. Any other scales of the channels to begin with lead to the same folded
// weights, so that a rescaled model is rounded as its original. rms: of the input (the root of the
// Hessian's diagonal), norm: of the weights' column, both [width] and >= 0; each is taken as at
// least 1e-3 of its median, so dead channels have a finite f. The factor makes the geometric mean
// of f * norm equal `target_norm` > 0: fp16 scales must hold what is rounded.
std::vector<double> ColumnFold(absl::Span<const double> rms, absl::Span<const double> norm,
                               double alpha, double target_norm);

// [width]: the norms of the columns of weights [out, width].
std::vector<double> ColumnNorms(absl::Span<const float> weights, int64_t width);

// What belongs to the folded layer: H_ij / (f_i f_j) and, for a factor U with H^-1 = U^T U, U_ij
// f_j. [width, width], in place. Relative damping commutes with folding, so that one factorisation
// serves every fold.
void FoldHessian(absl::Span<const double> fold, absl::Span<double> hessian);
void FoldFactor(absl::Span<const double> fold, absl::Span<double> factor);

}  // namespace thinwire
