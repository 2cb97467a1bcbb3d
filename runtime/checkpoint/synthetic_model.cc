#include "runtime/checkpoint/synthetic_model.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "kernels/core/status_macros.h"
#include "nlohmann/json.hpp"
#include "runtime/checkpoint/known_shapes.h"
#include "runtime/checkpoint/quant_scheme.h"
#include "runtime/json/json_file.h"

namespace thinwire {
namespace {

constexpr absl::string_view kPrefix = "synthetic:";
constexpr int64_t kGroupSize = 128;
constexpr int64_t kMaxCluster = 256;
constexpr int64_t kMinCluster = 16;
constexpr float kRange = 4.0f;           // activations are coded in [-kRange, kRange]
constexpr float kResidualScale = 0.25f;  // of residual centroids
constexpr float kOffsetScale = 0.05f;    // of columns' offsets, in their scales
constexpr int64_t kPositionOffset = 2;   // rows of OPT's position table that belong to padding

struct Name {
  std::string shape;
  QuantScheme scheme;
  uint64_t seed = 0;
};

absl::StatusOr<Name> ParseName(const std::string& model) {
  const std::vector<std::string> parts = absl::StrSplit(absl::StripPrefix(model, kPrefix), ':');
  Name name = {.shape = parts[0]};
  if (parts.size() > 3 || name.shape.empty()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "--model: expected synthetic:SHAPE[:SCHEME[:SEED]], found ", QuotedForMessage(model)));
  }
  if (parts.size() > 1) {
    absl::StatusOr<QuantScheme> scheme = ParseScheme(parts[1]);
    if (!scheme.ok()) return Annotate(scheme.status(), absl::StrCat("--model ", model));
    if (scheme->vptq.centibits > 0) {
      return absl::UnimplementedError(absl::StrCat(
          "--model ", model, ": synthetic weights of ", parts[1],
          " are not supported, since shapes within a budget are chosen by what a model loses; "
          "supported: w16a16, w4a16, vptq-v8-k4096-r256 and the like"));
    }
    name.scheme = *scheme;
  }
  if (parts.size() > 2 && !absl::SimpleAtoi(parts[2], &name.seed)) {
    return absl::InvalidArgumentError(
        absl::StrCat("--model ", model, ": expected a seed, found ", QuotedForMessage(parts[2])));
  }
  return name;
}

absl::StatusOr<nlohmann::json> ShapeJson(const std::string& shape) {
  absl::StatusOr<nlohmann::json> known = KnownShapeConfig(shape);
  if (known.ok()) return known;
  absl::StatusOr<nlohmann::json> read =
      ReadJsonFile(absl::EndsWith(shape, ".json") ? shape : absl::StrCat(shape, "/config.json"));
  if (absl::IsNotFound(read.status())) return known.status();
  TW_RETURN_IF_ERROR(read.status());
  if (read->is_object()) read->erase("quantization_config");
  return read;
}

// What the tensors of a family are called.
struct TensorNames {
  const char* prefix;
  const char* attention_norm;
  const char* out;
  const char* mlp_norm;
  std::vector<const char*> up;
  const char* down;
  const char* final_norm;
  bool norm_bias;
};

TensorNames NamesOf(const ModelConfig& config) {
  if (config.family == ModelFamily::kOpt) {
    return {"model.decoder.",
            "self_attn_layer_norm",
            "self_attn.out_proj",
            "final_layer_norm",
            {"fc1"},
            "fc2",
            "final_layer_norm",
            true};
  }
  return {"model.",
          "input_layernorm",
          "self_attn.o_proj",
          "post_attention_layernorm",
          {"mlp.gate_proj", "mlp.up_proj"},
          "mlp.down_proj",
          "norm",
          false};
}

class TensorList {
 public:
  // byte_books: of vectors.
  TensorList(const ModelConfig& config, uint64_t seed, bool byte_books)
      : config_(config), seed_(seed), byte_books_(byte_books) {}

  void Add(std::string name, DType dtype, std::vector<int64_t> shape, SyntheticFill fill,
           float scale, int code_bits = 4) {
    SyntheticTensor tensor = {
        .fill = fill, .scale = scale, .code_bits = code_bits, .code = 1u << (code_bits - 1)};
    tensor.info.name = std::move(name);
    tensor.info.stored_dtype = std::string(StoredDTypeName(dtype));
    tensor.info.loadable = true;
    tensor.info.dtype = dtype;
    tensor.info.size_bytes = std::accumulate(shape.begin(), shape.end(), DTypeBytes(dtype, 1),
                                             std::multiplies<int64_t>());
    tensor.info.shape = std::move(shape);
    // Streams of SplitMix64 that are far apart.
    tensor.seed = (seed_ * 0x10001 + tensors_.size() + 1) * 0xd1342543de82ef95;
    tensors_.push_back(std::move(tensor));
  }

