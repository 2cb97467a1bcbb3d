// RPTQ as it was published (Yuan et al., arXiv 2304.01089, and the code released with it), to
// measure against; and, with one cluster a site, quantisation per tensor.
#pragma once

#include <cstdint>

#include "absl/status/statusor.h"
#include "parallel/comm/communicator.h"
#include "runtime/checkpoint/model_config.h"
#include "runtime/quantizer/layer_pass.h"
#include "runtime/quantizer/layer_quantizer.h"
#include "runtime/quantizer/layer_result.h"

namespace thinwire {

// As published: k-means on each channel's (max, min) over all tokens, 32 clusters of norm outputs
// and of fc2's input, 4 a head of queries with keys and of the attention's output (which also
// orders V); clusters' ranges as moving averages over windows; codes by the published formula;
// GPTQ in the clusters' order, one scale a row and cluster, fixed beforehand.
// Not as published: softmax weights stay as they are (8 bits there), rounding is halves to even,
// and the windows hold no empty samples. With grouped heads, query heads of a KV head share an
// order; keys are clustered after the rotary embedding.
class ReferenceQuantizer {
 public:
  // `gpu`: as LayerQuantizer's. `clustered` false: every site is one cluster in the model's order,
  // weight groups have options.group_size columns.
  ReferenceQuantizer(const LayerQuantizerOptions& options, bool clustered, uint64_t seed,
                     const ModelConfig* config, LayerPass* pass, Communicator* world,
                     ThreadPool* pool, Stream* gpu = nullptr)
      : options_(options),
        clustered_(clustered),
        seed_(seed),
        config_(*config),
        pass_(*pass),
        world_(*world),
        pool_(*pool),
        gpu_(gpu) {}

  // Collective over the world. `input`: the residual that enters the layer in the model whose
  // layers so far are quantised.
  absl::StatusOr<LayerResult> Quantize(const DenseLayer& dense, const ResidualStream& input);

 private:
  struct Work;

  absl::Status ClusterSites(Work& work) const;
  absl::Status MeasureRanges(Work& work) const;
  absl::Status QuantizeWeights(const DenseLayer& dense, Work& work) const;

  const LayerQuantizerOptions options_;
  const bool clustered_;
  const uint64_t seed_;
  const ModelConfig& config_;
  LayerPass& pass_;
  Communicator& world_;
  ThreadPool& pool_;
  Stream* const gpu_;  // or null
};

}  // namespace thinwire
