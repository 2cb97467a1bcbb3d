#include "runtime/model/weight_reader.h"

#include "absl/strings/str_cat.h"
#include "kernels/core/status_macros.h"

namespace thinwire {

absl::Status WeightReader::FindFloat(const std::string& name, DType& dtype) const {
  const TensorInfo* info = checkpoint_.Find(name);
  if (info == nullptr) {
    return absl::NotFoundError(absl::StrCat(checkpoint_.dir(), ": tensor '", name, "' is missing; ",
                                            config_.architecture, " needs it"));
  }
  if (!info->loadable || !IsFloat(info->dtype)) {
    return absl::InvalidArgumentError(absl::StrCat(checkpoint_.PathOf(name), ": tensor '", name,
                                                   "' has dtype ", info->stored_dtype,
                                                   "; expected F32, F16 or BF16"));
  }
  dtype = info->dtype;
  return absl::OkStatus();
}

absl::Status WeightReader::ReadMatrix(const std::string& name, int64_t rows, int64_t columns,
                                      const TensorSlice& slice, Tensor& out) const {
  DType dtype = DType::kF32;
  TW_RETURN_IF_ERROR(FindFloat(name, dtype));
  const int64_t num_rows = slice.rows.value_or(Range{0, rows}).size();
  const int64_t num_columns = slice.columns.value_or(Range{0, columns}).size();
  TW_ASSIGN_OR_RETURN(out, Tensor::Allocate(dtype, {num_rows, num_columns}, Device::Cpu()));
  if (num_rows == 0) return absl::OkStatus();
  return checkpoint_.Read(name, {rows, columns}, slice, out.mutable_view());
}

absl::Status WeightReader::ReadVector(const std::string& name, int64_t size, Range range,
                                      TensorView out) const {
  DType dtype = DType::kF32;
  TW_RETURN_IF_ERROR(FindFloat(name, dtype));
  return checkpoint_.Read(name, {size}, {.rows = range}, out);
}

absl::Status WeightReader::ReadNorm(const std::string& name, bool affine, bool has_bias,
                                    NormWeights& out) const {
  if (!affine) return absl::OkStatus();
  const int64_t hidden = config_.hidden;
  TW_ASSIGN_OR_RETURN(out.weight, Tensor::Allocate(DType::kF32, {hidden}, Device::Cpu()));
  TW_RETURN_IF_ERROR(ReadVector(name + ".weight", hidden, {0, hidden}, out.weight.mutable_view()));
  if (!has_bias) return absl::OkStatus();
  TW_ASSIGN_OR_RETURN(out.bias, Tensor::Allocate(DType::kF32, {hidden}, Device::Cpu()));
  return ReadVector(name + ".bias", hidden, {0, hidden}, out.bias.mutable_view());
}

absl::Status WeightReader::ReadFused(const std::vector<ProjectionRows>& parts, int64_t in_features,
                                     bool bias, LinearWeights& out) const {
  DType dtype = DType::kF32;
  TW_RETURN_IF_ERROR(FindFloat(parts.front().name + ".weight", dtype));
  int64_t num_rows = 0;
  for (const ProjectionRows& part : parts) num_rows += part.rows.size();
  TW_ASSIGN_OR_RETURN(out.weight, Tensor::Allocate(dtype, {num_rows, in_features}, Device::Cpu()));
  if (bias) {
    TW_ASSIGN_OR_RETURN(out.bias, Tensor::Allocate(DType::kF32, {num_rows}, Device::Cpu()));
  }
  int64_t row = 0;
  for (const ProjectionRows& part : parts) {
    const std::string weight = part.name + ".weight";
    DType part_dtype = dtype;
    TW_RETURN_IF_ERROR(FindFloat(weight, part_dtype));
    TW_RETURN_IF_ERROR(checkpoint_.Read(weight, {part.total_rows, in_features}, {.rows = part.rows},
                                        out.weight.mutable_view().Rows(row, part.rows.size())));
    if (bias) {
      TW_RETURN_IF_ERROR(ReadVector(part.name + ".bias", part.total_rows, part.rows,
                                    out.bias.mutable_view().Rows(row, part.rows.size())));
    }
    row += part.rows.size();
  }
  return absl::OkStatus();
}

absl::Status WeightReader::ReadBlock(const ProjectionRows& part, int64_t in_features, Range columns,
                                     bool bias, LinearWeights& out) const {
  TW_RETURN_IF_ERROR(ReadMatrix(part.name + ".weight", part.total_rows, in_features,
                                {.rows = part.rows, .columns = columns}, out.weight));
  return bias ? ReadBias(part, out) : absl::OkStatus();
}

absl::Status WeightReader::ReadBias(const ProjectionRows& part, LinearWeights& out) const {
  TW_ASSIGN_OR_RETURN(out.bias, Tensor::Allocate(DType::kF32, {part.rows.size()}, Device::Cpu()));
  return ReadVector(part.name + ".bias", part.total_rows, part.rows, out.bias.mutable_view());
}

}  // namespace thinwire
