#include "runtime/quantizer/shape_plan.h"

#include <algorithm>
#include <memory>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "kernels/core/atomic_file.h"
#include "kernels/core/status_macros.h"
#include "nlohmann/json.hpp"
#include "runtime/json/json_file.h"
#include "runtime/quantizer/layer_pass.h"
#include "runtime/quantizer/vptq_survey.h"

namespace thinwire {
namespace {

// What shapes lose is smooth: fewer windows tell them apart than it takes to choose vectors.
constexpr int64_t kSurveyWindows = 64;

// The rank's part of some of the windows, evenly spaced.
std::vector<std::vector<int32_t>> SomeWindows(const CalibrationSet& set, int64_t count,
                                              const Communicator& world) {
  const auto total = static_cast<int64_t>(set.windows.size());
  std::vector<std::vector<int32_t>> windows;
  const int64_t end = count * (world.rank() + 1) / world.size();
  for (int64_t i = count * world.rank() / world.size(); i < end; ++i) {
    windows.push_back(set.windows[i * total / count]);
  }
  return windows;
}

}  // namespace

absl::StatusOr<std::vector<LayerShapes>> PlanShapes(
    const Checkpoint& source, const ModelConfig& config, const CalibrationSet& calibration,
    const VptqShape& wanted, uint64_t seed, Communicator& world, ThreadPool& pool, Stream* gpu) {
  const int64_t count = std::min(kSurveyWindows, static_cast<int64_t>(calibration.windows.size()));
  TW_ASSIGN_OR_RETURN(const std::unique_ptr<LayerPass> pass,
                      LayerPass::Create(config, calibration.info.seqlen, &pool, gpu));
  TW_ASSIGN_OR_RETURN(ResidualStream stream,
                      pass->Embed(source, SomeWindows(calibration, count, world)));
  VptqSurvey survey(&config, pass.get(), &world, &pool, count, seed, gpu);
  std::vector<SurveyedLayer> layers;
  int64_t num_weights = 0;
  for (int64_t layer = 0; layer < config.num_layers; ++layer) {
    TW_ASSIGN_OR_RETURN(const DenseLayer dense, LoadDenseLayer(source, config, layer));
    for (const DenseLinear& linear : dense.linears) {
      num_weights += static_cast<int64_t>(linear.weight.size());
    }
    auto surveyed = survey.Survey(dense, stream, wanted);
    if (!surveyed.ok()) return Annotate(surveyed.status(), absl::StrCat("layer ", layer));
    layers.push_back(*std::move(surveyed));
    TW_ASSIGN_OR_RETURN(const LayerWeights weights, ToLayerWeights(dense, pass->stream()));
    TW_RETURN_IF_ERROR(pass->Advance(weights, SiteRoundings(), stream));
  }
  return ChooseShapes(layers, num_weights, wanted.centibits);
}

absl::Status WriteShapePlan(const std::string& dir, const std::vector<LayerShapes>& shapes) {
  nlohmann::ordered_json layers = nlohmann::ordered_json::array();
  for (const LayerShapes& layer : shapes) {
    nlohmann::ordered_json roles = nlohmann::ordered_json::object();
    for (const LinearRole role : kLinearRoles) {
      const VptqShape& shape = layer[static_cast<size_t>(role)];
      if (shape.any()) roles[std::string(RoleWord(role))] = VptqShapeName(shape);
    }
    layers.push_back(std::move(roles));
  }
  const nlohmann::ordered_json plan = {{"layers", std::move(layers)}};
  return WriteFileAtomically(absl::StrCat(dir, "/", kShapePlanName), plan.dump(2) + "\n");
}

absl::StatusOr<std::vector<LayerShapes>> ReadShapePlan(const std::string& dir, int64_t num_layers) {
  const std::string path = absl::StrCat(dir, "/", kShapePlanName);
  TW_ASSIGN_OR_RETURN(const nlohmann::json plan, ReadJsonFile(path));
  TW_ASSIGN_OR_RETURN(const JsonFields fields, JsonFields::Create(plan, path));
  const nlohmann::json* layers = fields.Get("layers");
  if (layers == nullptr || !layers->is_array() ||
      static_cast<int64_t>(layers->size()) != num_layers) {
    return fields.Expected("layers", absl::StrCat("an array of ", num_layers));
  }
  std::vector<LayerShapes> shapes(layers->size());
  for (size_t layer = 0; layer < shapes.size(); ++layer) {
    TW_ASSIGN_OR_RETURN(
        const JsonFields roles,
        JsonFields::Create((*layers)[layer], absl::StrCat(path, ": layer ", layer)));
    for (const LinearRole role : kLinearRoles) {
      if (!roles.Has(RoleWord(role))) continue;
      TW_ASSIGN_OR_RETURN(const std::string name, roles.String(RoleWord(role)));
      auto shape = ParseVptqShape(name);
      if (!shape.ok()) return Annotate(shape.status(), path);
      shapes[layer][static_cast<size_t>(role)] = *shape;
    }
  }
  return shapes;
}

}  // namespace thinwire
