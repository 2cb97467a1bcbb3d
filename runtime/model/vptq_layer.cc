#include "runtime/model/vptq_layer.h"

#include <string>
#include <vector>

#include "kernels/core/status_macros.h"
#include "runtime/checkpoint/vptq_tensors.h"

namespace thinwire {
namespace {

// Output features part.rows of a projection for its input features `columns`.
absl::Status ReadProjection(const LayerSource& source, const ProjectionRows& part,
                            int64_t in_features, Range columns, bool bias,
                            std::vector<LinearWeights>& linears) {
  const WeightReader& reader = *source.reader;
  LinearWeights& out = linears.emplace_back();
  const VptqLayerConfig* config = source.config->vptq->Find(part.name);
  if (config == nullptr) return reader.ReadBlock(part, in_features, columns, bias, out);
  TW_ASSIGN_OR_RETURN(
      const VptqLinear linear,
      VptqLinear::Open(&reader.checkpoint(), part.name, part.total_rows, in_features, *config));
  TW_ASSIGN_OR_RETURN(out.vptq, linear.ReadBlock(part.rows, columns));
  return bias ? reader.ReadBias(part, out) : absl::OkStatus();
}

}  // namespace

absl::Status ReadVptqLayer(const LayerSource& source, LayerWeights& out) {
  const ModelConfig& config = *source.config;
  const ShardPlan& plan = *source.plan;
  const LayerTensorNames& names = source.spec->layer;
  const WeightReader& reader = *source.reader;
  const auto name = [&](const std::string& tensor) { return source.prefix + tensor; };
  const auto features = [&](Range heads) {
    return Range{heads.begin * config.head_dim, heads.end * config.head_dim};
  };
  const int64_t hidden = config.hidden;
  const int64_t q_rows = config.num_heads * config.head_dim;
  const int64_t kv_rows = config.num_kv_heads * config.head_dim;
  const Range residual = plan.ResidualChannels(hidden);
  const bool residual_bias = plan.adds_residual_bias();
  TW_RETURN_IF_ERROR(reader.ReadNorm(name(names.attention_norm), config.norm_affine,
                                     source.spec->norm_has_bias, out.attention_norm));
  const std::vector<ProjectionRows> qkv = {{name(names.q), q_rows, features(plan.heads())},
                                           {name(names.k), kv_rows, features(plan.kv_heads())},
                                           {name(names.v), kv_rows, features(plan.kv_heads())}};
  for (const ProjectionRows& part : qkv) {
    TW_RETURN_IF_ERROR(
        ReadProjection(source, part, hidden, {0, hidden}, config.attention_bias, out.qkv));
  }
  TW_RETURN_IF_ERROR(ReadProjection(source, {name(names.out), hidden, residual}, q_rows,
                                    features(plan.out_heads()),
                                    residual_bias && config.attention_out_bias, out.out));
  TW_RETURN_IF_ERROR(reader.ReadNorm(name(names.mlp_norm), config.norm_affine,
                                     source.spec->norm_has_bias, out.mlp_norm));
  for (const std::string& projection : {names.gate, names.up}) {
    if (projection.empty()) continue;
    TW_RETURN_IF_ERROR(ReadProjection(source, {name(projection), config.ffn, plan.ffn()}, hidden,
                                      {0, hidden}, config.mlp_bias, out.up));
  }
  TW_RETURN_IF_ERROR(ReadProjection(source, {name(names.down), hidden, residual}, config.ffn,
                                    plan.down_ffn(), residual_bias && config.mlp_bias, out.down));
  return ReadSitesOfDenseLayer(source, out);
}

}  // namespace thinwire
