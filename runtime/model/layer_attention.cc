// LayerRunner's first half of a layer.
#include <cmath>

#include "kernels/attention/coded_attention.h"
#include "kernels/attention/paged_attention.h"
#include "kernels/core/status_macros.h"
#include "kernels/rope/rope.h"
#include "runtime/model/layer_runner.h"

namespace thinwire {
namespace {

ConstTensorView Positions(const StepBatch& batch) {
  if (!batch.positions_there.empty()) return batch.positions_there;
  return ConstTensorView(batch.positions.data(), DType::kI32, {batch.num_tokens()});
}

}  // namespace

absl::Status LayerRunner::WriteCodedKv(const LayerWeights& layer, int64_t cache_layer,
                                       ConstTensorView k, ConstTensorView v, const StepBatch& batch,
                                       PagedKvCache& cache, Stream& stream) {
  const TensorView exact_k = cache.exact_k(cache_layer);
  const bool exact = !exact_k.empty();
  return CodedKvWrite(
      {.k = k,
       .v = v,
       .slots = batch.slots,
       .k_codes = &*layer.k_codes,
       .v_codes = &*layer.v_codes,
       .k_pages = cache.k_pages(cache_layer),
       .v_pages = cache.v_pages(cache_layer),
       .exact_rows = exact ? batch.exact_rows_of_tokens : absl::Span<const int32_t>(),
       .exact_k = exact_k,
       .exact_v = cache.exact_v(cache_layer),
       .first_wrong =
           first_wrong_.empty() ? TensorView() : first_wrong_.mutable_view().Rows(cache_layer, 1),
       .step = batch.step},
      stream);
}

absl::Status LayerRunner::Attend(const LayerWeights& layer, int64_t cache_layer, ConstTensorView q,
                                 TensorView out, const StepBatch& batch, PagedKvCache& cache,
                                 const Wire& wire, Stream& stream) {
  const int64_t num_heads = plan_.heads().size();
  const float scale = 1.0f / std::sqrt(static_cast<float>(config_.head_dim));
  const TensorView k_pages = cache.k_pages(cache_layer);
  const TensorView v_pages = cache.v_pages(cache_layer);
  if (!layer.k_codes.has_value()) {
    return PagedAttention({.q = q,
                           .out = out,
                           .token_offsets = batch.token_offsets,
                           .context_lens = batch.context_lens,
                           .page_offsets = batch.page_offsets,
                           .page_ids = batch.page_ids,
                           .k_pages = k_pages,
                           .v_pages = v_pages,
                           .num_heads = num_heads,
                           .scale = scale,
                           .window = config_.sliding_window,
                           .batch_invariant = wire.exact(),
                           .step = batch.step},
                          stream);
  }
  const TensorView exact_k = cache.exact_k(cache_layer);
  return CodedPagedAttention(
      {.q = q,
       .out = out,
       .token_offsets = batch.token_offsets,
       .context_lens = batch.context_lens,
       .page_offsets = batch.page_offsets,
       .page_ids = batch.page_ids,
       .exact_rows = exact_k.empty() ? absl::Span<const int32_t>() : batch.exact_rows_of_seqs,
       .k_codes = &*layer.k_codes,
       .v_codes = &*layer.v_codes,
       .k_pages = k_pages,
       .v_pages = v_pages,
       .exact_k = exact_k,
       .exact_v = cache.exact_v(cache_layer),
       .num_heads = num_heads,
       .scale = scale,
       .window = config_.sliding_window,
       .batch_invariant = wire.exact(),
       .step = batch.step},
      stream);
}

absl::Status LayerRunner::AttentionHalf(const LayerWeights& layer, int64_t cache_layer,
                                        const Input& input, Residual& residual,
                                        const StepBatch& batch, PagedKvCache& cache, Wire& wire,
                                        Stream& stream, SiteHook* hook) {
  const int64_t num_tokens = batch.num_tokens();
  const int64_t head_dim = config_.head_dim;
  const int64_t num_heads = plan_.heads().size();
  const int64_t num_kv_heads = plan_.kv_heads().size();
  const TensorView qkv = qkv_.mutable_view().Rows(0, num_tokens);
  const TensorView q = qkv.Columns(0, num_heads * head_dim);
  const TensorView k = qkv.Columns(num_heads * head_dim, num_kv_heads * head_dim);
  const TensorView v = qkv.Columns((num_heads + num_kv_heads) * head_dim, num_kv_heads * head_dim);
  TW_RETURN_IF_ERROR(ApplyLinears(layer.qkv, input, qkv, wire, stream));
  // Keys lie behind queries.
  const RopeArgs rope = {.x = qkv.Columns(0, (num_heads + num_kv_heads) * head_dim),
                         .positions = Positions(batch),
                         .inv_freq = inv_freq_.view(),
                         .num_heads = num_heads + num_kv_heads,
                         .head_dim = head_dim};
  const KvWriteArgs write = {.k = k,
                             .v = v,
                             .slots = batch.slots,
                             .k_pages = cache.k_pages(cache_layer),
                             .v_pages = cache.v_pages(cache_layer),
                             .step = batch.step};
  const bool coded = layer.k_codes.has_value();
  if (spec_.rope && !coded && hook == nullptr) {
    TW_RETURN_IF_ERROR(RotateAndWriteKv(rope, write, stream));
  } else {
    if (spec_.rope) TW_RETURN_IF_ERROR(Rope(rope, stream));
    TW_RETURN_IF_ERROR(Look(hook, QuantSite::kQ, q));
    TW_RETURN_IF_ERROR(Look(hook, QuantSite::kK, k));
    TW_RETURN_IF_ERROR(Look(hook, QuantSite::kV, v));
    TW_RETURN_IF_ERROR(coded ? WriteCodedKv(layer, cache_layer, k, v, batch, cache, stream)
                             : KvWrite(write, stream));
  }
  if (layer.q.coded()) TW_RETURN_IF_ERROR(Round(layer.q, q, stream));
  const TensorView attended = attended_.mutable_view().Rows(0, num_tokens);
  TW_RETURN_IF_ERROR(Attend(layer, cache_layer, q, attended, batch, cache, wire, stream));
  TW_RETURN_IF_ERROR(Look(hook, QuantSite::kOutIn, attended));
  TW_ASSIGN_OR_RETURN(const Input out_in,
                      CodeSite(layer.out_in, attended, Site::kAttentionOut, wire, stream));
  return AddUp(Site::kAttentionOut, layer.out, out_in, residual, wire, stream);
}

}  // namespace thinwire
