#include "runtime/quantizer/layer_result.h"

#include <algorithm>
#include <filesystem>
#include <map>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "kernels/core/atomic_file.h"
#include "kernels/core/check.h"
#include "kernels/core/status_macros.h"
#include "nlohmann/json.hpp"
#include "runtime/checkpoint/gptq_tensors.h"
#include "runtime/checkpoint/safetensors_writer.h"
#include "runtime/checkpoint/vptq_tensors.h"
#include "runtime/json/json_file.h"
#include "runtime/model/decoder_spec.h"
#include "runtime/quantizer/vptq_writer.h"

namespace thinwire {
namespace {

// Bytes of a tensor copied at a time.
constexpr int64_t kCopyBytes = int64_t{4} << 20;

// Where a layer's file says what its vectors are like.
constexpr char kVptqMetadata[] = "vptq";

// Where it says what its projections have become, and how far their outputs are off.
constexpr char kReportMetadata[] = "report";
constexpr char kReportName[] = "quantize_report.json";

// Three digits: others depend on the order of sums over more than 4 ranks.
double Rounded(double value) {
  double rounded = value;
  return absl::SimpleAtod(absl::StrFormat("%.3g", value), &rounded) ? rounded : value;
}

// {"q": {"weights": "vptq-v4-k256", "relative_error": 0.01}, ...}; "-c8" behind byte books.
nlohmann::ordered_json ReportOf(const LayerResult& result) {
  nlohmann::ordered_json report = nlohmann::ordered_json::object();
  for (const LinearRole role : kLinearRoles) {
    std::string weights;
    if (!result.weight(role).codes.empty()) {
      weights = absl::StrCat("gptq", result.weight(role).bits);
    } else if (!result.vector(role).indices.empty()) {
      weights = absl::StrCat(VptqConfigOf(result.vector(role)).Name(),
                             result.vector(role).byte_books ? "-c8" : "");
    } else {
      continue;
    }
    report[std::string(RoleWord(role))] = {
        {"weights", weights},
        {"relative_error", Rounded(result.errors[static_cast<size_t>(role)])}};
  }
  return report;
}

std::string RoleName(const LayerTensorNames& names, LinearRole role) {
  const std::array<const std::string*, kLinearRoles.size()> all = {
      &names.q, &names.k, &names.v, &names.out, &names.gate, &names.up, &names.down};
  return *all[static_cast<size_t>(role)];
}

// codes in the order of `order` to the model's own.
std::vector<uint8_t> InChannelOrder(const GptqCodes& weight, const std::vector<int32_t>& order) {
  std::vector<uint8_t> codes(weight.codes.size());
  for (int64_t o = 0; o < weight.out_features; ++o) {
    const int64_t row = o * weight.in_features;
    for (int64_t j = 0; j < weight.in_features; ++j) {
      codes[row + order[j]] = weight.codes[row + j];
    }
  }
  return codes;
}

std::vector<int32_t> GroupIndex(const GptqCodes& weight, const std::vector<int32_t>& order) {
  std::vector<int32_t> g_idx(order.size());
  for (int64_t g = 0; g < weight.num_groups(); ++g) {
    for (int32_t j = weight.group_offsets[g]; j < weight.group_offsets[g + 1]; ++j) {
      g_idx[order[j]] = static_cast<int32_t>(g);
    }
  }
  return g_idx;
}

absl::Status CreateFolder(const std::string& path) {
  std::error_code error;
  std::filesystem::create_directories(path, error);
  if (!error) return absl::OkStatus();
  return absl::ErrnoToStatus(error.value(), absl::StrCat(path, ": cannot create the folder"));
}

}  // namespace

DenseLayer Dequantized(const LayerResult& result, const DenseLayer& dense) {
  if (!result.quantises_weights()) return dense;
  DenseLayer layer;
  layer.attention_norm = result.attention_norm;
  layer.mlp_norm = result.mlp_norm;
  for (const LinearRole role : kLinearRoles) {
    if (!result.read_vector(role).empty()) {
      layer.at(role) = {.out_features = dense.at(role).out_features,
                        .in_features = dense.at(role).in_features,
                        .weight = result.read_vector(role),
                        .bias = result.bias(role)};
      continue;
    }
    const GptqCodes& weight = result.weight(role);
    if (weight.codes.empty()) continue;
    const std::vector<int32_t>& order = result.codes.at(InputSite(role)).order;
    DenseLinear& linear = layer.at(role);
    linear.out_features = weight.out_features;
    linear.in_features = weight.in_features;
    linear.bias = result.bias(role);
    linear.weight.resize(weight.codes.size());
    const std::vector<float> values = Dequantize(weight);
    for (int64_t o = 0; o < weight.out_features; ++o) {
      const int64_t row = o * weight.in_features;
      for (int64_t j = 0; j < weight.in_features; ++j) {
        linear.weight[row + order[j]] = values[row + j];
      }
    }
  }
  return layer;
}

LayerFiles::LayerFiles(std::string dir, const Checkpoint* source, const ModelConfig* config,
                       const GptqConfig& gptq, int tp)
    : dir_(std::move(dir)), source_(source), config_(config), gptq_(gptq), tp_(tp) {}

std::string LayerFiles::FileName(int64_t layer) const {
  return absl::StrFormat("model-%05d-of-%05d.safetensors", layer + 1, num_files());
}

std::string LayerFiles::Path(absl::string_view name) const { return absl::StrCat(dir_, "/", name); }

std::string LayerFiles::SitesDir(int64_t layer) const {
  return Path(absl::StrFormat("sites-%05d", layer + 1));
}

std::string LayerFiles::Prefix(int64_t layer) const {
  return LayerPrefix(*source_, *config_, layer);
}

bool LayerFiles::Has(int64_t layer) const { return std::filesystem::exists(Path(FileName(layer))); }

absl::Status LayerFiles::WriteSites(int64_t layer, const LayerCodes& codes) const {
  const std::string dir = SitesDir(layer);
  TW_RETURN_IF_ERROR(CreateFolder(dir));
  ModelConfig one = *config_;
  one.num_layers = 1;
  return WriteRptqFile(dir, {.tp = tp_, .layers = {codes}}, one);
}

absl::StatusOr<LayerCodes> LayerFiles::ReadSites(int64_t layer) const {
  // A run that was ended while it finished may have removed some of them: then all are in one file.
  if (!std::filesystem::exists(SitesDir(layer)) && std::filesystem::exists(Path(kRptqFileName))) {
    TW_ASSIGN_OR_RETURN(RptqFile all, ReadRptqFile(dir_, *config_));
    return std::move(all.layers[layer]);
  }
  ModelConfig one = *config_;
  one.num_layers = 1;
  TW_ASSIGN_OR_RETURN(RptqFile file, ReadRptqFile(SitesDir(layer), one));
  return std::move(file.layers.front());
}

absl::Status LayerFiles::CopyTensors(const std::string& path,
                                     const std::vector<std::string>& names) const {
  std::vector<TensorSpec> specs;
  for (const std::string& name : names) {
    const TensorInfo* info = source_->Find(name);
    if (!info->loadable) {
      return absl::UnimplementedError(absl::StrCat(source_->PathOf(name), ": tensor '", name,
                                                   "' has dtype ", info->stored_dtype,
                                                   ", which cannot be copied"));
    }
    specs.push_back({.name = name, .dtype = info->dtype, .shape = info->shape});
  }
  TW_ASSIGN_OR_RETURN(SafetensorsWriter writer, SafetensorsWriter::Create(path, specs));
  std::vector<std::byte> bytes;
  for (const TensorSpec& spec : specs) {
    const bool matrix = spec.shape.size() == 2;
    if (!matrix && spec.shape.size() != 1) {
      return absl::UnimplementedError(absl::StrCat(source_->PathOf(spec.name), ": tensor '",
                                                   spec.name, "' has ", spec.shape.size(),
                                                   " dimensions; expected 1 or 2"));
    }
    const int64_t row_bytes = DTypeBytes(spec.dtype, matrix ? spec.shape[1] : 1);
    const int64_t step = std::max<int64_t>(1, kCopyBytes / std::max<int64_t>(1, row_bytes));
    for (int64_t row = 0; row < spec.shape[0]; row += step) {
      const int64_t count = std::min(step, spec.shape[0] - row);
      bytes.resize(static_cast<size_t>(count * row_bytes));
      const TensorView out = matrix ? TensorView(bytes.data(), spec.dtype, {count, spec.shape[1]})
                                    : TensorView(bytes.data(), spec.dtype, {count});
      TW_RETURN_IF_ERROR(
          source_->Read(spec.name, spec.shape, {.rows = Range{row, row + count}}, out));
      TW_RETURN_IF_ERROR(writer.Append(spec.name, bytes));
    }
  }
  return writer.Commit();
}

absl::Status LayerFiles::Write(int64_t layer, const LayerResult& result) const {
  TW_RETURN_IF_ERROR(WriteSites(layer, result.codes));
  const std::string prefix = Prefix(layer);
  const std::string path = Path(FileName(layer));
  if (!result.quantises_weights()) {
    std::vector<std::string> names;
    for (const absl::string_view name : source_->Names()) {
      if (absl::StartsWith(name, prefix)) names.emplace_back(name);
    }
    return CopyTensors(path, names);
  }
  const LayerTensorNames names = DecoderSpecFor(*config_).layer;
  std::vector<TensorSpec> specs;
  std::vector<std::pair<std::string, const std::vector<float>*>> vectors;
  const auto add_vector = [&](const std::string& name, const std::vector<float>& values) {
    if (values.empty()) return;
    specs.push_back({name, DType::kF32, {static_cast<int64_t>(values.size())}});
    vectors.emplace_back(name, &values);
  };
  add_vector(prefix + names.attention_norm + ".weight", result.attention_norm.gain);
  add_vector(prefix + names.attention_norm + ".bias", result.attention_norm.offset);
  add_vector(prefix + names.mlp_norm + ".weight", result.mlp_norm.gain);
  add_vector(prefix + names.mlp_norm + ".bias", result.mlp_norm.offset);
  for (const LinearRole role : kLinearRoles) {
    add_vector(prefix + RoleName(names, role) + ".bias", result.bias(role));
  }
  for (const LinearRole role : kLinearRoles) {
    const GptqCodes& weight = result.weight(role);
    if (weight.codes.empty()) continue;
    for (TensorSpec& spec : GptqTensorSpecs(prefix + RoleName(names, role), weight.out_features,
                                            weight.in_features, weight.num_groups(), weight.bits)) {
      specs.push_back(std::move(spec));
    }
  }
  VptqConfig modules;
  for (const LinearRole role : kLinearRoles) {
    const VptqCodes& codes = result.vector(role);
    if (codes.indices.empty()) continue;
    const std::string name = prefix + RoleName(names, role);
    modules.layers[name] = VptqConfigOf(codes);
    for (TensorSpec& spec : VptqTensorSpecs(name, modules.layers[name])) {
      specs.push_back(std::move(spec));
    }
  }
  // Other programs want to be told that tensors lie as PyTorch's, where there is any metadata.
  std::map<std::string, std::string> metadata = {{"format", "pt"},
                                                 {kReportMetadata, ReportOf(result).dump()}};
  if (!modules.layers.empty()) metadata[kVptqMetadata] = VptqConfigJson(modules).dump();
  TW_ASSIGN_OR_RETURN(SafetensorsWriter writer, SafetensorsWriter::Create(path, specs, metadata));
  for (const auto& [name, values] : vectors) {
    TW_RETURN_IF_ERROR(writer.AppendValues<float>(name, *values));
  }
  for (const LinearRole role : kLinearRoles) {
    const GptqCodes& weight = result.weight(role);
    if (weight.codes.empty()) continue;
    const std::vector<int32_t>& order = result.codes.at(InputSite(role)).order;
    const std::vector<uint8_t> codes = InChannelOrder(weight, order);
    const int64_t rows = weight.out_features;
    TW_RETURN_IF_ERROR(AppendGptqLinear(
        writer, prefix + RoleName(names, role), gptq_,
        ConstTensorView(codes.data(), DType::kU8, {rows, weight.in_features}),
        ConstTensorView(weight.scales.data(), DType::kF32, {rows, weight.num_groups()}),
        ConstTensorView(weight.zeros.data(), DType::kU8, {rows, weight.num_groups()}),
        GroupIndex(weight, order)));
  }
  for (const LinearRole role : kLinearRoles) {
    if (result.vector(role).indices.empty()) continue;
    TW_RETURN_IF_ERROR(
        AppendVptqLinear(writer, prefix + RoleName(names, role), result.vector(role)));
  }
  return writer.Commit();
}

absl::StatusOr<LayerResult> LayerFiles::Read(int64_t layer, const DenseLayer& dense) const {
  LayerResult result;
  TW_ASSIGN_OR_RETURN(result.codes, ReadSites(layer));
  TW_ASSIGN_OR_RETURN(const Checkpoint written, Checkpoint::OpenFile(Path(FileName(layer))));
  const std::string prefix = Prefix(layer);
  const LayerTensorNames names = DecoderSpecFor(*config_).layer;
  TW_ASSIGN_OR_RETURN(const VptqConfig vptq, ReadModules(Path(FileName(layer))));
  if (vptq.layers.empty() && !HasGptqLinear(written, prefix + names.q)) return result;
  const auto read_vector = [&](const std::string& name,
                               std::vector<float>& values) -> absl::Status {
    const TensorInfo* info = written.Find(name);
    if (info == nullptr) return absl::OkStatus();
    values.resize(static_cast<size_t>(info->shape.front()));
    return written.Read(name, info->shape, {},
                        TensorView(values.data(), DType::kF32, {info->shape.front()}));
  };
  TW_ASSIGN_OR_RETURN(const nlohmann::json report, ReadReport(Path(FileName(layer))));
  for (const LinearRole role : kLinearRoles) {
    const nlohmann::json::json_pointer at(absl::StrCat("/", RoleWord(role), "/relative_error"));
    if (!report.contains(at) || !report[at].is_number()) continue;
    result.errors[static_cast<size_t>(role)] = report[at].get<double>();
  }
  TW_RETURN_IF_ERROR(
      read_vector(prefix + names.attention_norm + ".weight", result.attention_norm.gain));
  TW_RETURN_IF_ERROR(
      read_vector(prefix + names.attention_norm + ".bias", result.attention_norm.offset));
  TW_RETURN_IF_ERROR(read_vector(prefix + names.mlp_norm + ".weight", result.mlp_norm.gain));
  TW_RETURN_IF_ERROR(read_vector(prefix + names.mlp_norm + ".bias", result.mlp_norm.offset));
  for (const LinearRole role : kLinearRoles) {
    const DenseLinear& shape = dense.at(role);
    if (shape.empty()) continue;
    const std::string name = prefix + RoleName(names, role);
    TW_RETURN_IF_ERROR(read_vector(name + ".bias", result.bias(role)));
    if (const VptqLayerConfig* module = vptq.Find(name); module != nullptr) {
      TW_ASSIGN_OR_RETURN(
          const VptqLinear linear,
          VptqLinear::Open(&written, name, shape.out_features, shape.in_features, *module));
      TW_ASSIGN_OR_RETURN(const VptqWeights weights,
                          linear.ReadBlock({0, shape.out_features}, {0, shape.in_features}));
      std::vector<float>& values = result.read_vector(role);
      values.resize(shape.weight.size());
      for (int64_t o = 0; o < shape.out_features; ++o) {
        weights.DequantizeRow(
            o, absl::MakeSpan(values).subspan(o * shape.in_features, shape.in_features));
      }
      continue;
    }
    TW_ASSIGN_OR_RETURN(
        const GptqLinear linear,
        GptqLinear::Open(&written, name, shape.out_features, shape.in_features, gptq_));
    const std::vector<int32_t>& order = result.codes.at(InputSite(role)).order;
    GptqCodes& weight = result.weight(role);
    weight.out_features = shape.out_features;
    weight.in_features = shape.in_features;
    weight.bits = linear.bits();
    std::vector<uint8_t> codes(shape.out_features * shape.in_features);
    TW_RETURN_IF_ERROR(linear.ReadCodes(
        {0, shape.out_features}, {0, shape.in_features},
        TensorView(codes.data(), DType::kU8, {shape.out_features, shape.in_features})));
    weight.codes.resize(codes.size());
    for (int64_t o = 0; o < shape.out_features; ++o) {
      const int64_t row = o * shape.in_features;
      for (int64_t j = 0; j < shape.in_features; ++j) {
        weight.codes[row + j] = codes[row + order[j]];
      }
    }
    weight.group_offsets = {0};
    for (int64_t j = 1; j <= shape.in_features; ++j) {
      if (j == shape.in_features || linear.g_idx()[order[j]] != linear.g_idx()[order[j - 1]]) {
        weight.group_offsets.push_back(static_cast<int32_t>(j));
      }
    }
    const int64_t num_groups = linear.num_groups();
    weight.scales.resize(shape.out_features * num_groups);
    weight.zeros.resize(shape.out_features * num_groups);
    TW_RETURN_IF_ERROR(linear.ReadScales(
        {0, shape.out_features},
        TensorView(weight.scales.data(), DType::kF32, {shape.out_features, num_groups}),
        TensorView(weight.zeros.data(), DType::kU8, {shape.out_features, num_groups})));
  }
  return result;
}

absl::StatusOr<VptqConfig> LayerFiles::ReadModules(const std::string& path) {
  TW_ASSIGN_OR_RETURN(const SafetensorsFile file, SafetensorsFile::Open(path));
  const auto found = file.metadata().find(kVptqMetadata);
  if (found == file.metadata().end()) return VptqConfig();
  const nlohmann::json json =
      nlohmann::json::parse(found->second, nullptr, /*allow_exceptions=*/false);
  TW_ASSIGN_OR_RETURN(const JsonFields fields,
                      JsonFields::Create(json, absl::StrCat(path, ": \"", kVptqMetadata, "\"")));
  return ParseVptqConfig(fields);
}

absl::StatusOr<nlohmann::json> LayerFiles::ReadReport(const std::string& path) {
  TW_ASSIGN_OR_RETURN(const SafetensorsFile file, SafetensorsFile::Open(path));
  const auto found = file.metadata().find(kReportMetadata);
  if (found == file.metadata().end()) return nlohmann::json::object();
  return nlohmann::json::parse(found->second, nullptr, /*allow_exceptions=*/false);
}

absl::StatusOr<std::optional<VptqConfig>> LayerFiles::ReadVptqConfig() const {
  VptqConfig all;
  for (int64_t layer = 0; layer < config_->num_layers; ++layer) {
    TW_ASSIGN_OR_RETURN(VptqConfig modules, ReadModules(Path(FileName(layer))));
    all.layers.merge(modules.layers);
  }
  if (all.layers.empty()) return std::nullopt;
  return all;
}

absl::Status LayerFiles::WriteEnds() const {
  std::vector<std::string> names;
  for (const absl::string_view name : source_->Names()) {
    bool of_a_layer = false;
    for (int64_t layer = 0; layer < config_->num_layers && !of_a_layer; ++layer) {
      of_a_layer = absl::StartsWith(name, Prefix(layer));
    }
    if (!of_a_layer) names.emplace_back(name);
  }
  return CopyTensors(Path(FileName(config_->num_layers)), names);
}

absl::Status LayerFiles::Finish() const {
  RptqFile sites = {.tp = tp_};
  nlohmann::ordered_json weight_map;
  nlohmann::json reports = nlohmann::json::array();
  int64_t total_bytes = 0;
  for (int64_t file = 0; file < num_files(); ++file) {
    const std::string name = FileName(file);
    TW_ASSIGN_OR_RETURN(const SafetensorsFile opened, SafetensorsFile::Open(Path(name)));
    for (const TensorInfo& tensor : opened.tensors()) {
      weight_map[tensor.name] = name;
      total_bytes += tensor.size_bytes;
    }
    if (file == config_->num_layers) break;
    TW_ASSIGN_OR_RETURN(nlohmann::json report, ReadReport(Path(name)));
    reports.push_back(std::move(report));
    TW_ASSIGN_OR_RETURN(LayerCodes codes, ReadSites(file));
    sites.layers.push_back(std::move(codes));
  }
  TW_RETURN_IF_ERROR(WriteRptqFile(dir_, sites, *config_));
  TW_RETURN_IF_ERROR(
      WriteFileAtomically(Path(kReportName), nlohmann::json{{"layers", reports}}.dump(2) + "\n"));
  const nlohmann::ordered_json index = {{"metadata", {{"total_size", total_bytes}}},
                                        {"weight_map", weight_map}};
  TW_RETURN_IF_ERROR(
      WriteFileAtomically(Path("model.safetensors.index.json"), index.dump(2) + "\n"));
  for (int64_t layer = 0; layer < config_->num_layers; ++layer) {
    std::error_code ignored;  // what is left over does no harm
    std::filesystem::remove_all(SitesDir(layer), ignored);
  }
  return absl::OkStatus();
}

}  // namespace thinwire
