#include "runtime/quantizer/layer_pass.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "kernels/core/copy.h"
#include "kernels/core/status_macros.h"
#include "kernels/norm/norm.h"
#include "parallel/comm/local_communicator.h"
#include "parallel/plan/mesh.h"
#include "runtime/model/decoder_weights.h"
#include "runtime/model/embed_tokens.h"

namespace thinwire {
namespace {

ConstTensorView Ids(const std::vector<int32_t>& ids) {
  return ConstTensorView(ids.data(), DType::kI32, {static_cast<int64_t>(ids.size())});
}

constexpr int32_t kFirstPage[] = {0};
constexpr int32_t kPageOffsets[] = {0, 1};

class PassHook : public SiteHook {
 public:
  PassHook(LayerPass& pass, const SiteRoundings& roundings, const SiteVisitor* visit,
           std::optional<QuantSite> last)
      : pass_(pass), roundings_(roundings), visit_(visit), last_(last) {}

  absl::Status At(QuantSite site, TensorView x) override {
    if (visit_ != nullptr) TW_RETURN_IF_ERROR((*visit_)(site, x));
    if (last_ == site) {
      reached_last_ = true;
      return absl::CancelledError("the last site was seen");
    }
    return pass_.Round(site, roundings_, x);
  }

  bool reached_last() const { return reached_last_; }

