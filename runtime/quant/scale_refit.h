// The best scales of coded weights when their codes and zeros stay.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "kernels/core/thread_pool.h"
#include "runtime/quant/gptq_codes.h"

namespace thinwire {

// Moves each row's scales s by the d that minimises tr((E + K d) H (E + K d)^T) + 1e-3 sum_g A_gg
// d_g^2, where E = Q - W, column block g of K holds code - zero, and A = K^T H K: a system of as
// many equations as groups, for each row, solved in double. A scale is then rounded to fp16, and
// stays where it would change by a factor of 2 or more; a row keeps all its scales where that
// leaves no gain.
//
// slopes: E H [out, in]; hessian: H [in, in] symmetric; both fp32. Every row is independent of
// the others and of the number of threads.
void RefitScales(absl::Span<const float> slopes, absl::Span<const float> hessian, GptqCodes& codes,
                 ThreadPool& pool);

// The same for some rows, from `first` on, given their A [rows, num_groups, num_groups] (the lower
// triangles) and K^T (E H) [rows, num_groups].
void RefitScalesOf(int64_t first, absl::Span<const double> systems, absl::Span<const double> slopes,
                   GptqCodes& codes, ThreadPool& pool);

}  // namespace thinwire
