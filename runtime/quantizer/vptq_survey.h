// What each projection of a model would lose as vectors of each of some shapes, and which of them
// to take within a budget of bits.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "runtime/quant/budget_choice.h"
#include "runtime/quantizer/calibration_sums.h"
#include "runtime/quantizer/dense_layer.h"
#include "runtime/quantizer/layer_shapes.h"

namespace thinwire {

// Bits of a projection's indices, codebooks, scales and offsets as the file has them, but of byte
// books 8 for a number and 16 for a scale. Without outliers.
int64_t VptqBits(const VptqShape& shape, int64_t out_features, int64_t in_features);

// Shapes near `wanted`.centibits hundredths of a bit for a projection, all counted, with its kind
// of books: of those that take about as many bits the one of the largest codebook; with and without
// scales.
std::vector<VptqShape> CandidateShapes(int64_t out_features, int64_t in_features,
                                       const VptqShape& wanted);

struct SurveyedLayer {
  std::array<std::vector<VptqShape>, kLinearRoles.size()> shapes;
  std::array<std::vector<BudgetOption>, kLinearRoles.size()> options;
};

// Shapes by layer, such that all projections together take at most so many hundredths of a bit a
// weight, and lose little. InvalidArgument: too few for any choice.
absl::StatusOr<std::vector<LayerShapes>> ChooseShapes(const std::vector<SurveyedLayer>& layers,
                                                      int64_t num_weights, int centibits);

// Borrows everything.
class VptqSurvey {
 public:
  // num_windows: of all ranks. `gpu`: a GPU's stream, where vectors are chosen then; null: on the
  // pool.
  VptqSurvey(const ModelConfig* config, LayerPass* pass, Communicator* world, ThreadPool* pool,
             int64_t num_windows, uint64_t seed, Stream* gpu = nullptr)
      : config_(*config),
        pass_(*pass),
        pool_(*pool),
        gpu_(gpu),
        sums_(config, pass, world, num_windows),
        seed_(seed) {}

  // Collective: the ranks end with the same result. `stream`: the residual that enters the layer as
  // it came. A loss is how far the layer's output moves, over the residual, token by token, when
  // the projection alone is quantised: measured for one shape, for others by their share of the
  // error of the projection's own output. `wanted`: CandidateShapes'.
  absl::StatusOr<SurveyedLayer> Survey(const DenseLayer& dense, const ResidualStream& stream,
                                       const VptqShape& wanted);

 private:
  // The layer as it is to be quantised.
  absl::StatusOr<DenseLayer> Folded(const DenseLayer& dense, const ResidualStream& stream);
  absl::StatusOr<double> Movement(const LayerWeights& exact, const LayerWeights& changed,
                                  const ResidualStream& stream);

  const ModelConfig& config_;
  LayerPass& pass_;
  ThreadPool& pool_;
  Stream* const gpu_;  // or null
  CalibrationSums sums_;
  const uint64_t seed_;
};

}  // namespace thinwire
