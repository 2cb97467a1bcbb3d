// Linear on the CPU. Private to kernels/linear.
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "kernels/core/dtype.h"
#include "kernels/core/stream.h"
#include "kernels/linear/linear.h"

namespace thinwire {

// Up to this many tokens the kernel of linear_few_tokens_cpu.cc is faster than a matrix product by
// BLAS, which has to widen 16-bit weights first (linear_bench measures both).
constexpr int64_t FewTokens(DType weight_dtype) { return weight_dtype == DType::kF32 ? 32 : 64; }

// Arguments are checked and on the CPU. Takes scratch for fp32 copies of x and, per thread, of a
// block of a 16-bit weight and of y.
absl::Status LinearCpu(const LinearArgs& args, Stream& stream);

// The two ways, for any number of tokens. LinearCpu chooses by FewTokens.
absl::Status LinearFewTokens(const LinearArgs& args, Stream& stream);
absl::Status LinearManyTokens(const LinearArgs& args, Stream& stream);

}  // namespace thinwire
