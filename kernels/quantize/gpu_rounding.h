// What codes of a site make of its activations, on a GPU.
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "kernels/core/stream.h"

namespace thinwire {

// All pointers are of the GPU's memory.
struct GpuRoundingArgs {
  float* x = nullptr;  // [num_rows, width], `stride` numbers from one row to the next
  int64_t stride = 0;
  int64_t num_rows = 0, width = 0;
  const float* step = nullptr;  // [width], likewise the next three
  const float* inverse_step = nullptr;
  const float* zero = nullptr;
  const float* max_code = nullptr;
  const uint8_t* snap = nullptr;  // [256], or null: code = snap[code] last
  // What a row is divided by before: the largest |x * inverse_step| over kMaxGainCodes, the root of
  // their mean square, or nothing; in fp16, at most 65504, 1 where it would be 0.
  enum class Gain { kNone, kMax, kRms } gain = Gain::kNone;
};

// In place, x = gain * step * (code - zero), code = clamp(round(x * inverse_step / gain + zero), 0,
// max_code), halves to even: the codes of kernels/codes, as SiteRounding (runtime/quantizer) has
// them on the CPU. Enqueued.
absl::Status RoundRowsOnGpu(const GpuRoundingArgs& args, Stream& stream);

}  // namespace thinwire
