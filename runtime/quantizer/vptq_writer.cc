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

}  // namespace

VptqLayerConfig VptqConfigOf(const VptqCodes& codes) {
  return {.in_features = codes.in_features,
          .out_features = codes.out_features,
          .length = codes.length,
          .index_bits = codes.index_bits,
          .residual = codes.has_residual,
          .residual_bits = codes.residual_bits,
          .norm = !codes.scale.empty()};
}

std::vector<TensorSpec> VptqTensorSpecs(absl::string_view name, const VptqLayerConfig& config) {
  const auto tensor = [&](absl::string_view part) { return absl::StrCat(name, ".", part); };
  const int64_t rows = (config.out_features + config.length - 1) / config.length;
  const int64_t words = VptqRowBytes(config.in_features, config.code_bits()) / 4;
  const auto book = [&](int bits) { return (int64_t{1} << bits) * config.length; };
  std::vector<TensorSpec> specs = {
      {tensor("indices"), DType::kI32, {1, rows, words}},
      {tensor("centroids.weight"), DType::kF16, {1, book(config.index_bits)}}};
  if (config.residual) {
    specs.push_back({tensor("res_centroids.weight"), DType::kF16, {1, book(config.residual_bits)}});
  }
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
  const int64_t in = codes.in_features;
  const int64_t row_bytes = VptqRowBytes(in, bits);
  std::vector<uint8_t> row;
  for (int64_t r = 0; r < codes.num_rows(); ++r) {
    row.assign(static_cast<size_t>(row_bytes + kVptqCodeSlack), 0);
    for (int64_t i = 0; i < in; ++i) {
      auto code = static_cast<uint64_t>(codes.indices[r * in + i]);
      if (codes.has_residual) {
        code |= static_cast<uint64_t>(codes.residuals[r * in + i]) << codes.index_bits;
      }
      SetVptqCode(row.data(), i * bits, code);
    }
    TW_RETURN_IF_ERROR(writer.AppendValues<uint8_t>(
        tensor("indices"), absl::MakeConstSpan(row).subspan(0, row_bytes)));
  }
  TW_RETURN_IF_ERROR(AppendHalves(writer, tensor("centroids.weight"), codes.centroids));
  if (codes.has_residual) {
    TW_RETURN_IF_ERROR(
        AppendHalves(writer, tensor("res_centroids.weight"), codes.residual_centroids));
  }
  if (codes.scale.empty()) return absl::OkStatus();
  TW_RETURN_IF_ERROR(AppendHalves(writer, tensor("weight_scale"), codes.scale));
  return AppendHalves(writer, tensor("weight_bias"), codes.offset);
}

}  // namespace thinwire
