#include "runtime/quantizer/dense_layer.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/convert/convert.h"
#include "kernels/core/check.h"
#include "kernels/core/copy.h"
#include "kernels/core/status_macros.h"
#include "parallel/plan/shard_plan.h"
#include "runtime/checkpoint/decoder_shape.h"
#include "runtime/model/decoder_spec.h"

namespace thinwire {
namespace {

std::vector<float> Values(const Tensor& tensor) {
  if (tensor.empty()) return {};
  const ConstTensorView view = tensor.view();
  std::vector<float> values(view.num_elements());
  ConvertToFloat(view.raw(), view.dtype(), values.data(), view.num_elements());
  return values;
}

// Rows [first, first + count) of a stacked matrix and its bias.
DenseLinear Part(const std::vector<float>& weight, const std::vector<float>& bias, int64_t first,
                 int64_t count, int64_t in_features) {
  DenseLinear linear;
  linear.out_features = count;
  linear.in_features = in_features;
  linear.weight.assign(weight.begin() + first * in_features,
                       weight.begin() + (first + count) * in_features);
  if (!bias.empty()) linear.bias.assign(bias.begin() + first, bias.begin() + first + count);
  return linear;
}

absl::Status CheckFinite(const DenseLinear& linear, int64_t layer, absl::string_view name) {
  for (int64_t o = 0; o < linear.out_features; ++o) {
    const absl::Span<const float> row = linear.row(o);
    for (int64_t i = 0; i < linear.in_features; ++i) {
      if (std::isfinite(row[i])) continue;
      return absl::InvalidArgumentError(absl::StrCat("layer ", layer, ": ", name, ".weight [", o,
                                                     ", ", i, "] is ", row[i],
                                                     "; expected a finite number"));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<Tensor> VectorTensor(const std::vector<float>& values, Stream& stream) {
  if (values.empty()) return Tensor();
  const auto size = static_cast<int64_t>(values.size());
  TW_ASSIGN_OR_RETURN(Tensor tensor, Tensor::Allocate(DType::kF32, {size}, stream.device()));
  TW_RETURN_IF_ERROR(
      Copy(ConstTensorView(values.data(), DType::kF32, {size}), tensor.mutable_view(), stream));
  return tensor;
}

absl::StatusOr<LinearWeights> ToLinearWeights(const DenseLinear& linear, Stream& stream) {
  LinearWeights weights;
  TW_ASSIGN_OR_RETURN(
      weights.weight,
      Tensor::Allocate(DType::kF32, {linear.out_features, linear.in_features}, stream.device()));
  TW_RETURN_IF_ERROR(Copy(
      ConstTensorView(linear.weight.data(), DType::kF32, {linear.out_features, linear.in_features}),
      weights.weight.mutable_view(), stream));
  TW_ASSIGN_OR_RETURN(weights.bias, VectorTensor(linear.bias, stream));
  return weights;
}

// Where LayerRunner looks for the projections that read a site.
std::vector<LinearWeights>& ReadersOf(QuantSite site, LayerWeights& weights) {
  return site == QuantSite::kOutIn    ? weights.out
         : site == QuantSite::kDownIn ? weights.down
         : site == QuantSite::kMlpIn  ? weights.up
                                      : weights.qkv;
}

}  // namespace

std::vector<double> ColumnSquares(const std::vector<const DenseLinear*>& readers, int64_t width,
                                  ThreadPool* pool) {
  std::vector<double> squares(width, 0.0);
  const auto add = [&](int64_t begin, int64_t end) {
    for (const DenseLinear* reader : readers) {
      for (int64_t o = 0; o < reader->out_features; ++o) {
        const absl::Span<const float> row = reader->row(o);
        for (int64_t c = begin; c < end; ++c) squares[c] += double{row[c]} * double{row[c]};
      }
    }
  };
  if (pool == nullptr) {
    add(0, width);
  } else {
    pool->ParallelFor(width, 64, add);
  }
  return squares;
}

absl::string_view RoleWord(LinearRole role) {
  constexpr std::array<absl::string_view, kLinearRoles.size()> kWords = {"q",    "k",  "v",   "out",
                                                                         "gate", "up", "down"};
  return kWords[static_cast<size_t>(role)];
}

QuantSite InputSite(LinearRole role) {
  switch (role) {
    case LinearRole::kQ:
    case LinearRole::kK:
    case LinearRole::kV:
      return QuantSite::kQkvIn;
    case LinearRole::kOut:
      return QuantSite::kOutIn;
    case LinearRole::kGate:
    case LinearRole::kUp:
      return QuantSite::kMlpIn;
    case LinearRole::kDown:
      return QuantSite::kDownIn;
  }
  TW_CHECK(false);
}

absl::StatusOr<DenseLayer> LoadDenseLayer(const Checkpoint& checkpoint, const ModelConfig& config,
                                          int64_t layer) {
  const DecoderShape shape = ShapeOf(config);
  TW_ASSIGN_OR_RETURN(const ShardPlan plan, ShardPlan::Create(shape, Mesh{1, 1}, 0));
  TW_ASSIGN_OR_RETURN(const LayerWeights weights,
                      LoadDecoderLayer(checkpoint, config, plan, layer));
  const LayerTensorNames names = DecoderSpecFor(config).layer;
  DenseLayer dense;
  dense.attention_norm = {Values(weights.attention_norm.weight),
                          Values(weights.attention_norm.bias)};
  dense.mlp_norm = {Values(weights.mlp_norm.weight), Values(weights.mlp_norm.bias)};
  const int64_t q_rows = config.num_heads * config.head_dim;
  const int64_t kv_rows = config.num_kv_heads * config.head_dim;
  {
    const std::vector<float> weight = Values(weights.qkv.front().weight);
    const std::vector<float> bias = Values(weights.qkv.front().bias);
    dense.at(LinearRole::kQ) = Part(weight, bias, 0, q_rows, config.hidden);
    dense.at(LinearRole::kK) = Part(weight, bias, q_rows, kv_rows, config.hidden);
    dense.at(LinearRole::kV) = Part(weight, bias, q_rows + kv_rows, kv_rows, config.hidden);
  }
  dense.at(LinearRole::kOut) = Part(Values(weights.out.front().weight),
                                    Values(weights.out.front().bias), 0, config.hidden, q_rows);
  {
    const std::vector<float> weight = Values(weights.up.front().weight);
    const std::vector<float> bias = Values(weights.up.front().bias);
    const int64_t up_first = names.gate.empty() ? 0 : config.ffn;
    if (!names.gate.empty()) {
      dense.at(LinearRole::kGate) = Part(weight, bias, 0, config.ffn, config.hidden);
    }
    dense.at(LinearRole::kUp) = Part(weight, bias, up_first, config.ffn, config.hidden);
  }
  dense.at(LinearRole::kDown) =
      Part(Values(weights.down.front().weight), Values(weights.down.front().bias), 0, config.hidden,
           config.ffn);
  const std::array<const std::string*, kLinearRoles.size()> projection_names = {
      &names.q, &names.k, &names.v, &names.out, &names.gate, &names.up, &names.down};
  for (const LinearRole role : kLinearRoles) {
    const absl::Status status =
        CheckFinite(dense.at(role), layer, *projection_names[static_cast<size_t>(role)]);
    if (!status.ok()) return Annotate(status, checkpoint.dir());
  }
  return dense;
}

absl::StatusOr<LayerWeights> ToLayerWeights(const DenseLayer& layer, Stream& stream) {
  LayerWeights weights;
  TW_ASSIGN_OR_RETURN(weights.attention_norm.weight,
                      VectorTensor(layer.attention_norm.gain, stream));
  TW_ASSIGN_OR_RETURN(weights.attention_norm.bias,
                      VectorTensor(layer.attention_norm.offset, stream));
  TW_ASSIGN_OR_RETURN(weights.mlp_norm.weight, VectorTensor(layer.mlp_norm.gain, stream));
  TW_ASSIGN_OR_RETURN(weights.mlp_norm.bias, VectorTensor(layer.mlp_norm.offset, stream));
  for (const QuantSite site :
       {QuantSite::kQkvIn, QuantSite::kOutIn, QuantSite::kMlpIn, QuantSite::kDownIn}) {
    TW_RETURN_IF_ERROR(ReplaceReaders(layer, site, weights, stream));
  }
  return weights;
}

absl::Status ReplaceReaders(const DenseLayer& layer, QuantSite site, LayerWeights& weights,
                            Stream& stream) {
  std::vector<LinearWeights>& readers = ReadersOf(site, weights);
  readers.clear();
  for (const LinearRole role : kLinearRoles) {
    if (InputSite(role) != site || layer.at(role).empty()) continue;
    TW_ASSIGN_OR_RETURN(LinearWeights converted, ToLinearWeights(layer.at(role), stream));
    readers.push_back(std::move(converted));
  }
  return stream.Synchronize();
}

}  // namespace thinwire
