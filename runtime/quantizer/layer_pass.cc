#include "runtime/quantizer/layer_pass.h"

#include <algorithm>
#include <cstring>
#include <numeric>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
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
  PassHook(const SiteRoundings& roundings, const SiteVisitor* visit, std::optional<QuantSite> last)
      : roundings_(roundings), visit_(visit), last_(last) {}

  absl::Status At(QuantSite site, TensorView x) override {
    if (visit_ != nullptr) TW_RETURN_IF_ERROR((*visit_)(site, x));
    if (last_ == site) {
      reached_last_ = true;
      return absl::CancelledError("the last site was seen");
    }
    roundings_.at(site).Apply(x);
    return absl::OkStatus();
  }

  bool reached_last() const { return reached_last_; }

 private:
  const SiteRoundings& roundings_;
  const SiteVisitor* visit_;
  const std::optional<QuantSite> last_;
  bool reached_last_ = false;
};

}  // namespace

LayerPass::LayerPass(const ModelConfig& config, int64_t seqlen, ThreadPool* pool)
    : config_(config),
      seqlen_(seqlen),
      stream_(Stream::Cpu(pool)),
      alone_(CreateLocalCommunicators(1)),
      positions_(seqlen),
      slots_(seqlen) {
  std::iota(positions_.begin(), positions_.end(), 0);
  std::iota(slots_.begin(), slots_.end(), 0);
  wire_.emplace(alone_[0].get(), alone_[0].get(), WireOptions(), &ledger_);
}

absl::StatusOr<std::unique_ptr<LayerPass>> LayerPass::Create(const ModelConfig& config,
                                                             int64_t seqlen, ThreadPool* pool) {
  std::unique_ptr<LayerPass> pass(new LayerPass(config, seqlen, pool));
  const Device cpu = Device::Cpu();
  TW_ASSIGN_OR_RETURN(pass->plan_, ShardPlan::Create({.num_layers = config.num_layers,
                                                      .num_heads = config.num_heads,
                                                      .num_kv_heads = config.num_kv_heads,
                                                      .ffn = config.ffn,
                                                      .vocab = config.vocab},
                                                     Mesh{1, 1}, 0));
  TW_ASSIGN_OR_RETURN(pass->runner_,
                      LayerRunner::Create(config, pass->plan_, DType::kF32, seqlen, pass->stream_));
  TW_ASSIGN_OR_RETURN(pass->cache_, PagedKvCache::Allocate({.num_layers = 1,
                                                            .num_kv_heads = config.num_kv_heads,
                                                            .head_dim = config.head_dim,
                                                            .page_size = seqlen,
                                                            .dtype = DType::kF32},
                                                           1, 0, cpu));
  TW_ASSIGN_OR_RETURN(pass->x_, Tensor::Allocate(DType::kF32, {seqlen, config.hidden}, cpu));
  return pass;
}

StepBatch LayerPass::Batch() const {
  return {.token_ids = positions_,  // layers do not look at them
          .positions = positions_,
          .slots = slots_,
          .page_offsets = kPageOffsets,
          .page_ids = kFirstPage};
}

absl::StatusOr<ResidualStream> LayerPass::Embed(const Checkpoint& checkpoint,
                                                const std::vector<std::vector<int32_t>>& windows) {
  TW_ASSIGN_OR_RETURN(const DecoderWeights ends, LoadDecoderEnds(checkpoint, config_, plan_));
  const DecoderSpec spec = DecoderSpecFor(config_);
  ResidualStream residual;
  residual.num_windows = static_cast<int64_t>(windows.size());
  residual.seqlen = seqlen_;
  TW_ASSIGN_OR_RETURN(
      residual.rows, Tensor::Allocate(DType::kF32, {residual.num_windows * seqlen_, config_.hidden},
                                      Device::Cpu()));
  TW_ASSIGN_OR_RETURN(Tensor narrow,
                      Tensor::Allocate(DType::kF32, {seqlen_, config_.embed_dim}, Device::Cpu()));
  for (int64_t w = 0; w < residual.num_windows; ++w) {
    TW_RETURN_IF_ERROR(EmbedTokens({.weights = &ends,
                                    .spec = &spec,
                                    .plan = &plan_,
                                    .token_ids = Ids(windows[w]),
                                    .positions = Ids(positions_),
                                    .narrow = narrow.mutable_view(),
                                    .x = residual.window(w)},
                                   *wire_, stream_));
  }
  return residual;
}

absl::Status LayerPass::Visit(const LayerWeights& layer, const SiteRoundings& roundings,
                              ConstTensorView x, QuantSite last, SiteVisitor visit) {
  const TensorView copy = x_.mutable_view();
  std::memcpy(copy.mutable_raw(), x.raw(), static_cast<size_t>(x.size_bytes()));
  PassHook hook(roundings, &visit, last);
  const int32_t token_offsets[] = {0, static_cast<int32_t>(seqlen_)};
  const int32_t context_lens[] = {static_cast<int32_t>(seqlen_)};
  StepBatch batch = Batch();
  batch.token_offsets = token_offsets;
  batch.context_lens = context_lens;
  Residual residual = {.x = copy, .rows = {0, seqlen_}};
  const absl::Status status =
      runner_->Run(layer, 0, residual, batch, *cache_, *wire_, stream_, &hook);
  return hook.reached_last() ? absl::OkStatus() : status;
}

absl::Status LayerPass::Advance(const LayerWeights& layer, const SiteRoundings& roundings,
                                ResidualStream& stream) {
  const int32_t token_offsets[] = {0, static_cast<int32_t>(seqlen_)};
  const int32_t context_lens[] = {static_cast<int32_t>(seqlen_)};
  StepBatch batch = Batch();
  batch.token_offsets = token_offsets;
  batch.context_lens = context_lens;
  for (int64_t w = 0; w < stream.num_windows; ++w) {
    PassHook hook(roundings, nullptr, std::nullopt);
    Residual residual = {.x = stream.window(w), .rows = {0, seqlen_}};
    TW_RETURN_IF_ERROR(runner_->Run(layer, 0, residual, batch, *cache_, *wire_, stream_, &hook));
    if (residual.lacks_delta) {
      TW_RETURN_IF_ERROR(AddInPlace(residual.x, runner_->delta(seqlen_), stream_));
    }
  }
  return absl::OkStatus();
}

}  // namespace thinwire
