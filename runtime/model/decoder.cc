#include "runtime/model/decoder.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "kernels/convert/convert.h"
#include "kernels/core/check.h"
#include "kernels/core/status_macros.h"
#include "kernels/embedding/embedding.h"
#include "kernels/linear/linear.h"
#include "kernels/norm/norm.h"
#include "runtime/model/embed_tokens.h"

namespace thinwire {
absl::StatusOr<Decoder> Decoder::Create(const ModelConfig& config, const ShardPlan& plan,
                                        DecoderWeights weights, DType dtype, int64_t max_tokens,
                                        Stream& stream) {
  TW_CHECK(IsFloat(dtype));
  const Device device = stream.device();
  Decoder decoder;
  decoder.config_ = config;
  decoder.spec_ = DecoderSpecFor(config);
  decoder.plan_ = plan;
  decoder.dtype_ = dtype;
  decoder.device_ = device;
  decoder.weights_ = std::move(weights);
  const int64_t hidden = config.hidden;
  const auto allocate = [&](Tensor& tensor, int64_t width, DType type) -> absl::Status {
    TW_ASSIGN_OR_RETURN(tensor, Tensor::Allocate(type, {max_tokens, width}, device));
    return absl::OkStatus();
  };
  TW_RETURN_IF_ERROR(allocate(decoder.x_, hidden, dtype));
  if (device != Device::Cpu()) {
    const std::vector<LayerWeights>& layers = decoder.weights_.layers;
    decoder.sequences_.emplace(
        StepLayers{.num_heads = plan.heads().size(),
                   .num_kv_heads = plan.kv_heads().size(),
                   .head_dim = config.head_dim,
                   .window = config.sliding_window,
                   .page_dtype = dtype,
                   .coded = !layers.empty() && layers.front().k_codes.has_value(),
                   .batch_invariant = plan.residual_cut() == ResidualCut::kByOutputs},
        device);
  }
  TW_ASSIGN_OR_RETURN(decoder.layers_,
                      LayerRunner::Create(config, plan, dtype, max_tokens, stream));
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
  return decoder;
}

KvCacheShape Decoder::CacheShape(int64_t page_size) const {
  KvCacheShape shape = {.num_layers = plan_.layers().size(),
                        .num_kv_heads = plan_.kv_heads().size(),
                        .head_dim = config_.head_dim,
                        .page_size = page_size,
                        .dtype = dtype_};
  for (const LayerWeights& layer : weights_.layers) {
    if (!layer.k_codes.has_value()) break;
    shape.coded_rows.push_back({layer.k_codes->row_bytes(), layer.v_codes->row_bytes()});
    shape.in_planes.push_back({layer.k_codes->paired(), layer.v_codes->paired()});
    for (int64_t head = 0; head < shape.num_kv_heads; ++head) {
      shape.used_rows.push_back(
          {layer.k_codes->used_row_bytes(head), layer.v_codes->used_row_bytes(head)});
    }
  }
  shape.exact_first_tokens = !shape.coded_rows.empty() && weights_.exact_first_tokens;
  return shape;
}

int64_t Decoder::activation_bytes() const {
  int64_t bytes = layers_->size_bytes();
  for (const Tensor* tensor : {&x_, &embedded_, &outputs_, &projected_, &logits_part_}) {
    bytes += tensor->size_bytes();
  }
  return bytes;
}

ConstTensorView Decoder::first_wrong() const {
  const bool codes_kv = std::any_of(weights_.layers.begin(), weights_.layers.end(),
                                    [](const LayerWeights& l) { return l.k_codes.has_value(); });
  return codes_kv ? layers_->first_wrong() : ConstTensorView();
}

absl::Status Decoder::CheckKvStored(absl::Span<const int64_t> first_wrong) const {
  for (size_t l = 0; l < first_wrong.size(); ++l) {
    TW_RETURN_IF_ERROR(
        Annotate(layers_->KvStoredStatus(weights_.layers[l], first_wrong[l]),
                 absl::StrCat("layer ", plan_.layers().begin + static_cast<int64_t>(l))));
  }
  return absl::OkStatus();
}

ConstTensorView Decoder::There(absl::Span<const int32_t> ids, StepArray array) const {
  if (sequences_.has_value()) return sequences_->other(array);
  return ConstTensorView(ids.data(), DType::kI32, {static_cast<int64_t>(ids.size())});
}

absl::Status Decoder::RunLayers(const StepBatch& batch, Residual& residual, PagedKvCache& cache,
                                Wire& wire, Stream& stream) {
  const auto enqueue = [&](Residual& after) -> absl::Status {
    for (size_t l = 0; l < weights_.layers.size(); ++l) {
      TW_RETURN_IF_ERROR(layers_->Run(weights_.layers[l], static_cast<int64_t>(l), after, batch,
                                      cache, wire, stream));
    }
    return layers_->FinishSum(after, wire, stream);
  };
  const bool decodes = batch.num_tokens() == static_cast<int64_t>(batch.context_lens.size());
  if (!sequences_.has_value() || !captures_steps_ || !decodes) return enqueue(residual);
  return graphs_.Run(sequences_->layout(), enqueue, residual, wire, stream);
}

absl::Status Decoder::Forward(const StepBatch& host_batch, PagedKvCache& cache, Wire& wire,
                              Stream& stream) {
  // Weights are cut as the wire carries them.
  TW_CHECK_EQ(wire.exact(), plan_.residual_cut() == ResidualCut::kByOutputs);
  StepBatch batch = host_batch;
  if (sequences_.has_value()) {
    TW_RETURN_IF_ERROR(
        sequences_->Upload({.token_offsets = batch.token_offsets,
                            .context_lens = batch.context_lens,
                            .page_offsets = batch.page_offsets,
                            .page_ids = batch.page_ids,
                            .slots = batch.slots,
                            .exact_rows_of_seqs = batch.exact_rows_of_seqs,
                            .exact_rows_of_tokens = batch.exact_rows_of_tokens,
                            .others = {batch.token_ids, batch.positions, batch.output_tokens}},
                           stream));
    batch.step = &*sequences_;
  }
  batch.positions_there = There(batch.positions, kPositions);
  const int64_t num_tokens = batch.num_tokens();
  const Mesh& mesh = plan_.mesh();
  Residual residual = {.x = x_.mutable_view().Rows(0, num_tokens), .rows = {0, num_tokens}};
  if (plan_.first_stage()) {
    TW_RETURN_IF_ERROR(EmbedTokens({.weights = &weights_,
                                    .spec = &spec_,
                                    .plan = &plan_,
                                    .token_ids = There(batch.token_ids, kTokenIds),
                                    .late_ids = batch.late_ids,
                                    .positions = batch.positions_there,
                                    .narrow = embedded_.mutable_view(),
                                    .x = residual.x},
                                   wire, stream));
  } else {
    TW_RETURN_IF_ERROR(
        wire.RecvHop(residual.x, mesh.RankOf(plan_.pp_rank() - 1, plan_.tp_rank()), stream));
    residual.rows = wire.OwnRows(num_tokens);
    residual.whole = wire.keeps_all_rows(num_tokens);
    residual.last_sum = Site::kStageHop;
  }
  TW_RETURN_IF_ERROR(RunLayers(batch, residual, cache, wire, stream));
  if (plan_.last_stage()) return KeepOutputs(batch, residual, wire, stream);
  if (residual.lacks_delta) {
    const Range rows = residual.rows;
    TW_RETURN_IF_ERROR(AddInPlace(residual.x.Rows(rows.begin, rows.size()),
                                  layers_->delta(num_tokens).Rows(rows.begin, rows.size()),
                                  stream));
  }
  return wire.SendHop(residual.x, mesh.RankOf(plan_.pp_rank() + 1, plan_.tp_rank()), stream);
}

absl::Status Decoder::KeepOutputs(const StepBatch& batch, const Residual& residual, Wire& wire,
                                  Stream& stream) {
  num_outputs_ = static_cast<int64_t>(batch.output_tokens.size());
  if (num_outputs_ == 0) return absl::OkStatus();
  const TensorView outputs = outputs_.mutable_view().Rows(0, num_outputs_);
  const int64_t num_tokens = batch.num_tokens();
  const std::vector<int64_t> offsets = wire.OffsetsOf(batch.output_tokens, num_tokens);
  Range kept = {0, num_outputs_};
  if (!residual.whole) kept = {offsets[plan_.tp_rank()], offsets[plan_.tp_rank() + 1]};
  const TensorView own = outputs.Rows(kept.begin, kept.size());
  const ConstTensorView rows =
      There(batch.output_tokens, kOutputTokens).Rows(kept.begin, kept.size());
  TW_RETURN_IF_ERROR(Embedding({.ids = rows, .table = residual.x, .out = own}, stream));
  if (residual.lacks_delta) {
    TW_RETURN_IF_ERROR(Embedding(
        {.ids = rows, .table = layers_->delta(num_tokens), .accumulate = true, .out = own},
        stream));
  }
  if (config_.final_norm) {
    TW_RETURN_IF_ERROR(layers_->ApplyNorm(weights_.final_norm, own, own, stream));
  }
  if (residual.whole) return absl::OkStatus();
  return wire.Share(Site::kFinalNorm, Wire::ShareAs::kFp16, outputs, offsets, stream);
}

absl::Status Decoder::Logits(int64_t begin, int64_t n, TensorView logits, Wire& wire,
                             Stream& stream) {
  TW_CHECK(plan_.last_stage());
  TW_CHECK_LE(n, kMaxLogitRows);
  TW_CHECK_LE(begin + n, num_outputs_);
  ConstTensorView hidden = outputs_.view().Rows(begin, n);
  if (!projected_.empty()) {
    const TensorView projected = projected_.mutable_view().Rows(0, n);
    TW_RETURN_IF_ERROR(Linear({.x = hidden,
                               .weight = weights_.project_out.weight.view(),
                               .y = projected,
                               .batch_invariant = wire.exact()},
                              stream));
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
    TW_RETURN_IF_ERROR(
        Linear({.x = hidden, .weight = head, .y = part, .batch_invariant = wire.exact()}, stream));
    return wire.SendInGroup(Site::kLogits, part, 0, stream);
  }
  TW_CHECK(logits.dim(0) == n && logits.dim(1) == config_.vocab);
  TW_RETURN_IF_ERROR(Linear({.x = hidden,
                             .weight = head,
                             .y = logits.Columns(0, plan_.vocab().size()),
                             .batch_invariant = wire.exact()},
                            stream));
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
