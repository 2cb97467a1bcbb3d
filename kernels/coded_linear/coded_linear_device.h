// Coded linears on a GPU; arguments are checked and on the stream's device, and neither tokens nor
// features are none. Only builds with CUDA define them. Private to kernels/coded_linear.
#pragma once

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/coded_linear/coded_linear.h"
#include "kernels/coded_linear/coded_weights.h"
#include "kernels/core/buffer.h"
#include "kernels/core/stream.h"

namespace thinwire {

// HasGates on a GPU.
bool HasGatesCuda(const CodedWeights& weights, int64_t num_tokens);
absl::Status CodedLinearCuda(const CodedLinearArgs& args, Stream& stream);
// in_order: as IntegerLinearInOrder.
absl::Status IntegerLinearCuda(const IntegerLinearArgs& args, bool in_order, Stream& stream);

// Up to this many tokens the kernel for few makes passes over the weights; beyond, they are
// unpacked and multiplied as dense ones. The two ways for any number.
inline constexpr int64_t kFewCudaTokens = 64;
absl::Status CodedLinearFewTokensCuda(const CodedLinearArgs& args, Stream& stream);
absl::Status CodedLinearManyTokensCuda(const CodedLinearArgs& args, Stream& stream);
// What CodedLinearFewTokensCuda chooses from, with the same bits: blocks that share long rows, and
// blocks that have whole ones (Unimplemented where they cannot: HasWholeRows).
absl::Status CodedLinearSharedRowsCuda(const CodedLinearArgs& args, Stream& stream);
absl::Status CodedLinearWholeRowsCuda(const CodedLinearArgs& args, Stream& stream);

// What a device has of weights: a copy of the host's bytes, and behind them LinearStep and
// LinearPart of the groups (coded_linear_cuda.h).
struct DeviceWeights {
  Buffer bytes;
  Buffer steps;
};
absl::StatusOr<DeviceWeights> WeightsOnDevice(const CodedWeights& weights, const std::byte* bytes,
                                              int64_t num_bytes, Device device);

}  // namespace thinwire
