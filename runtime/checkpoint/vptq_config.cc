#include "runtime/checkpoint/vptq_config.h"

#include <array>
#include <bit>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "kernels/core/status_macros.h"
#include "nlohmann/json.hpp"
#include "runtime/json/json_file.h"

namespace thinwire {
namespace {

constexpr int64_t kMaxCentroids = 65536;
constexpr int64_t kMaxLength = 4096;

// [of the outliers, of the others]; -1 and 0 stand for "none".
absl::StatusOr<std::array<int64_t, 2>> Pair(const JsonFields& fields, absl::string_view key,
                                            int64_t max) {
  const nlohmann::json* value = fields.Get(key);
  const bool pair = value != nullptr && value->is_array() && value->size() == 2 &&
                    (*value)[0].is_number_integer() && (*value)[1].is_number_integer();
  if (pair) {
    const std::array<int64_t, 2> found = {(*value)[0].get<int64_t>(), (*value)[1].get<int64_t>()};
    if (found[0] >= -1 && found[0] <= max && found[1] >= -1 && found[1] <= max) return found;
  }
  return fields.Expected(key, absl::StrCat("two integers of -1 to ", max));
}

absl::StatusOr<int> Log2(const JsonFields& fields, absl::string_view key, int64_t count) {
  if (count > 0 && std::has_single_bit(static_cast<uint64_t>(count))) {
    return std::countr_zero(static_cast<uint64_t>(count));
  }
  return absl::InvalidArgumentError(
      absl::StrCat(fields.context(), ": \"", key, "\": expected a power of two, found ", count));
}

absl::Status NotSupported(const JsonFields& fields, absl::string_view key,
                          absl::string_view supported) {
  return absl::UnimplementedError(absl::StrCat(fields.context(), ": \"", key,
                                               "\": ", DescribeJson(*fields.Get(key)),
                                               " is not supported; supported: ", supported));
}

absl::Status CheckModes(const JsonFields& fields) {
  TW_ASSIGN_OR_RETURN(const bool proxy, fields.BoolOr("enable_proxy_error", false));
  if (proxy) return NotSupported(fields, "enable_proxy_error", "false");
  TW_ASSIGN_OR_RETURN(const std::string dim, fields.StringOr("vector_quant_dim", "out"));
  if (dim != "out") return NotSupported(fields, "vector_quant_dim", "out");
  TW_ASSIGN_OR_RETURN(const int64_t norm_dim, fields.IntOr("norm_dim", 0, 0));
  if (norm_dim != 0) return NotSupported(fields, "norm_dim", "0");
  return absl::OkStatus();
}

absl::Status ParseOutliers(const JsonFields& fields, int64_t length, int64_t centroids,
                           VptqLayerConfig& config) {
  TW_ASSIGN_OR_RETURN(config.outlier_size, fields.IntOr("outlier_size", 0, 0));
  const bool said = length > 1 && centroids > 0;
  if (said != (config.outlier_size > 0)) {
    return absl::InvalidArgumentError(
        absl::StrCat(fields.context(), ": \"outlier_size\": expected ", said ? "columns" : "0",
                     ", as the first vector length, ", length, ", and number of centroids, ",
                     centroids, ", say, found ", config.outlier_size));
  }
  if (!said) return absl::OkStatus();
  config.outlier_length = static_cast<int>(length);
  TW_ASSIGN_OR_RETURN(config.outlier_bits, Log2(fields, "num_centroids", centroids));
  return absl::OkStatus();
}

absl::StatusOr<VptqLayerConfig> ParseLayer(const JsonFields& fields) {
  VptqLayerConfig config;
  TW_ASSIGN_OR_RETURN(config.in_features, fields.IntOr("in_features", 0, 0));
  TW_ASSIGN_OR_RETURN(config.out_features, fields.IntOr("out_features", 0, 0));
  TW_ASSIGN_OR_RETURN(const auto lengths, Pair(fields, "vector_lens", kMaxLength));
  TW_ASSIGN_OR_RETURN(const auto centroids, Pair(fields, "num_centroids", kMaxCentroids));
  TW_ASSIGN_OR_RETURN(const auto residuals, Pair(fields, "num_res_centroids", kMaxCentroids));
  if (lengths[1] < 1) return fields.Expected("vector_lens", "a second length of at least 1");
  config.length = static_cast<int>(lengths[1]);
  TW_ASSIGN_OR_RETURN(config.index_bits, Log2(fields, "num_centroids", centroids[1]));
  config.residual = residuals[1] > 0;
  if (config.residual) {
    TW_ASSIGN_OR_RETURN(config.residual_bits, Log2(fields, "num_res_centroids", residuals[1]));
  }
  if (residuals[0] > 0) return NotSupported(fields, "num_res_centroids", "[-1, ...]");
  TW_RETURN_IF_ERROR(ParseOutliers(fields, lengths[0], centroids[0], config));
  TW_ASSIGN_OR_RETURN(config.num_groups, fields.IntOr("group_num", 1, 1));
  TW_ASSIGN_OR_RETURN(config.norm, fields.BoolOr("enable_norm", false));
  TW_ASSIGN_OR_RETURN(config.perm, fields.BoolOr("enable_perm", false));
  TW_ASSIGN_OR_RETURN(config.packed, fields.BoolOr("is_indice_packed", true));
  TW_RETURN_IF_ERROR(CheckModes(fields));
  if (config.in_features == 0) return config;
  const int64_t rest = config.in_features - config.outlier_size;
  TW_ASSIGN_OR_RETURN(const int64_t size, fields.IntOr("group_size", -1, -1));
  if (rest < 0 || rest % config.num_groups != 0 ||
      (size >= 0 && size != rest / config.num_groups)) {
    return absl::InvalidArgumentError(absl::StrCat(
        fields.context(), ": \"group_size\": expected ", config.num_groups, " equal groups of the ",
        config.in_features, " columns less ", config.outlier_size, " outliers, found ", size));
  }
  return config;
}

absl::Status ParseLayers(const JsonFields& fields, absl::string_view key,
                         std::map<std::string, VptqLayerConfig>& layers) {
  if (!fields.Has(key)) return absl::OkStatus();
  const nlohmann::json* object = fields.Get(key);
  if (!object->is_object()) return fields.Expected(key, "an object of modules");
  for (const auto& [module, value] : object->items()) {
    TW_ASSIGN_OR_RETURN(const JsonFields layer,
                        JsonFields::Create(value, absl::StrCat(fields.context(), ": \"", key,
                                                               "\": ", QuotedForMessage(module))));
    TW_ASSIGN_OR_RETURN(layers[module], ParseLayer(layer));
  }
  return absl::OkStatus();
}

}  // namespace

std::string VptqLayerConfig::Name() const {
  return absl::StrCat("vptq-v", length, "-k", int64_t{1} << index_bits,
                      residual ? absl::StrCat("-r", int64_t{1} << residual_bits) : "");
}

const VptqLayerConfig* VptqConfig::Find(absl::string_view module) const {
  const auto exact = layers.find(std::string(module));
  if (exact != layers.end()) return &exact->second;
  const size_t dot = module.rfind('.');
  const auto last = shared.find(std::string(dot == module.npos ? module : module.substr(dot + 1)));
  return last == shared.end() ? nullptr : &last->second;
}

std::string VptqConfig::Name() const {
  std::map<std::string, int> counts;
  for (const auto* modules : {&layers, &shared}) {
    for (const auto& [module, layer] : *modules) ++counts[layer.Name()];
  }
  std::string name = "vptq";
  int most = 0;
  for (const auto& [layer, count] : counts) {
    if (count > most) name = layer;
    most = std::max(most, count);
  }
  return name;
}

absl::StatusOr<VptqConfig> ParseVptqConfig(const JsonFields& fields) {
  VptqConfig config;
  TW_RETURN_IF_ERROR(ParseLayers(fields, "config_for_layers", config.layers));
  TW_RETURN_IF_ERROR(ParseLayers(fields, "shared_layer_config", config.shared));
  if (config.layers.empty() && config.shared.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat(fields.context(),
                     ": expected modules in \"config_for_layers\" or \"shared_layer_config\", "
                     "found none"));
  }
  return config;
}

nlohmann::json VptqConfigJson(const VptqConfig& config) {
  const auto centroids = [](bool there, int bits) { return there ? int64_t{1} << bits : -1; };
  nlohmann::json modules = nlohmann::json::object();
  for (const auto& [name, layer] : config.layers) {
    const bool outliers = layer.outlier_size > 0;
    modules[name] = {{"in_features", layer.in_features},
                     {"out_features", layer.out_features},
                     {"vector_lens", {outliers ? layer.outlier_length : -1, layer.length}},
                     {"num_centroids",
                      {centroids(outliers, layer.outlier_bits), centroids(true, layer.index_bits)}},
                     {"num_res_centroids", {-1, centroids(layer.residual, layer.residual_bits)}},
                     {"group_num", layer.num_groups},
                     {"group_size", (layer.in_features - layer.outlier_size) / layer.num_groups},
                     {"outlier_size", layer.outlier_size},
                     {"enable_norm", layer.norm},
                     {"norm_dim", 0},
                     {"enable_perm", layer.perm},
                     {"is_indice_packed", layer.packed},
                     {"indices_as_float", false},
                     {"bias", true}};
  }
  return {{"quant_method", "vptq"}, {"config_for_layers", std::move(modules)}};
}

}  // namespace thinwire
