#include "kernels/core/dtype.h"

#include <array>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "kernels/core/check.h"

namespace thinwire {
namespace {

struct DTypeInfo {
  DType dtype;
  int bits;
  const char* name;
};

constexpr std::array<DTypeInfo, 11> kInfo = {{
    {DType::kF32, 32, "fp32"},
    {DType::kF16, 16, "fp16"},
    {DType::kBF16, 16, "bf16"},
    {DType::kI8, 8, "int8"},
    {DType::kU8, 8, "uint8"},
    {DType::kI16, 16, "int16"},
    {DType::kU16, 16, "uint16"},
    {DType::kI32, 32, "int32"},
    {DType::kI64, 64, "int64"},
    {DType::kU4, 4, "uint4"},
    {DType::kU3, 3, "uint3"},
}};

const DTypeInfo& Info(DType dtype) {
  const auto index = static_cast<size_t>(dtype);
  TW_CHECK_LT(index, kInfo.size());
  return kInfo[index];
}

}  // namespace

int DTypeBits(DType dtype) { return Info(dtype).bits; }

int64_t DTypeBytes(DType dtype, int64_t num_elements) {
  const int bits = DTypeBits(dtype);
  return bits % 8 == 0 ? num_elements * (bits / 8) : (num_elements * bits + 7) / 8;
}

absl::string_view DTypeName(DType dtype) { return Info(dtype).name; }

absl::StatusOr<DType> ParseDType(absl::string_view name) {
  std::string known;
  for (const DTypeInfo& info : kInfo) {
    if (name == info.name) return info.dtype;
    absl::StrAppend(&known, known.empty() ? "" : ", ", info.name);
  }
  return absl::InvalidArgumentError(
      absl::StrCat("unknown dtype '", name, "'; expected one of ", known));
}

bool IsFloat(DType dtype) {
  return dtype == DType::kF32 || dtype == DType::kF16 || dtype == DType::kBF16;
}

}  // namespace thinwire