 private:
  LayerPass& pass_;
  const SiteRoundings& roundings_;
  const SiteVisitor* visit_;
  const std::optional<QuantSite> last_;
  bool reached_last_ = false;
};

}  // namespace

LayerPass::LayerPass(const ModelConfig& config, int64_t seqlen, ThreadPool* pool, Stream* gpu)
    : config_(config),
      seqlen_(seqlen),
      host_(Stream::Cpu(pool)),
      gpu_(gpu),
      alone_(CreateLocalCommunicators(1)),
      positions_(seqlen),
      slots_(seqlen),
      token_offsets_{0, static_cast<int32_t>(seqlen)},
      context_lens_{static_cast<int32_t>(seqlen)} {
  std::iota(positions_.begin(), positions_.end(), 0);
  std::iota(slots_.begin(), slots_.end(), 0);
  wire_.emplace(alone_[0].get(), alone_[0].get(), WireOptions(), &ledger_);
}

absl::StatusOr<std::unique_ptr<LayerPass>> LayerPass::Create(const ModelConfig& config,
                                                             int64_t seqlen, ThreadPool* pool,
                                                             Stream* gpu) {
  std::unique_ptr<LayerPass> pass(new LayerPass(config, seqlen, pool, gpu));
  TW_ASSIGN_OR_RETURN(pass->plan_, ShardPlan::Create({.num_layers = config.num_layers,
                                                      .num_heads = config.num_heads,
                                                      .num_kv_heads = config.num_kv_heads,
                                                      .ffn = config.ffn,
                                                      .vocab = config.vocab},
                                                     Mesh{1, 1}, 0));
  TW_ASSIGN_OR_RETURN(
      pass->runner_, LayerRunner::Create(config, pass->plan_, DType::kF32, seqlen, pass->stream()));
  TW_ASSIGN_OR_RETURN(pass->cache_, PagedKvCache::Allocate({.num_layers = 1,
                                                            .num_kv_heads = config.num_kv_heads,
                                                            .head_dim = config.head_dim,
                                                            .page_size = seqlen,
                                                            .dtype = DType::kF32},
                                                           1, 0, pass->device()));
  TW_ASSIGN_OR_RETURN(pass->x_, pass->AllocateRows(config.hidden));
  if (gpu != nullptr) TW_RETURN_IF_ERROR(pass->UploadBatch());
  return pass;
}

absl::Status LayerPass::UploadBatch() {
  sequences_.emplace(StepLayers{.num_heads = config_.num_heads,
                                .num_kv_heads = config_.num_kv_heads,
                                .head_dim = config_.head_dim,
                                .window = config_.sliding_window,
                                .page_dtype = DType::kF32},
                     device());
  const StepBatch batch = Batch();
  TW_RETURN_IF_ERROR(sequences_->Upload({.token_offsets = batch.token_offsets,
                                         .context_lens = batch.context_lens,
                                         .page_offsets = batch.page_offsets,
                                         .page_ids = batch.page_ids,
                                         .slots = batch.slots,
                                         .others = {batch.positions}},
                                        *gpu_));
  return gpu_->Synchronize();
}

StepBatch LayerPass::Batch() const {
  StepBatch batch = {.token_ids = positions_,  // layers do not look at them
                     .positions = positions_,
                     .slots = slots_,
                     .token_offsets = token_offsets_,
                     .context_lens = context_lens_,
                     .page_offsets = kPageOffsets,
                     .page_ids = kFirstPage};
  if (sequences_.has_value() && sequences_->layout().num_tokens > 0) {
    batch.positions_there = sequences_->other(0);
    batch.step = &*sequences_;
  }
  return batch;
}

absl::StatusOr<Tensor> LayerPass::AllocateRows(int64_t width) const {
  return Tensor::Allocate(DType::kF32, {seqlen_, width}, device());
}

absl::Status LayerPass::Round(QuantSite site, const SiteRoundings& roundings, TensorView x) {
  const SiteRounding& rounding = roundings.at(site);
  if (gpu_ != nullptr) return gpu_roundings_.Apply(site, rounding, x, *gpu_);
  rounding.Apply(x);
  return absl::OkStatus();
}

absl::StatusOr<ResidualStream> LayerPass::Embed(const Checkpoint& checkpoint,
                                                const std::vector<std::vector<int32_t>>& windows) {
  TW_ASSIGN_OR_RETURN(const DecoderWeights ends, LoadDecoderEnds(checkpoint, config_, plan_));
  const DecoderSpec spec = DecoderSpecFor(config_);
  ResidualStream residual;
  residual.num_windows = static_cast<int64_t>(windows.size());
  residual.seqlen = seqlen_;
  TW_ASSIGN_OR_RETURN(
      residual.rows,
      Tensor::Allocate(DType::kF32, {residual.num_windows * seqlen_, config_.hidden}, device()));
  TW_ASSIGN_OR_RETURN(Tensor narrow,
                      Tensor::Allocate(DType::kF32, {seqlen_, config_.embed_dim}, Device::Cpu()));
  Tensor here;
  if (gpu_ != nullptr) {
    TW_ASSIGN_OR_RETURN(here,
                        Tensor::Allocate(DType::kF32, {seqlen_, config_.hidden}, Device::Cpu()));
  }
  for (int64_t w = 0; w < residual.num_windows; ++w) {
    const TensorView window = residual.window(w);
    const TensorView x = gpu_ == nullptr ? window : here.mutable_view();
    TW_RETURN_IF_ERROR(EmbedTokens({.weights = &ends,
                                    .spec = &spec,
                                    .plan = &plan_,
                                    .token_ids = Ids(windows[w]),
                                    .positions = Ids(positions_),
                                    .narrow = narrow.mutable_view(),
                                    .x = x},
                                   *wire_, host_));
    if (gpu_ == nullptr) continue;
    TW_RETURN_IF_ERROR(Copy(x, window, *gpu_));
    TW_RETURN_IF_ERROR(gpu_->Synchronize());
  }
  return residual;
}

absl::Status LayerPass::Visit(const LayerWeights& layer, const SiteRoundings& roundings,
                              ConstTensorView x, QuantSite last, SiteVisitor visit) {
  const TensorView copy = x_.mutable_view();
  TW_RETURN_IF_ERROR(Copy(x, copy, stream()));
  PassHook hook(*this, roundings, &visit, last);
  Residual residual = {.x = copy, .rows = {0, seqlen_}};
  const absl::Status status =
      runner_->Run(layer, 0, residual, Batch(), *cache_, *wire_, stream(), &hook);
  return hook.reached_last() ? absl::OkStatus() : status;
}

absl::Status LayerPass::Capture(const LayerWeights& layer, const SiteRoundings& roundings,
                                ConstTensorView x, QuantSite site, TensorView to) {
  return Visit(layer, roundings, x, site, [&](QuantSite seen, ConstTensorView rows) {
    return seen == site ? Copy(rows, to, stream()) : absl::OkStatus();
  });
}

absl::Status LayerPass::Advance(const LayerWeights& layer, const SiteRoundings& roundings,
                                ResidualStream& stream) {
  for (int64_t w = 0; w < stream.num_windows; ++w) {
    PassHook hook(*this, roundings, nullptr, std::nullopt);
    Residual residual = {.x = stream.window(w), .rows = {0, seqlen_}};
    TW_RETURN_IF_ERROR(
        runner_->Run(layer, 0, residual, Batch(), *cache_, *wire_, this->stream(), &hook));
    if (residual.lacks_delta) {
      TW_RETURN_IF_ERROR(AddInPlace(residual.x, runner_->delta(seqlen_), this->stream()));
    }
  }
  return absl::OkStatus();
}

}  // namespace thinwire
