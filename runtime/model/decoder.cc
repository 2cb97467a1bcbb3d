#include "runtime/model/decoder.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "kernels/activation/activation.h"
#include "kernels/attention/paged_attention.h"
#include "kernels/convert/convert.h"
#include "kernels/core/check.h"
#include "kernels/core/status_macros.h"
#include "kernels/embedding/embedding.h"
#include "kernels/linear/linear.h"
#include "kernels/norm/norm.h"
#include "kernels/rope/rope.h"
#include "runtime/model/rope_frequencies.h"

namespace thinwire {
namespace {

ConstTensorView Ids(absl::Span<const int32_t> ids) {
  return ConstTensorView(ids.data(), DType::kI32, {static_cast<int64_t>(ids.size())});
}

absl::Status ApplyLinear(const LinearWeights& weights, ConstTensorView x, TensorView y,
                         Stream& stream) {
  return Linear({.x = x, .weight = weights.weight.view(), .bias = weights.bias.view(), .y = y},
                stream);
}

}  // namespace

absl::StatusOr<Decoder> Decoder::Create(const ModelConfig& config, const ShardPlan& plan,
                                        DecoderWeights weights, DType dtype, int64_t max_tokens,
                                        Device device) {
  TW_CHECK(IsFloat(dtype));
  Decoder decoder;
  decoder.config_ = config;
  decoder.spec_ = DecoderSpecFor(config);
  decoder.plan_ = plan;
  decoder.dtype_ = dtype;
  decoder.device_ = device;
  decoder.weights_ = std::move(weights);
  const int64_t hidden = config.hidden;
  const int64_t q_width = plan.heads().size() * config.head_dim;
  const int64_t kv_width = plan.kv_heads().size() * config.head_dim;
  const int64_t up_width = plan.ffn().size() * (decoder.spec_.layer.gate.empty() ? 1 : 2);
  const auto allocate = [&](Tensor& tensor, int64_t width, DType type) -> absl::Status {
    TW_ASSIGN_OR_RETURN(tensor, Tensor::Allocate(type, {max_tokens, width}, device));
    return absl::OkStatus();
  };
  TW_RETURN_IF_ERROR(allocate(decoder.x_, hidden, dtype));
  TW_RETURN_IF_ERROR(allocate(decoder.normed_, hidden, dtype));
  TW_RETURN_IF_ERROR(allocate(decoder.delta_, hidden, dtype));
  TW_RETURN_IF_ERROR(allocate(decoder.qkv_, q_width + 2 * kv_width, dtype));
  TW_RETURN_IF_ERROR(allocate(decoder.attended_, q_width, dtype));
  TW_RETURN_IF_ERROR(allocate(decoder.mlp_, up_width, dtype));
  if (plan.first_stage() && config.embed_dim != hidden) {
    TW_RETURN_IF_ERROR(allocate(decoder.embedded_, config.embed_dim, dtype));
  }
  if (plan.last_stage()) {
    TW_RETURN_IF_ERROR(allocate(decoder.outputs_, hidden, DType::kF32));
    const int64_t rows = std::min(max_tokens, kMaxLogitRows);
    if (config.embed_dim != hidden) {
      TW_ASSIGN_OR_RETURN(decoder.projected_,
                          Tensor::Allocate(DType::kF32, {rows, config.embed_dim}, device));
    }
    if (plan.mesh().tp_size > 1) {
      TW_ASSIGN_OR_RETURN(decoder.logits_part_,
                          Tensor::Allocate(DType::kF32, {rows, plan.VocabOf(0).size()}, device));
    }
  }
  if (decoder.spec_.rope) {
    const std::vector<float> frequencies = RopeFrequencies(config.rope, config.head_dim);
    TW_ASSIGN_OR_RETURN(
        decoder.inv_freq_,
        Tensor::Allocate(DType::kF32, {static_cast<int64_t>(frequencies.size())}, device));
    std::copy(frequencies.begin(), frequencies.end(),
              decoder.inv_freq_.mutable_view().mutable_data<float>());
  }
  return decoder;
}

KvCacheShape Decoder::CacheShape(int64_t page_size) const {
  return {.num_layers = plan_.layers().size(),
          .num_kv_heads = plan_.kv_heads().size(),
          .head_dim = config_.head_dim,
          .page_size = page_size,
          .dtype = dtype_};
}

int64_t Decoder::activation_bytes() const {
  int64_t bytes = 0;
  for (const Tensor* tensor : {&x_, &normed_, &delta_, &embedded_, &qkv_, &attended_, &mlp_,
                               &outputs_, &projected_, &logits_part_}) {
    bytes += tensor->size_bytes();
  }
  return bytes;
}

absl::Status Decoder::ApplyNorm(const NormWeights& weights, TensorView x, ConstTensorView delta,
                                TensorView out, Stream& stream) const {
  return Norm({.kind = spec_.norm,
               .x = x,
               .delta = delta,
               .weight = weights.weight.view(),
               .bias = weights.bias.view(),
               .out = out,
               .epsilon = static_cast<float>(config_.norm_epsilon)},
              stream);
}

absl::Status Decoder::Embed(const StepBatch& batch, TensorView x, Wire& wire, Stream& stream) {
  const bool projected = !embedded_.empty();
  const TensorView embedded = projected ? embedded_.mutable_view().Rows(0, batch.num_tokens()) : x;
  TW_RETURN_IF_ERROR(Embedding({.ids = Ids(batch.token_ids),
                                .table = weights_.token_embedding.view(),
                                .first_id = plan_.vocab().begin,
                                .out = embedded},
                               stream));
  TW_RETURN_IF_ERROR(wire.AllReduce(Site::kEmbedding, embedded, stream));
  if (projected) {
    TW_RETURN_IF_ERROR(ApplyLinear(weights_.project_in, embedded, x, stream));
  }
  if (!weights_.position_embedding.empty()) {
    TW_RETURN_IF_ERROR(Embedding({.ids = Ids(batch.positions),
                                  .table = weights_.position_embedding.view(),
                                  .first_id = -spec_.position_offset,
                                  .accumulate = true,
                                  .out = x},
                                 stream));
  }
  return absl::OkStatus();
}

absl::Status Decoder::AttentionHalf(const LayerWeights& layer, int64_t cache_layer,
                                    ConstTensorView input, const StepBatch& batch,
                                    PagedKvCache& cache, Wire& wire, Stream& stream) {
  const int64_t num_tokens = batch.num_tokens();
  const int64_t head_dim = config_.head_dim;
  const int64_t num_heads = plan_.heads().size();
  const int64_t num_kv_heads = plan_.kv_heads().size();
  const TensorView qkv = qkv_.mutable_view().Rows(0, num_tokens);
  const TensorView q = qkv.Columns(0, num_heads * head_dim);
  const TensorView k = qkv.Columns(num_heads * head_dim, num_kv_heads * head_dim);
  const TensorView v = qkv.Columns((num_heads + num_kv_heads) * head_dim, num_kv_heads * head_dim);
  TW_RETURN_IF_ERROR(ApplyLinear(layer.qkv, input, qkv, stream));
  if (spec_.rope) {
    RopeArgs rope = {.x = q,
                     .positions = Ids(batch.positions),
                     .inv_freq = inv_freq_.view(),
                     .num_heads = num_heads,
                     .head_dim = head_dim};
    TW_RETURN_IF_ERROR(Rope(rope, stream));
    rope.x = k;
    rope.num_heads = num_kv_heads;
    TW_RETURN_IF_ERROR(Rope(rope, stream));
  }
  const TensorView k_pages = cache.k_pages(cache_layer);
  const TensorView v_pages = cache.v_pages(cache_layer);
  TW_RETURN_IF_ERROR(KvWrite(
      {.k = k, .v = v, .slots = batch.slots, .k_pages = k_pages, .v_pages = v_pages}, stream));
  const TensorView attended = attended_.mutable_view().Rows(0, num_tokens);
  TW_RETURN_IF_ERROR(PagedAttention({.q = q,
                                     .out = attended,
                                     .token_offsets = batch.token_offsets,
                                     .context_lens = batch.context_lens,
                                     .page_offsets = batch.page_offsets,
                                     .page_ids = batch.page_ids,
                                     .k_pages = k_pages,
                                     .v_pages = v_pages,
                                     .num_heads = num_heads,
                                     .scale = 1.0f / std::sqrt(static_cast<float>(head_dim)),
                                     .window = config_.sliding_window},
                                    stream));
  const TensorView delta = delta_.mutable_view().Rows(0, num_tokens);
  TW_RETURN_IF_ERROR(ApplyLinear(layer.out, attended, delta, stream));
  return wire.AllReduce(Site::kAttentionOut, delta, stream);
}

absl::Status Decoder::MlpHalf(const LayerWeights& layer, ConstTensorView input, Wire& wire,
                              Stream& stream) {
  const int64_t num_tokens = input.dim(0);
  const int64_t ffn = plan_.ffn().size();
  const TensorView mlp = mlp_.mutable_view().Rows(0, num_tokens);
  TW_RETURN_IF_ERROR(ApplyLinear(layer.up, input, mlp, stream));
  const TensorView activated = mlp.Columns(0, ffn);
  if (spec_.layer.gate.empty()) {
    TW_RETURN_IF_ERROR(Activate(config_.activation, activated, stream));
  } else {
    TW_RETURN_IF_ERROR(GatedActivation({.kind = config_.activation,
                                        .gate = activated,
                                        .up = mlp.Columns(ffn, ffn),
                                        .out = activated},
                                       stream));
  }
  const TensorView delta = delta_.mutable_view().Rows(0, num_tokens);
  TW_RETURN_IF_ERROR(ApplyLinear(layer.down, activated, delta, stream));
  return wire.AllReduce(Site::kMlpOut, delta, stream);
}

absl::Status Decoder::Forward(const StepBatch& batch, PagedKvCache& cache, Wire& wire,
                              Stream& stream) {
  const int64_t num_tokens = batch.num_tokens();
  const TensorView x = x_.mutable_view().Rows(0, num_tokens);
  const TensorView normed = normed_.mutable_view().Rows(0, num_tokens);
  const TensorView delta = delta_.mutable_view().Rows(0, num_tokens);
  const Mesh& mesh = plan_.mesh();
  if (plan_.first_stage()) {
    TW_RETURN_IF_ERROR(Embed(batch, x, wire, stream));
  } else {
    TW_RETURN_IF_ERROR(wire.RecvHop(x, mesh.RankOf(plan_.pp_rank() - 1, plan_.tp_rank()), stream));
  }
  // What the residual still lacks: the norm that comes next adds it.
  ConstTensorView pending;
  for (size_t l = 0; l < weights_.layers.size(); ++l) {
    const LayerWeights& layer = weights_.layers[l];
    const auto cache_layer = static_cast<int64_t>(l);
    if (config_.norm_before) {
      TW_RETURN_IF_ERROR(ApplyNorm(layer.attention_norm, x, pending, normed, stream));
      TW_RETURN_IF_ERROR(AttentionHalf(layer, cache_layer, normed, batch, cache, wire, stream));
      TW_RETURN_IF_ERROR(ApplyNorm(layer.mlp_norm, x, delta, normed, stream));
      TW_RETURN_IF_ERROR(MlpHalf(layer, normed, wire, stream));
      pending = delta;
    } else {
      TW_RETURN_IF_ERROR(AttentionHalf(layer, cache_layer, x, batch, cache, wire, stream));
      TW_RETURN_IF_ERROR(ApplyNorm(layer.attention_norm, x, delta, x, stream));
      TW_RETURN_IF_ERROR(MlpHalf(layer, x, wire, stream));
      TW_RETURN_IF_ERROR(ApplyNorm(layer.mlp_norm, x, delta, x, stream));
    }
  }
  if (plan_.last_stage()) return KeepOutputs(batch, pending, stream);
  if (!pending.empty()) TW_RETURN_IF_ERROR(AddInPlace(x, pending, stream));
  return wire.SendHop(x, mesh.RankOf(plan_.pp_rank() + 1, plan_.tp_rank()), stream);
}

absl::Status Decoder::KeepOutputs(const StepBatch& batch, ConstTensorView pending, Stream& stream) {
  num_outputs_ = static_cast<int64_t>(batch.output_tokens.size());
  if (num_outputs_ == 0) return absl::OkStatus();
  const TensorView outputs = outputs_.mutable_view().Rows(0, num_outputs_);
  const ConstTensorView rows = Ids(batch.output_tokens);
  const int64_t num_tokens = batch.num_tokens();
  TW_RETURN_IF_ERROR(
      Embedding({.ids = rows, .table = x_.view().Rows(0, num_tokens), .out = outputs}, stream));
  if (!pending.empty()) {
    TW_RETURN_IF_ERROR(
        Embedding({.ids = rows, .table = pending, .accumulate = true, .out = outputs}, stream));
  }
  if (!config_.final_norm) return absl::OkStatus();
  return ApplyNorm(weights_.final_norm, outputs, ConstTensorView(), outputs, stream);
}

absl::Status Decoder::Logits(int64_t begin, int64_t n, TensorView logits, Wire& wire,
                             Stream& stream) {
  TW_CHECK(plan_.last_stage());
  TW_CHECK_LE(n, kMaxLogitRows);
  TW_CHECK_LE(begin + n, num_outputs_);
  ConstTensorView hidden = outputs_.view().Rows(begin, n);
  if (!projected_.empty()) {
    const TensorView projected = projected_.mutable_view().Rows(0, n);
    TW_RETURN_IF_ERROR(ApplyLinear(weights_.project_out, hidden, projected, stream));
    hidden = projected;
  }
  const ConstTensorView head =
      weights_.head.empty() ? weights_.token_embedding.view() : weights_.head.view();
  const int tp_size = plan_.mesh().tp_size;
  // A contiguous view of the part buffer for `ids`.
  const auto part_view = [&](Range ids) {
    return TensorView(logits_part_.mutable_view().mutable_raw(), DType::kF32, {n, ids.size()},
                      device_);
  };
  if (plan_.tp_rank() != 0) {
    if (plan_.vocab().size() == 0) return absl::OkStatus();
    const TensorView part = part_view(plan_.vocab());
    TW_RETURN_IF_ERROR(Linear({.x = hidden, .weight = head, .y = part}, stream));
    return wire.SendInGroup(Site::kLogits, part, 0, stream);
  }
  TW_CHECK(logits.dim(0) == n && logits.dim(1) == config_.vocab);
  TW_RETURN_IF_ERROR(
      Linear({.x = hidden, .weight = head, .y = logits.Columns(0, plan_.vocab().size())}, stream));
  for (int peer = 1; peer < tp_size; ++peer) {
    const Range ids = plan_.VocabOf(peer);
    if (ids.size() == 0) continue;
    const TensorView part = part_view(ids);
    TW_RETURN_IF_ERROR(wire.RecvInGroup(Site::kLogits, part, peer, stream));
    TW_RETURN_IF_ERROR(Convert(part, logits.Columns(ids.begin, ids.size()), stream));
  }
  return absl::OkStatus();
}

}  // namespace thinwire
