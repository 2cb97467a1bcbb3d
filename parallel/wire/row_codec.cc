#include "parallel/wire/row_codec.h"

#include "absl/strings/str_cat.h"
#include "kernels/convert/convert.h"
#include "kernels/core/check.h"
#include "kernels/core/copy.h"
#include "kernels/group_codes/group_codes.h"

namespace thinwire {
namespace {

GroupCodesFormat FormatOf(const RowCodec& codec, int64_t width) {
  return {.bits = codec.bits, .width = width};
}

ConstTensorView AsHalf(ConstTensorView bytes, int64_t width) {
  return ConstTensorView(bytes.raw(), DType::kF16, {bytes.dim(0), width}, bytes.device());
}

}  // namespace

int64_t RowCodec::RowBytes(int64_t width, DType dtype) const {
  switch (kind) {
    case Kind::kNative:
      return DTypeBytes(dtype, width);
    case Kind::kFp16:
      return 2 * width;
    case Kind::kCodes:
      return FormatOf(*this, width).row_bytes();
  }
  return 0;
}

int64_t RowCodec::RowMetadataBytes(int64_t width) const {
  return kind == Kind::kCodes ? FormatOf(*this, width).num_groups() : 0;
}

std::string RowCodecName(const RowCodec& codec) {
  switch (codec.kind) {
    case RowCodec::Kind::kNative:
      return "native";
    case RowCodec::Kind::kFp16:
      return "fp16";
    case RowCodec::Kind::kCodes:
      return absl::StrCat("q", codec.bits);
  }
  return "unknown";
}

absl::Status EncodeRows(const RowCodec& codec, ConstTensorView x, TensorView bytes,
                        Stream& stream) {
  TW_CHECK_EQ(bytes.num_elements(), x.dim(0) * codec.RowBytes(x.dim(1), x.dtype()));
  switch (codec.kind) {
    case RowCodec::Kind::kNative:
      TW_CHECK(x.contiguous());
      return Copy(ConstTensorView(x.raw(), DType::kU8, {bytes.num_elements()}, x.device()),
                  TensorView(bytes.mutable_raw(), DType::kU8, {bytes.num_elements()}, x.device()),
                  stream);
    case RowCodec::Kind::kFp16:
      return Convert(x,
                     TensorView(bytes.mutable_raw(), DType::kF16, {x.dim(0), x.dim(1)}, x.device()),
                     stream);
    case RowCodec::Kind::kCodes:
      return EncodeGroups({.format = FormatOf(codec, x.dim(1)), .x = x, .codes = bytes}, stream);
  }
  return absl::OkStatus();
}

absl::Status DecodeRows(const RowCodec& codec, absl::Span<const ConstTensorView> parts,
                        TensorView y, Stream& stream) {
  if (codec.kind == RowCodec::Kind::kCodes) {
    return DecodeGroups({.format = FormatOf(codec, y.dim(1)), .parts = parts, .y = y}, stream);
  }
  TW_CHECK_EQ(parts.size(), 1u);
  if (codec.kind == RowCodec::Kind::kFp16) return Convert(AsHalf(parts[0], y.dim(1)), y, stream);
  TW_CHECK(y.contiguous());
  return Copy(ConstTensorView(parts[0].raw(), DType::kU8, {y.size_bytes()}, y.device()),
              TensorView(y.mutable_raw(), DType::kU8, {y.size_bytes()}, y.device()), stream);
}

absl::Status AddDecodedRows(const RowCodec& codec, absl::Span<const ConstTensorView> parts,
                            TensorView y, Stream& stream) {
  TW_CHECK(codec.kind == RowCodec::Kind::kCodes);
  return DecodeGroups(
      {.format = FormatOf(codec, y.dim(1)), .parts = parts, .y = y, .accumulate = true}, stream);
}

}  // namespace thinwire
