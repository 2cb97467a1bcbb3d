// VPTQ linears on a GPU. Only builds with CUDA define them. Private to kernels/vptq_linear.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "kernels/core/device.h"
#include "kernels/core/stream.h"
#include "kernels/vptq_linear/vptq_linear.h"
#include "kernels/vptq_linear/vptq_weights.h"

namespace thinwire {

// Up to this many tokens weights with tables go through shared memory in passes of 16 rows of x
// (byte books up to fewer), others through the caches in passes of 4 tokens; beyond, some rows of
// them are laid out at a time and multiplied as dense ones (vptq_linear_cuda_bench measures the
// ways).
inline constexpr int64_t kFewTableTokens = 128;
inline constexpr int64_t kFewByteTokens = 96;
inline constexpr int64_t kFewAnyTokens = 8;

// Arguments are checked and on the stream's device, and neither tokens nor outputs are none.
absl::Status VptqLinearCuda(const VptqLinearArgs& args, Stream& stream);
// The two ways for any number.
absl::Status VptqLinearFewTokensCuda(const VptqLinearArgs& args, Stream& stream);
absl::Status VptqLinearManyTokensCuda(const VptqLinearArgs& args, Stream& stream);

// What a GPU gets of weights in host memory: tables where one group's books of 2^8 or 2^12 vectors
// of at most 8, in fp16 or bf16, fit in its shared memory; else the bytes as they are. Done when it
// returns.
absl::Status CopyVptqToDevice(const VptqWeights& host, Device device, int64_t usual_tokens,
                              std::vector<VptqPart>& parts, VptqOnDevice& made);

}  // namespace thinwire
