// Quantises one decoder layer, projection after projection, each on what the ones before it left.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "parallel/comm/communicator.h"
#include "runtime/checkpoint/model_config.h"
#include "runtime/checkpoint/quant_scheme.h"
#include "runtime/quant/second_moments.h"
#include "runtime/quantizer/calibration_sums.h"
#include "runtime/quantizer/dense_layer.h"
#include "runtime/quantizer/layer_pass.h"
#include "runtime/quantizer/layer_result.h"
#include "runtime/quantizer/layer_shapes.h"

namespace thinwire {

// How vectors are chosen.
enum class VptqVariant {
  kDefault,
  kReference,  // as the published tool does, on the layer as it came
  // The default without a step: the Hessian of scaled columns, folds and rows that are alike,
  // feedback of errors.
  kNoScaling,
  kNoInvariances,
  kNoFeedback,
};

struct LayerQuantizerOptions {
  QuantScheme scheme;
  int64_t group_size = 128;  // input channels that share a weight's scale; -1: all
  bool act_order = true;     // whether channels are put in order of their importance
  int tp = 0;                // see RptqFile::tp
  bool first_token_exact = true;
  VptqVariant vptq = VptqVariant::kDefault;
  uint64_t seed = 0;
  int64_t num_windows = 0;  // of all ranks, where there are several
};

// Borrows everything. Collective over `world`, whose ranks have a part of the windows each and end
// with the same result.
class LayerQuantizer {
 public:
  // `gpu`: a GPU's stream, where weights are quantised then; null: on the pool. What the layer
  // makes of its windows is computed and summed where `pass` runs.
  LayerQuantizer(const LayerQuantizerOptions& options, const ModelConfig* config, LayerPass* pass,
                 Communicator* world, ThreadPool* pool, Stream* gpu = nullptr)
      : options_(options),
        config_(*config),
        pass_(*pass),
        pool_(*pool),
        gpu_(gpu),
        sums_(config, pass, world, options.num_windows) {}

  // `target`: the residual that enters the layer in the model as it came; `input`: in the model
  // whose layers so far are quantised. InvalidArgument names the site of activations that are NaN
  // or infinite. `shapes`: where they differ; null: the scheme's.
  absl::StatusOr<LayerResult> Quantize(const DenseLayer& dense, const ResidualStream& target,
                                       const ResidualStream& input,
                                       const LayerShapes* shapes = nullptr);

 private:
  struct Work;
  struct SiteProblem;

  absl::Status Fold(Work& work);
  // Of the rows that codes of so many bits are chosen by: ranges alone say what 8 bits need.
  int64_t SampleStride(int bits, const Work& work) const;
  absl::Status QuantizeKv(Work& work);
  // By KV head: how far o_proj's output moves when K or V alone has these codes.
  absl::StatusOr<std::vector<double>> MeasureKvLoss(QuantSite site, const SiteCodes& codes,
                                                    Work& work);
  absl::Status QuantizeSite(QuantSite site, Work& work);
  absl::Status ChooseSiteCodes(QuantSite site, Work& work);
  // What the projections that read a site have in common, in the site's order where it has one.
  absl::StatusOr<SiteProblem> PrepareSite(QuantSite site, const SecondMoments& moments,
                                          const Work& work);
  absl::Status QuantizeVectors(LinearRole role, const SiteProblem& problem, Work& work);
  absl::Status QuantizeLinear(LinearRole role, const SiteProblem& problem, Work& work);

  const LayerQuantizerOptions options_;
  const ModelConfig& config_;
  LayerPass& pass_;
  ThreadPool& pool_;
  Stream* const gpu_;  // or null
  CalibrationSums sums_;
};

}  // namespace thinwire
