#include "runtime/quantizer/vptq_writer.h"

#include <cstdint>
#include <string>

#include "absl/strings/str_cat.h"
#include "kernels/core/float16.h"
#include "kernels/core/status_macros.h"
#include "kernels/vptq_linear/vptq_codes.h"
#include "kernels/vptq_linear/vptq_weights.h"

namespace thinwire {
namespace {

absl::Status AppendHalves(SafetensorsWriter& writer, const std::string& name,
                          const std::vector<float>& values) {
  std::vector<Half> halves;
  halves.reserve(values.size());
  for (const float value : values) halves.push_back(ToHalf(value));
  return writer.AppendValues<Half>(name, halves);
}

// As 16-bit unsigned numbers, little-endian.
std::vector<uint8_t> Bytes16(const std::vector<int32_t>& values) {
  std::vector<uint8_t> bytes;
  bytes.reserve(2 * values.size());
  for (const int32_t value : values) {
    bytes.push_back(static_cast<uint8_t>(value & 0xff));
    bytes.push_back(static_cast<uint8_t>(value >> 8));
  }
  return bytes;
}

}  // namespace

VptqLayerConfig VptqConfigOf(const VptqCodes& codes) {
  return {.in_features = codes.in_features,
          .out_features = codes.out_features,
          .length = codes.length,
          .index_bits = codes.index_bits,
          .residual = codes.has_residual,
          .residual_bits = codes.residual_bits,
          .outlier_size = codes.outlier_size,
          .outlier_length = codes.outlier_length,
          .outlier_bits = codes.outlier_bits,
          .num_groups = codes.num_groups,
          .norm = !codes.scale.empty(),
          .perm = !codes.order.empty()};
}

std::vector<TensorSpec> VptqTensorSpecs(absl::string_view name, const VptqLayerConfig& config) {
  const auto tensor = [&](absl::string_view part) { return absl::StrCat(name, ".", part); };
  const auto rows = [&](int length) { return (config.out_features + length - 1) / length; };
  const int64_t groups = config.num_groups;
  const int64_t group_size = (config.in_features - config.outlier_size) / groups;
  const int64_t words = VptqRowBytes(group_size, config.code_bits()) / 4;
  const auto book = [&](int bits, int length) { return (int64_t{1} << bits) * length; };
  std::vector<TensorSpec> specs = {
      {tensor("indices"), DType::kI32, {groups, rows(config.length), words}},
      {tensor("centroids.weight"), DType::kF16, {groups, book(config.index_bits, config.length)}}};
  if (config.residual) {
    specs.push_back({tensor("res_centroids.weight"),
                     DType::kF16,
                     {groups, book(config.residual_bits, config.length)}});
  }
  if (config.outlier_size > 0) {
    specs.push_back({tensor("outlier_indices"),
                     DType::kI16,
                     {1, rows(config.outlier_length), config.outlier_size}});
    specs.push_back({tensor("outlier_centroids.weight"),
                     DType::kF16,
                     {1, book(config.outlier_bits, config.outlier_length)}});
  }
  if (config.perm) specs.push_back({tensor("perm"), DType::kI16, {config.in_features}});
  if (config.norm) {
    specs.push_back({tensor("weight_scale"), DType::kF16, {config.in_features}});
    specs.push_back({tensor("weight_bias"), DType::kF16, {config.in_features}});
  }
  return specs;
}

absl::Status AppendVptqLinear(SafetensorsWriter& writer, absl::string_view name,
                              const VptqCodes& codes) {
  const auto tensor = [&](absl::string_view part) { return absl::StrCat(name, ".", part); };
  const int bits = codes.index_bits + codes.residual_bits;
  const int64_t size = codes.group_size();
  const int64_t rest = size * codes.num_groups;
  const int64_t row_bytes = VptqRowBytes(size, bits);
  std::vector<uint8_t> row;
  for (int g = 0; g < codes.num_groups; ++g) {
    for (int64_t r = 0; r < codes.num_rows(); ++r) {
      row.assign(static_cast<size_t>(row_bytes + kVptqCodeSlack), 0);
      for (int64_t i = 0; i < size; ++i) {
        const int64_t from = r * rest + g * size + i;
        auto code = static_cast<uint64_t>(codes.indices[from]);
        if (codes.has_residual) {
          code |= static_cast<uint64_t>(codes.residuals[from]) << codes.index_bits;
        }
        SetVptqCode(row.data(), i * bits, code);
      }
      TW_RETURN_IF_ERROR(writer.AppendValues<uint8_t>(
          tensor("indices"), absl::MakeConstSpan(row).subspan(0, row_bytes)));
    }
  }
  TW_RETURN_IF_ERROR(AppendHalves(writer, tensor("centroids.weight"), codes.centroids));
  if (codes.has_residual) {
    TW_RETURN_IF_ERROR(
        AppendHalves(writer, tensor("res_centroids.weight"), codes.residual_centroids));
  }
  if (codes.outlier_size > 0) {
    TW_RETURN_IF_ERROR(
        writer.AppendValues<uint8_t>(tensor("outlier_indices"), Bytes16(codes.outlier_indices)));
    TW_RETURN_IF_ERROR(
        AppendHalves(writer, tensor("outlier_centroids.weight"), codes.outlier_centroids));
  }
  if (!codes.order.empty()) {
    TW_RETURN_IF_ERROR(writer.AppendValues<uint8_t>(tensor("perm"), Bytes16(codes.order)));
  }
  if (codes.scale.empty()) return absl::OkStatus();
  TW_RETURN_IF_ERROR(AppendHalves(writer, tensor("weight_scale"), codes.scale));
  return AppendHalves(writer, tensor("weight_bias"), codes.offset);
}

}  // namespace thinwire
