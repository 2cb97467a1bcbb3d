// The shapes that the vectors of all projections have where a budget of bits is all that was said.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/core/thread_pool.h"
#include "parallel/comm/communicator.h"
#include "runtime/checkpoint/checkpoint.h"
#include "runtime/checkpoint/model_config.h"
#include "runtime/quantizer/calibration_set.h"
#include "runtime/quantizer/layer_shapes.h"

namespace thinwire {

// In the folder in the making: {"layers": [{"q": "vptq-v4-k256", ...}, ...]}.
inline constexpr char kShapePlanName[] = "shapes.json";

// Surveys the model on some of the calibration windows for what is wanted: bits of a weight and
// the kind of books. `gpu`: a GPU's stream, where it is done then; null: on the pool. Collective:
// the ranks end with the same plan. Errors: those of loading;
// InvalidArgument: fewer bits than any choice takes.
absl::StatusOr<std::vector<LayerShapes>> PlanShapes(const Checkpoint& source,
                                                    const ModelConfig& config,
                                                    const CalibrationSet& calibration,
                                                    const VptqShape& wanted, uint64_t seed,
                                                    Communicator& world, ThreadPool& pool,
                                                    Stream* gpu = nullptr);

absl::Status WriteShapePlan(const std::string& dir, const std::vector<LayerShapes>& shapes);

// What WriteShapePlan wrote for so many layers. NotFound, or InvalidArgument naming file and field.
absl::StatusOr<std::vector<LayerShapes>> ReadShapePlan(const std::string& dir, int64_t num_layers);

}  // namespace thinwire