  void AddMatrix(const std::string& name, int64_t rows, int64_t columns, double fan_in) {
    Add(name + ".weight", config_.weights_dtype, {rows, columns}, SyntheticFill::kNormal,
        static_cast<float>(1.0 / std::sqrt(fan_in)));
  }

  void AddNorm(const std::string& name, bool bias) {
    if (!config_.norm_affine) return;
    Add(name + ".weight", config_.weights_dtype, {config_.hidden}, SyntheticFill::kConstant, 1.0f);
    if (bias) AddBias(name, config_.hidden);
  }

  void AddLinear(const std::string& name, int64_t out, int64_t in, bool bias) {
    if (config_.vptq.has_value()) {
      AddVectors(name, out, in, *config_.vptq->Find(name));
    } else if (config_.gptq.has_value()) {
      const int bits = config_.gptq->bits;
      const int64_t groups = (in + kGroupSize - 1) / kGroupSize;
      const auto words = [bits](int64_t n) { return (n * bits + 31) / 32; };
      // Codes are even in [0, 2^bits): a standard deviation of 2^bits / sqrt(12).
      const double deviation = std::exp2(bits) / std::sqrt(12.0);
      Add(name + ".qweight", DType::kI32, {words(in), out}, SyntheticFill::kBits, 1.0f);
      // The mean code lies half a step from any zero: with zeros on both sides of it in turns, what
      // outputs share cancels out, layer after layer. With one zero for all it grows beyond fp16.
      Add(name + ".qzeros", DType::kI32, {groups, words(out)}, SyntheticFill::kCodes, 1.0f, bits);
      Add(name + ".scales", DType::kF16, {groups, out}, SyntheticFill::kUniform,
          static_cast<float>(1.0 / (deviation * std::sqrt(static_cast<double>(in)))));
    } else {
      AddMatrix(name, out, in, static_cast<double>(in));
    }
    if (bias) AddBias(name, out);
  }

  std::vector<SyntheticTensor> Take() { return std::move(tensors_); }

 private:
  // Books and columns' scales are normal, so that what outputs have in common, a book's mean, has
  // no sign over the columns.
  void AddVectors(const std::string& name, int64_t out, int64_t in, const VptqLayerConfig& config) {
    const auto unit = static_cast<float>(1.0 / std::sqrt(static_cast<double>(in)));
    const float norm = config.norm ? 1.0f : unit;
    const auto book = [&](const char* part, int64_t books, int bits, int length, float scale) {
      Add(absl::StrCat(name, part), DType::kF16, {books, (int64_t{1} << bits) * length},
          byte_books_ ? SyntheticFill::kBytes : SyntheticFill::kNormal, scale * norm);
    };
    const auto rows = [out](int length) { return (out + length - 1) / length; };
    const int64_t size = (in - config.outlier_size) / config.num_groups;
    Add(name + ".indices", DType::kI32,
        {config.num_groups, rows(config.length), (size * config.code_bits() + 31) / 32},
        SyntheticFill::kBits, 1.0f);
    book(".centroids.weight", config.num_groups, config.index_bits, config.length, 1.0f);
    if (config.residual) {
      book(".res_centroids.weight", config.num_groups, config.residual_bits, config.length,
           kResidualScale);
    }
    if (config.outlier_size > 0) {
      Add(name + ".outlier_indices", DType::kI16,
          {1, rows(config.outlier_length), config.outlier_size}, SyntheticFill::kBits, 1.0f,
          config.outlier_bits);
      book(".outlier_centroids.weight", 1, config.outlier_bits, config.outlier_length, 1.0f);
    }
    if (!config.norm) return;
    Add(name + ".weight_scale", DType::kF16, {in}, SyntheticFill::kNormal, unit);
    Add(name + ".weight_bias", DType::kF16, {in}, SyntheticFill::kNormal, kOffsetScale * unit);
  }

  void AddBias(const std::string& name, int64_t size) {
    Add(name + ".bias", config_.weights_dtype, {size}, SyntheticFill::kNormal, 0.01f);
  }

