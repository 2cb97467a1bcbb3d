// Calibration windows through one decoder layer, with activations rounded and looked at on the way.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "kernels/attention/step_sequences.h"
#include "kernels/core/stream.h"
#include "kernels/core/tensor.h"
#include "parallel/comm/communicator.h"
#include "parallel/wire/ledger.h"
#include "parallel/wire/wire.h"
#include "runtime/checkpoint/checkpoint.h"
#include "runtime/checkpoint/model_config.h"
#include "runtime/model/layer_runner.h"
#include "runtime/quantizer/gpu_roundings.h"
#include "runtime/quantizer/site_rounding.h"

namespace thinwire {

// The residual of all windows, between two layers: [num_windows * seqlen, hidden] fp32, on the
// device of the pass.
struct ResidualStream {
  Tensor rows;
  int64_t num_windows = 0;
  int64_t seqlen = 0;

  TensorView window(int64_t w) { return rows.mutable_view().Rows(w * seqlen, seqlen); }
  ConstTensorView window(int64_t w) const { return rows.view().Rows(w * seqlen, seqlen); }
};

// What a site's activations of one window are: [seqlen, width] fp32 on the device of the pass,
// before they are rounded, rows may be strided.
using SiteVisitor = absl::FunctionRef<absl::Status(QuantSite site, ConstTensorView x)>;

// Runs single layers over windows, each a sequence of its own, in fp32. Not movable: parts point at
// each other. Thread-compatible.
class LayerPass {
 public:
  // Borrows pool and stream. `gpu`: a GPU's stream, where layers run then, and where their weights
  // and residuals lie; null: on the pool. What is shown to visitors there may not have been
  // computed yet: they enqueue behind it. ResourceExhausted where memory lacks.
  static absl::StatusOr<std::unique_ptr<LayerPass>> Create(const ModelConfig& config,
                                                           int64_t seqlen, ThreadPool* pool,
                                                           Stream* gpu = nullptr);

  LayerPass(const LayerPass&) = delete;
  LayerPass& operator=(const LayerPass&) = delete;

  // The residual that enters the first layer. It is looked up on the processors.
  absl::StatusOr<ResidualStream> Embed(const Checkpoint& checkpoint,
                                       const std::vector<std::vector<int32_t>>& windows);

  // Runs the layer over one window's residual `x`, which stays as it is, up to site `last`, and
  // shows the sites up to there.
  absl::Status Visit(const LayerWeights& layer, const SiteRoundings& roundings, ConstTensorView x,
                     QuantSite last, SiteVisitor visit);

  // Copies one site's activations of one window to `to`, dense [seqlen, width] on the device.
  absl::Status Capture(const LayerWeights& layer, const SiteRoundings& roundings, ConstTensorView x,
                       QuantSite site, TensorView to);

  // Rounds rows of a site, [num_tokens, width] on the device, in place.
  absl::Status Round(QuantSite site, const SiteRoundings& roundings, TensorView x);

  // Uninitialised rows of one window, [seqlen, width] fp32 on the device.
  absl::StatusOr<Tensor> AllocateRows(int64_t width) const;

  // Replaces every window's residual by what the layer makes of it.
  absl::Status Advance(const LayerWeights& layer, const SiteRoundings& roundings,
                       ResidualStream& stream);

  // Where layers run.
  Stream& stream() { return gpu_ == nullptr ? host_ : *gpu_; }
  Device device() const { return gpu_ == nullptr ? Device::Cpu() : gpu_->device(); }
  // For what ranks tell each other.
  Stream& host() { return host_; }

 private:
  LayerPass(const ModelConfig& config, int64_t seqlen, ThreadPool* pool, Stream* gpu);

  // Of one window; borrows from the pass.
  StepBatch Batch() const;
  absl::Status UploadBatch();

  const ModelConfig config_;
  const int64_t seqlen_;
  Stream host_;
  Stream* const gpu_;  // or null
  ShardPlan plan_;
  std::vector<std::unique_ptr<Communicator>> alone_;  // the group of one
  Ledger ledger_;
  std::optional<Wire> wire_;
  std::optional<LayerRunner> runner_;
  std::optional<PagedKvCache> cache_;
  Tensor x_;  // [seqlen, hidden]
  std::vector<int32_t> positions_;
  std::vector<int64_t> slots_;
  std::vector<int32_t> token_offsets_, context_lens_;
  std::optional<StepSequences> sequences_;  // on a GPU
  GpuRoundings gpu_roundings_;
};

}  // namespace thinwire
