// Calibration windows through one decoder layer, with activations rounded and looked at on the way.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "kernels/core/stream.h"
#include "kernels/core/tensor.h"
#include "parallel/comm/communicator.h"
#include "parallel/wire/ledger.h"
#include "parallel/wire/wire.h"
#include "runtime/checkpoint/checkpoint.h"
#include "runtime/checkpoint/model_config.h"
#include "runtime/model/layer_runner.h"
#include "runtime/quantizer/site_rounding.h"

namespace thinwire {

// The residual of all windows, between two layers: [num_windows * seqlen, hidden] fp32.
struct ResidualStream {
  Tensor rows;
  int64_t num_windows = 0;
  int64_t seqlen = 0;

  TensorView window(int64_t w) { return rows.mutable_view().Rows(w * seqlen, seqlen); }
  ConstTensorView window(int64_t w) const { return rows.view().Rows(w * seqlen, seqlen); }
};

// What a site's activations of one window are: [seqlen, width] fp32, before they are rounded, rows
// may be strided.
using SiteVisitor = absl::FunctionRef<absl::Status(QuantSite site, ConstTensorView x)>;

// Runs single layers over windows, each a sequence of its own. Not movable: parts point at each
// other. Thread-compatible.
class LayerPass {
 public:
  // Borrows the pool.
  static absl::StatusOr<std::unique_ptr<LayerPass>> Create(const ModelConfig& config,
                                                           int64_t seqlen, ThreadPool* pool);

  LayerPass(const LayerPass&) = delete;
  LayerPass& operator=(const LayerPass&) = delete;

  // The residual that enters the first layer.
  absl::StatusOr<ResidualStream> Embed(const Checkpoint& checkpoint,
                                       const std::vector<std::vector<int32_t>>& windows);

  // Runs the layer over one window's residual `x`, which stays as it is, up to site `last`, and
  // shows the sites up to there.
  absl::Status Visit(const LayerWeights& layer, const SiteRoundings& roundings, ConstTensorView x,
                     QuantSite last, SiteVisitor visit);

  // Replaces every window's residual by what the layer makes of it.
  absl::Status Advance(const LayerWeights& layer, const SiteRoundings& roundings,
                       ResidualStream& stream);

  Stream& stream() { return stream_; }

 private:
  LayerPass(const ModelConfig& config, int64_t seqlen, ThreadPool* pool);

  StepBatch Batch() const;

  const ModelConfig config_;
  const int64_t seqlen_;
  Stream stream_;
  ShardPlan plan_;
  std::vector<std::unique_ptr<Communicator>> alone_;  // the group of one
  Ledger ledger_;
  std::optional<Wire> wire_;
  std::optional<LayerRunner> runner_;
  std::optional<PagedKvCache> cache_;
  Tensor x_;  // [seqlen, hidden]
  std::vector<int32_t> positions_;
  std::vector<int64_t> slots_;
};

}  // namespace thinwire