  const ModelConfig& config_;
  const uint64_t seed_;
  const bool byte_books_;
  std::vector<SyntheticTensor> tensors_;
};

void AddLayer(const ModelConfig& config, const TensorNames& names, const std::string& prefix,
              TensorList& list) {
  const int64_t hidden = config.hidden;
  const int64_t q_rows = config.num_heads * config.head_dim;
  const int64_t kv_rows = config.num_kv_heads * config.head_dim;
  list.AddNorm(prefix + names.attention_norm, names.norm_bias);
  list.AddLinear(prefix + "self_attn.q_proj", q_rows, hidden, config.attention_bias);
  list.AddLinear(prefix + "self_attn.k_proj", kv_rows, hidden, config.attention_bias);
  list.AddLinear(prefix + "self_attn.v_proj", kv_rows, hidden, config.attention_bias);
  list.AddLinear(prefix + names.out, hidden, q_rows, config.attention_out_bias);
  list.AddNorm(prefix + names.mlp_norm, names.norm_bias);
  for (const char* up : names.up) list.AddLinear(prefix + up, config.ffn, hidden, config.mlp_bias);
  list.AddLinear(prefix + names.down, hidden, config.ffn, config.mlp_bias);
}

VptqLayerConfig VectorsOf(const VptqShape& shape, int64_t in) {
  return {.length = shape.length,
          .index_bits = shape.index_bits,
          .residual = shape.residual,
          .residual_bits = shape.residual_bits,
          .outlier_size = (in * shape.outlier_percent + 99) / 100,
          .outlier_length = shape.outlier_length,
          .outlier_bits = shape.outlier_bits,
          .num_groups = shape.num_groups,
          .norm = shape.norm};
}

// Every projection in vectors of `shape`. InvalidArgument: groups that its columns do not fill.
absl::StatusOr<VptqConfig> VptqConfigOf(const ModelConfig& config, const VptqShape& shape) {
  const TensorNames names = NamesOf(config);
  VptqConfig vptq;
  const auto add = [&](absl::string_view name, int64_t in) -> absl::Status {
    const VptqLayerConfig layer = VectorsOf(shape, in);
    const int64_t rest = in - layer.outlier_size;
    if (rest % layer.num_groups != 0) {
      return absl::InvalidArgumentError(
          absl::StrCat("expected ", layer.num_groups, " equal groups of ", name, "'s ", rest,
                       " columns beside ", layer.outlier_size, " outliers"));
    }
    vptq.shared[std::string(absl::StripPrefix(absl::StripPrefix(name, "self_attn."), "mlp."))] =
        layer;
    return absl::OkStatus();
  };
  for (const char* name : {"q_proj", "k_proj", "v_proj"}) {
    TW_RETURN_IF_ERROR(add(name, config.hidden));
  }
  TW_RETURN_IF_ERROR(add(names.out, config.num_heads * config.head_dim));
  for (const char* name : names.up) TW_RETURN_IF_ERROR(add(name, config.hidden));
  TW_RETURN_IF_ERROR(add(names.down, config.ffn));
  return vptq;
}

// The largest of 8, 4, 2, 1 blocks that down_in can be cut into, with clusters of at least 16.
int BlocksOf(const ModelConfig& config) {
  for (const int tp : {8, 4, 2}) {
    if (config.ffn % (tp * kMinCluster) == 0) return tp;
  }
  return 1;
}

absl::StatusOr<SiteCodes> MakeSite(const ModelConfig& config, QuantSite site, int bits, int tp) {
  const int64_t width = SiteWidth(config, site);
  const int64_t block = SiteBlock(config, site, tp);
  int64_t cluster = kMaxCluster;
  while (cluster >= kMinCluster && block % cluster != 0) cluster /= 2;
  if (cluster < kMinCluster) {
    return absl::InvalidArgumentError(absl::StrCat("expected a multiple of ", kMinCluster,
                                                   " channels that stay together at ",
                                                   SiteName(site), ", found ", block));
  }
  SiteCodes codes;
  codes.order.resize(width);
  std::iota(codes.order.begin(), codes.order.end(), 0);
  for (int64_t begin = 0; begin <= width; begin += cluster) {
    codes.offsets.push_back(static_cast<int32_t>(begin));
  }
  codes.bits.assign(width / cluster, static_cast<uint8_t>(bits));
  const auto last_code = static_cast<float>((1 << bits) - 1);
  codes.step.assign(width, 2 * kRange / last_code);
  codes.zero.assign(width, last_code / 2);
  return codes;
}

}  // namespace

