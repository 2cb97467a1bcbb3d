// Activations as unsigned codes, one byte each, with static parameters for each channel (RPTQ,
// arXiv 2304.01089, eq. 2-3) and, where wanted, one dynamic gain for each token:
//
//   x[t, c] ~= gain[t] * step[c] * (code[t, c] - zero[c])
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "kernels/core/stream.h"
#include "kernels/core/tensor_view.h"

namespace thinwire {

// What a row is divided by before it is rounded; u[c] = x[c] * inverse_step[c] over the row.
enum class GainKind : uint8_t {
  kNone,   // 1
  kRms,    // sqrt(mean(u^2))
  kMax,    // max |u| / kMaxGainCodes: codes reach from zero - 127 to zero + 127
  kGiven,  // what `gains` holds on entry (MaxGains, agreed between ranks)
};

inline constexpr float kMaxGainCodes = 127.0f;

struct QuantizeArgs {
  ConstTensorView x;             // [num_tokens, width] fp32 | fp16 | bf16; rows may be strided
  ConstTensorView inverse_step;  // [width] fp32
  ConstTensorView zero;          // [width] fp32, need not be integers
  ConstTensorView max_code;      // [width] uint8: 2^bits - 1
  ConstTensorView snap;          // [256] uint8, or empty: code = snap[code] last
  GainKind gain = GainKind::kNone;
  TensorView codes;  // [num_tokens, width] uint8; rows may be strided
  TensorView gains;  // [num_tokens] fp32; may be empty with kNone; read with kGiven
};

// code = clamp(round(x * inverse_step / gain + zero), 0, max_code), halves to even, in fp32; then
// snap, if given, sends the code to another (tables of 16 levels: to the nearest of the 256 fine
// levels that is one of them).
//
// A gain is rounded to fp16 before it is used and stored, and stays at or below 65504; it is 1 for
// a row of zeros, and for one whose gain would round to 0. Rows are computed independently.
// num_tokens may be 0. A code of NaN is unspecified. InvalidArgument names what does not fit;
// Unimplemented on a device without this operator.
absl::Status Quantize(const QuantizeArgs& args, Stream& stream);

// gains[t] = the gain that kMax has for row t, but 0 for a row of zeros: the largest over the parts
// of a row is that of the whole row, and kGiven takes 0 for 1. x, inverse_step: as in QuantizeArgs;
// gains: [num_tokens] fp32.
absl::Status MaxGains(ConstTensorView x, ConstTensorView inverse_step, TensorView gains,
                      Stream& stream);

// The definition, in double (but for the rounding of gains), for tests.
absl::Status QuantizeReference(const QuantizeArgs& args);

struct RoundToCodesArgs {
  TensorView x;                  // [num_tokens, width] fp32 | fp16 | bf16; rows may be strided
  ConstTensorView step;          // [width] fp32
  ConstTensorView inverse_step;  // [width] fp32
  ConstTensorView zero;          // [width] fp32
  ConstTensorView max_code;      // [width] uint8
};

// In place, x = step * (code - zero), rounded to x's dtype, with the very codes that Quantize
// without gain and snap stores: what a reader of the codes would see.
absl::Status RoundToCodes(const RoundToCodesArgs& args, Stream& stream);

// The definition, in double, for tests.
absl::Status RoundToCodesReference(const RoundToCodesArgs& args);

}  // namespace thinwire
