#include "runtime/quantizer/vptq_survey.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <optional>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_format.h"
#include "kernels/core/copy.h"
#include "kernels/core/status_macros.h"
#include "kernels/vptq_linear/vptq_weights.h"
#include "runtime/quant/vptq_columns.h"
#include "runtime/quantizer/folds.h"
#include "runtime/quantizer/ordered_linear.h"

namespace thinwire {
namespace {

// Windows of each lane that a projection's effect on the layer's output is measured on.
constexpr int64_t kMovedWindows = 2;

// Bits that one candidate must be away from the next.
constexpr double kCandidateStep = 0.12;
constexpr double kCandidatesBelow = 0.8, kCandidatesAbove = 1.2;
constexpr int kLeastIndexBits = 2, kMostIndexBits = 12;

// What is measured stands for what a thorough choice would make of each shape.
constexpr int kIterations = 8;

}  // namespace

int64_t VptqBits(const VptqShape& shape, int64_t out_features, int64_t in_features) {
  const int64_t rows = (out_features + shape.length - 1) / shape.length;
  const int64_t columns = in_features / shape.num_groups;
  const int64_t codes =
      shape.num_groups * rows * 8 * VptqRowBytes(columns, shape.index_bits + shape.residual_bits);
  const int64_t books = shape.num_groups * (shape.residual ? 2 : 1);
  const int64_t vectors =
      (int64_t{1} << shape.index_bits) + (shape.residual ? int64_t{1} << shape.residual_bits : 0);
  const int64_t numbers = shape.num_groups * vectors * shape.length;
  const int64_t book_bits =
      shape.byte_books ? 8 * numbers + 16 * books * shape.length : 16 * numbers;
  return codes + book_bits + (shape.norm ? 2 * 16 * in_features : 0);
}

std::vector<VptqShape> CandidateShapes(int64_t out_features, int64_t in_features,
                                       const VptqShape& wanted) {
  const double wanted_bits = 0.01 * wanted.centibits;
  const auto weights = static_cast<double>(out_features * in_features);
  std::vector<VptqShape> found;
  for (const bool norm : {true, false}) {
    std::map<int64_t, VptqShape> by_bits;
    for (const int length : {1, 2, 3, 4, 5, 6, 8}) {
      for (int index_bits = kLeastIndexBits; index_bits <= kMostIndexBits; ++index_bits) {
        const VptqShape shape = {.length = length,
                                 .index_bits = index_bits,
                                 .byte_books = wanted.byte_books,
                                 .norm = norm};
        const double bits =
            static_cast<double>(VptqBits(shape, out_features, in_features)) / weights;
        if (bits < wanted_bits - kCandidatesBelow || bits > wanted_bits + kCandidatesAbove)
          continue;
        VptqShape& kept = by_bits[std::lround(bits / kCandidateStep)];
        if (index_bits > kept.index_bits) kept = shape;
      }
    }
    for (const auto& [bits, shape] : by_bits) found.push_back(shape);
  }
  return found;
}

absl::StatusOr<std::vector<LayerShapes>> ChooseShapes(const std::vector<SurveyedLayer>& layers,
                                                      int64_t num_weights, int centibits) {
  std::vector<std::vector<BudgetOption>> options;
  for (const SurveyedLayer& layer : layers) {
    for (const LinearRole role : kLinearRoles) {
      const auto& of_role = layer.options[static_cast<size_t>(role)];
      if (!of_role.empty()) options.push_back(of_role);
    }
  }
  const auto chosen = ChooseWithinBudget(options, num_weights * centibits / 100);
  if (!chosen.ok()) return Annotate(chosen.status(), "--bits");
  std::vector<LayerShapes> shapes(layers.size());
  size_t next = 0;
  for (size_t layer = 0; layer < layers.size(); ++layer) {
    for (size_t role = 0; role < kLinearRoles.size(); ++role) {
      if (layers[layer].options[role].empty()) continue;
      shapes[layer][role] = layers[layer].shapes[role][(*chosen)[next++]];
    }
  }
  return shapes;
}

absl::StatusOr<DenseLayer> VptqSurvey::Folded(const DenseLayer& dense,
                                              const ResidualStream& stream) {
  DenseLayer layer = dense;
  TW_ASSIGN_OR_RETURN(const LayerWeights weights, ToLayerWeights(layer, pass_.stream()));
  std::vector<CalibrationSums::SiteQuery> queries;
  for (const QuantSite site : kQuantSites) queries.push_back({.site = site});
  const SiteRoundings none;
  TW_ASSIGN_OR_RETURN(const AllSiteStats stats, sums_.Stats({&weights, &none, &stream}, queries));
  const auto of = [&](QuantSite site) { return &*stats[static_cast<size_t>(site)]; };
  FoldLayer(config_,
            {.qkv_in = of(QuantSite::kQkvIn),
             .v = of(QuantSite::kV),
             .out_in = of(QuantSite::kOutIn),
             .mlp_in = of(QuantSite::kMlpIn),
             .down_in = of(QuantSite::kDownIn)},
            layer, pool_);
  EqualizeRows(config_, layer, pool_);
  return layer;
}

absl::StatusOr<double> VptqSurvey::Movement(const LayerWeights& exact, const LayerWeights& changed,
                                            const ResidualStream& stream) {
  const int64_t hidden = config_.hidden;
  const SiteRoundings none;
  const auto run = [&](const LayerWeights& weights, int64_t w) -> absl::StatusOr<Tensor> {
    TW_ASSIGN_OR_RETURN(Tensor rows, pass_.AllocateRows(hidden));
    TW_RETURN_IF_ERROR(Copy(stream.window(w), rows.mutable_view(), pass_.stream()));
    ResidualStream one = {.rows = std::move(rows), .num_windows = 1, .seqlen = stream.seqlen};
    TW_RETURN_IF_ERROR(pass_.Advance(weights, none, one));
    if (pass_.device() == Device::Cpu()) return std::move(one.rows);
    TW_ASSIGN_OR_RETURN(Tensor here,
                        Tensor::Allocate(DType::kF32, {stream.seqlen, hidden}, Device::Cpu()));
    TW_RETURN_IF_ERROR(Copy(one.rows.view(), here.mutable_view(), pass_.stream()));
    TW_RETURN_IF_ERROR(pass_.stream().Synchronize());
    return here;
  };
  const auto add = [&](Range windows, absl::Span<double> sums) -> absl::Status {
    const int64_t end = std::min(windows.end, windows.begin + kMovedWindows);
    for (int64_t w = windows.begin; w < end; ++w) {
      TW_ASSIGN_OR_RETURN(const Tensor before, run(exact, w));
      TW_ASSIGN_OR_RETURN(const Tensor after, run(changed, w));
      const auto* const x = before.view().data<float>();
      const auto* const y = after.view().data<float>();
      for (int64_t t = 0; t < stream.seqlen; ++t) {
        double moved = 0.0, whole = 0.0;
        for (int64_t c = t * hidden; c < (t + 1) * hidden; ++c) {
          moved += (double{y[c]} - double{x[c]}) * (double{y[c]} - double{x[c]});
          whole += double{x[c]} * double{x[c]};
        }
        if (whole > 0.0) sums[0] += moved / whole;
        sums[1] += 1.0;
      }
    }
    return absl::OkStatus();
  };
  TW_ASSIGN_OR_RETURN(const std::vector<double> sums, sums_.Sum(stream, 2, add));
  return sums[1] > 0.0 ? sums[0] / sums[1] : 0.0;
}

absl::StatusOr<SurveyedLayer> VptqSurvey::Survey(const DenseLayer& dense,
                                                 const ResidualStream& stream,
                                                 const VptqShape& wanted) {
  TW_ASSIGN_OR_RETURN(DenseLayer layer, Folded(dense, stream));
  TW_ASSIGN_OR_RETURN(const LayerWeights exact, ToLayerWeights(layer, pass_.stream()));
  TW_ASSIGN_OR_RETURN(LayerWeights changed, ToLayerWeights(layer, pass_.stream()));
  const SiteRoundings none;
  const LayerRun run = {&exact, &none, &stream};
  SurveyedLayer survey;
  std::optional<SecondMoments> moments;
  std::optional<QuantSite> site;
  for (const LinearRole role : kLinearRoles) {
    if (layer.at(role).empty()) continue;
    if (site != InputSite(role)) {
      site = InputSite(role);
      TW_ASSIGN_OR_RETURN(moments, sums_.Moments(*site, run, nullptr));
    }
    const DenseLinear linear = layer.at(role);
    const bool centred = !linear.bias.empty();
    const std::vector<double> hessian = moments->Hessian(centred, &pool_);
    const VptqProblem problem = {.out_features = linear.out_features,
                                 .in_features = linear.in_features,
                                 .weights = linear.weight,
                                 .hessian = hessian};
    auto& shapes = survey.shapes[static_cast<size_t>(role)];
    auto& options = survey.options[static_cast<size_t>(role)];
    shapes = CandidateShapes(linear.out_features, linear.in_features, wanted);
    if (shapes.empty()) {
      return absl::InvalidArgumentError(absl::StrFormat(
          "--bits %.2f: expected about as many as vectors for %s, %d x %d, can take",
          0.01 * wanted.centibits, RoleWord(role), linear.out_features, linear.in_features));
    }
    std::optional<VptqColumns> columns;
    std::optional<double> sensitivity;
    bool measured_enough = false;
    for (size_t i = 0; i < shapes.size(); ++i) {
      VptqOptions quick = VptqOptionsOf(shapes[i]);
      quick.kmeans_iterations = kIterations;
      quick.careful_start = false;
      quick.refits = quick.sweeps = 0;
      quick.seed = seed_;
      if (i == 0 || shapes[i].norm != shapes[i - 1].norm) {
        TW_ASSIGN_OR_RETURN(columns, PrepareColumns(problem, quick, gpu_));
      }
      const auto made = Vptq(problem, quick, pool_, &*columns, gpu_);
      if (!made.ok()) return Annotate(made.status(), RoleWord(role));
      const int64_t bits = VptqBits(shapes[i], linear.out_features, linear.in_features);
      options.push_back({.bits = bits, .loss = made->relative_error});
      // At about the bits that are wanted; of cheaper ones where the others lose nothing.
      const bool enough = 100 * bits >= wanted.centibits * linear.out_features * linear.in_features;
      if (made->relative_error <= 0.0 ||
          (measured_enough || (sensitivity.has_value() && !enough))) {
        continue;
      }
      measured_enough = enough;
      SetWeights(Dequantize(made->codes), centred ? moments->Mean() : std::vector<double>(),
                 layer.at(role));
      TW_RETURN_IF_ERROR(ReplaceReaders(layer, *site, changed, pass_.stream()));
      TW_ASSIGN_OR_RETURN(const double movement, Movement(exact, changed, stream));
      sensitivity = movement / made->relative_error;
      layer.at(role) = linear;
      TW_RETURN_IF_ERROR(ReplaceReaders(layer, *site, changed, pass_.stream()));
    }
    for (BudgetOption& option : options) option.loss *= sensitivity.value_or(0.0);
  }
  return survey;
}

}  // namespace thinwire