bool IsSyntheticModel(absl::string_view model) { return absl::StartsWith(model, kPrefix); }

absl::StatusOr<ModelConfig> SyntheticConfig(const std::string& model) {
  TW_ASSIGN_OR_RETURN(const Name name, ParseName(model));
  const absl::StatusOr<nlohmann::json> shape = ShapeJson(name.shape);
  if (!shape.ok()) return Annotate(shape.status(), absl::StrCat("--model ", model));
  TW_ASSIGN_OR_RETURN(ModelConfig config, ParseModelConfig(*shape, model));
  config.eos_token_ids.clear();
  if (name.scheme.weight_format() == WeightFormat::kGptq) {
    config.gptq = GptqConfig{.bits = name.scheme.weight_bits,
                             .group_size = kGroupSize,
                             .sym = false,
                             .zeros_as_they_are = true};
  }
  if (name.scheme.weight_format() == WeightFormat::kVptq) {
    absl::StatusOr<VptqConfig> vptq = VptqConfigOf(config, name.scheme.vptq);
    if (!vptq.ok()) return Annotate(vptq.status(), absl::StrCat("--model ", model));
    config.vptq = *std::move(vptq);
  }
  return config;
}

absl::StatusOr<std::string> SyntheticConfigText(const std::string& model) {
  TW_ASSIGN_OR_RETURN(const Name name, ParseName(model));
  TW_ASSIGN_OR_RETURN(const nlohmann::json shape, ShapeJson(name.shape));
  return shape.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

absl::StatusOr<Quantisation> SyntheticQuantisation(const std::string& model,
                                                   const ModelConfig& config) {
  TW_ASSIGN_OR_RETURN(const Name name, ParseName(model));
  Quantisation quantisation;
  if (name.scheme == QuantScheme()) return quantisation;
  quantisation.made = ThinwireFile{.scheme = name.scheme,
                                   .group_size = kGroupSize,
                                   .act_order = false,
                                   .seed = static_cast<int64_t>(name.seed >> 1),
                                   .tp = name.scheme.has_codes() ? BlocksOf(config) : 0,
                                   .tool_version = "(synthetic)"};
  LayerCodes layer;
  for (const QuantSite site : kQuantSites) {
    const int bits = SiteBits(name.scheme, site);
    if (bits >= 16) continue;
    absl::StatusOr<SiteCodes> codes = MakeSite(config, site, bits, quantisation.made->tp);
    if (!codes.ok()) return Annotate(codes.status(), absl::StrCat("--model ", model));
    layer.at(site) = *std::move(codes);
  }
  quantisation.rptq =
      RptqFile{quantisation.made->tp, std::vector<LayerCodes>(config.num_layers, std::move(layer))};
  return quantisation;
}

absl::StatusOr<std::vector<SyntheticTensor>> SyntheticTensors(const std::string& model) {
  TW_ASSIGN_OR_RETURN(const Name name, ParseName(model));
  TW_ASSIGN_OR_RETURN(const ModelConfig config, SyntheticConfig(model));
  const TensorNames names = NamesOf(config);
  const std::string prefix = names.prefix;
  const int64_t hidden = config.hidden;
  TensorList list(config, name.seed, name.scheme.vptq.byte_books);
  list.AddMatrix(prefix + "embed_tokens", config.vocab, config.embed_dim, 1.0);
  if (config.family == ModelFamily::kOpt) {
    list.AddMatrix(prefix + "embed_positions", config.max_positions + kPositionOffset, hidden, 1.0);
  }
  if (config.embed_dim != hidden) {
    list.AddMatrix(prefix + "project_in", hidden, config.embed_dim, config.embed_dim);
    list.AddMatrix(prefix + "project_out", config.embed_dim, hidden, hidden);
  }
  for (int64_t layer = 0; layer < config.num_layers; ++layer) {
    AddLayer(config, names, absl::StrCat(prefix, "layers.", layer, "."), list);
  }
  if (config.final_norm) list.AddNorm(prefix + names.final_norm, names.norm_bias);
  if (!config.tie_embeddings) {
    list.AddMatrix("lm_head", config.vocab, config.embed_dim, config.embed_dim);
  }
  return list.Take();
}

}  // namespace thinwire
