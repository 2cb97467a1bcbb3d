// Weights where they are used.
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "kernels/core/stream.h"
#include "runtime/model/decoder_weights.h"

namespace thinwire {

// Moves what kernels read to the stream's device, one tensor after the other, so that no more than
// one is in both places; nothing on the CPU. Waits for the stream. ResourceExhausted where the
// device is full. usual_tokens: of a step, at most, for VptqWeights::CopyTo.
absl::Status MoveToDevice(LayerWeights& weights, Stream& stream, int64_t usual_tokens);

// All but the layers.
absl::Status MoveEndsToDevice(DecoderWeights& weights, Stream& stream);

}  // namespace thinwire
