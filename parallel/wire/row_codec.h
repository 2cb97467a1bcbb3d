// Rows of activations as the bytes that travel, and back.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "kernels/core/stream.h"
#include "kernels/core/tensor_view.h"

namespace thinwire {

// A codec is deterministic: equal rows become equal bytes, and ranks that decode the same bytes
// obtain the same bits.
struct RowCodec {
  enum class Kind {
    kNative,  // the tensor's own elements, whatever they are: codes of a site, or activations
    kFp16,    // rounded to fp16, little-endian
    kCodes,   // kernels/group_codes of `bits`; needs no calibration
  };

  Kind kind = Kind::kNative;
  int bits = 16;  // with kCodes: 8, 6, 5 or 4

  // Bytes of a row of `width` elements of `dtype`; rows follow each other without padding.
  int64_t RowBytes(int64_t width, DType dtype) const;
  // Of RowBytes, those that are not elements: scales.
  int64_t RowMetadataBytes(int64_t width) const;

  friend bool operator==(const RowCodec& a, const RowCodec& b) = default;
};

// "native", "fp16", "q8", ...
std::string RowCodecName(const RowCodec& codec);

// x: [n, width], contiguous; any dtype with kNative, else fp32 | fp16 | bf16. bytes: [n, RowBytes]
// uint8, contiguous. n may be 0.
absl::Status EncodeRows(const RowCodec& codec, ConstTensorView x, TensorView bytes, Stream& stream);
// y = the sum of the decoded parts, each as EncodeRows made it from rows of y's dtype. Several
// parts only with kCodes: added in order in fp32, rounded once.
absl::Status DecodeRows(const RowCodec& codec, absl::Span<const ConstTensorView> parts,
                        TensorView y, Stream& stream);
// y += that sum. Only with kCodes.
absl::Status AddDecodedRows(const RowCodec& codec, absl::Span<const ConstTensorView> parts,
                            TensorView y, Stream& stream);

}  // namespace thinwire
