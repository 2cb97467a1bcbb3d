// What a matrix' columns are before vectors are chosen for them.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/core/stream.h"
#include "runtime/quant/vptq.h"

namespace thinwire {

struct VptqColumns {
  std::vector<float> scale, offset;  // [in] by column, fp16 values; 1 and 0 without norm
  std::vector<int64_t> order;        // [in]: the column of a place in the order of processing
  // [in, in] by place: the Hessian of scaled columns over its mean diagonal (1 where a
  // column is dead), and the upper factor of its damped inverse.
  std::vector<double> hessian, factor;
};

// Scales, and puts in descending order of the Hessian's diagonal. Errors: Vptq's. `gpu`: as there.
absl::StatusOr<VptqColumns> PrepareColumns(const VptqProblem& problem, const VptqOptions& options,
                                           Stream* gpu = nullptr);

}  // namespace thinwire
