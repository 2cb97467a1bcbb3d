#include "runtime/quantizer/layer_quantizer.h"

#include <algorithm>
#include <numeric>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "kernels/core/check.h"
#include "kernels/core/status_macros.h"
#include "runtime/quant/asymmetric_target.h"
#include "runtime/quant/cholesky.h"
#include "runtime/quant/gptq.h"
#include "runtime/quant/vptq.h"
#include "runtime/quantizer/folds.h"
#include "runtime/quantizer/kv_grids.h"
#include "runtime/quantizer/ordered_linear.h"
#include "runtime/quantizer/output_losses.h"
#include "runtime/quantizer/site_grids.h"

namespace thinwire {
namespace {

// Rows that grids are fitted on.
constexpr int64_t kSamples = 4096;

// Windows that a loss of K or V is measured on.
constexpr int64_t kLossWindows = 16;

constexpr double kDamping = 0.01;
constexpr double kTargetDamping = 0.03;
// How often a Hessian that is not positive definite is damped ten times more.
constexpr int kDampingRetries = 4;

absl::StatusOr<std::vector<double>> DampedFactor(const std::vector<double>& hessian, int64_t width,
                                                 double damping, Stream* gpu) {
  for (int attempt = 0;; ++attempt, damping *= 10.0) {
    std::vector<double> factor = hessian;
    DampHessian(Damping::kRelative, damping, width, absl::MakeSpan(factor));
    const absl::Status status = UpperFactorOfInverse(width, absl::MakeSpan(factor), gpu);
    if (status.ok()) return factor;
    if (attempt == kDampingRetries) return status;
  }
}

}  // namespace

// The layer in the making.
struct LayerQuantizer::Work {
  const ResidualStream* target_stream;
  const ResidualStream* input_stream;
  LayerWeights target;  // the layer as it came, folded
  DenseLayer current;   // the same, with projections replaced by what their codes stand for
  LayerWeights current_weights;
  SiteRoundings roundings;  // of the sites done so far
  // Activations of the layer as it came, where folds have changed them.
  AllSiteStats original;
  LayerShapes shapes;
  LayerResult result;

  // Puts down what `site` was coded for.
  void Record(QuantSite site, const ChannelStats& stats) {
    const std::optional<ChannelStats>& before = original[static_cast<size_t>(site)];
    RecordRanges(stats, before.has_value() ? *before : stats, result.codes.at(site));
  }

  LayerRun Run() const { return {&current_weights, &roundings, input_stream}; }
};

struct LayerQuantizer::SiteProblem {
  // With biases to take up the means, only deviations from them count. Else empty.
  std::vector<double> mean;            // [width] in the model's order
  std::vector<double> hessian, shift;  // [width, width]
  std::vector<double> factor;          // of the damped Hessian, for GPTQ
  std::vector<double> target_factor;   // of the Hessian damped for targets
};

absl::Status LayerQuantizer::Fold(Work& work) {
  const ResidualStream& target = *work.target_stream;
  DenseLayer& layer = work.current;
  TW_ASSIGN_OR_RETURN(const LayerWeights weights, ToLayerWeights(layer, pass_.stream()));
  // Vectors have no steps that clusters would share.
  const bool vectors = options_.scheme.weight_format() == WeightFormat::kVptq;
  const int step_bits = vectors ? 16 : SiteBits(options_.scheme, QuantSite::kDownIn);
  std::vector<CalibrationSums::SiteQuery> queries;
  for (const QuantSite site : kQuantSites) {
    const bool sampled = step_bits < 8 && (site == QuantSite::kOutIn || site == QuantSite::kDownIn);
    queries.push_back(
        {.site = site, .sample_stride = sampled ? sums_.SampleStride(target, kSamples) : 0});
  }
  const SiteRoundings none;
  AllSiteStats& stats = work.original;
  TW_ASSIGN_OR_RETURN(stats, sums_.Stats({&weights, &none, &target}, queries));
  const auto of = [&](QuantSite site) { return &*stats[static_cast<size_t>(site)]; };
  FoldLayer(config_,
            {.qkv_in = of(QuantSite::kQkvIn),
             .v = of(QuantSite::kV),
             .out_in = of(QuantSite::kOutIn),
             .mlp_in = of(QuantSite::kMlpIn),
             .down_in = of(QuantSite::kDownIn),
             .step_bits = step_bits},
            layer, pool_);
  if (vectors) EqualizeRows(config_, layer, pool_);
  return absl::OkStatus();
}

absl::StatusOr<LayerResult> LayerQuantizer::Quantize(const DenseLayer& dense,
                                                     const ResidualStream& target,
                                                     const ResidualStream& input,
                                                     const LayerShapes* shapes) {
  Work work;
  work.shapes.fill(options_.scheme.vptq);
  if (shapes != nullptr) work.shapes = *shapes;
  work.target_stream = &target;
  work.input_stream = &input;
  work.current = dense;
  const bool folds =
      options_.vptq != VptqVariant::kReference && options_.vptq != VptqVariant::kNoInvariances;
  if (options_.scheme.weight_format() != WeightFormat::kDense && folds) {
    TW_RETURN_IF_ERROR(Fold(work));
  }
  TW_ASSIGN_OR_RETURN(work.target, ToLayerWeights(work.current, pass_.stream()));
  TW_ASSIGN_OR_RETURN(work.current_weights, ToLayerWeights(work.current, pass_.stream()));
  TW_RETURN_IF_ERROR(QuantizeSite(QuantSite::kQkvIn, work));
  TW_RETURN_IF_ERROR(QuantizeKv(work));
  TW_RETURN_IF_ERROR(QuantizeSite(QuantSite::kOutIn, work));
  TW_RETURN_IF_ERROR(QuantizeSite(QuantSite::kMlpIn, work));
  TW_RETURN_IF_ERROR(QuantizeSite(QuantSite::kDownIn, work));
  work.result.attention_norm = work.current.attention_norm;
  work.result.mlp_norm = work.current.mlp_norm;
  for (const LinearRole role : kLinearRoles) {
    work.result.bias(role) = work.current.at(role).bias;
  }
  return std::move(work.result);
}

int64_t LayerQuantizer::SampleStride(int bits, const Work& work) const {
  return bits < 8 ? sums_.SampleStride(*work.input_stream, kSamples) : 0;
}

absl::Status LayerQuantizer::ChooseSiteCodes(QuantSite site, Work& work) {
  const int bits = SiteBits(options_.scheme, site);
  TW_ASSIGN_OR_RETURN(
      const AllSiteStats all,
      sums_.Stats(work.Run(), {{.site = site, .sample_stride = SampleStride(bits, work)}}));
  const ChannelStats& stats = *all[static_cast<size_t>(site)];
  std::vector<const DenseLinear*> readers;
  for (const LinearRole role : kLinearRoles) {
    if (InputSite(role) == site && !work.current.at(role).empty()) {
      readers.push_back(&work.current.at(role));
    }
  }
  if (options_.scheme.weight_format() != WeightFormat::kGptq) {
    // Nothing is summed as integers: every channel has its own step.
    TW_ASSIGN_OR_RETURN(
        work.result.codes.at(site),
        ChooseChannelGrids(stats, SiteBlock(config_, site, options_.tp), bits, pool_));
    work.Record(site, stats);
    work.roundings.Set(site, SiteRounding(work.result.codes.at(site), false));
    return absl::OkStatus();
  }
  // Products of two activations have long tails.
  const bool gated = !work.current.at(LinearRole::kGate).empty();
  TW_ASSIGN_OR_RETURN(work.result.codes.at(site),
                      ChooseSiteGrid({.config = &config_,
                                      .site = site,
                                      .bits = bits,
                                      .group_size = options_.group_size,
                                      .act_order = options_.act_order,
                                      .tp = options_.tp,
                                      .levels = bits == 4 && gated && site == QuantSite::kDownIn,
                                      .stats = &stats,
                                      .readers = readers},
                                     pool_));
  work.Record(site, stats);
  work.roundings.Set(site, SiteRounding(work.result.codes.at(site), false));
  return absl::OkStatus();
}

absl::Status LayerQuantizer::QuantizeKv(Work& work) {
  const int kv_bits = SiteBits(options_.scheme, QuantSite::kK);
  const int q_bits = SiteBits(options_.scheme, QuantSite::kQ);
  if (kv_bits >= 16 && q_bits >= 16) return absl::OkStatus();
  const int64_t stride = SampleStride(kv_bits, work);
  // A first token's K and V are kept as they are.
  const int64_t first = options_.first_token_exact ? 1 : 0;
  TW_ASSIGN_OR_RETURN(
      const AllSiteStats all,
      sums_.Stats(work.Run(), {{.site = QuantSite::kQ, .sample_stride = SampleStride(q_bits, work)},
                               {.site = QuantSite::kK, .sample_stride = stride, .first = first},
                               {.site = QuantSite::kV, .sample_stride = stride, .first = first}}));
  const auto of = [&](QuantSite site) { return &*all[static_cast<size_t>(site)]; };
  LayerCodes& codes = work.result.codes;
  if (q_bits < 16) {
    TW_ASSIGN_OR_RETURN(codes.at(QuantSite::kQ),
                        ChooseChannelGrids(*of(QuantSite::kQ), config_.head_dim, q_bits, pool_));
    work.Record(QuantSite::kQ, *of(QuantSite::kQ));
    work.roundings.Set(QuantSite::kQ, SiteRounding(codes.at(QuantSite::kQ), false));
  }
  if (kv_bits < 16) {
    TW_RETURN_IF_ERROR(ChooseKvGrids(
        {.config = &config_,
         .q = of(QuantSite::kQ),
         .k = of(QuantSite::kK),
         .v = of(QuantSite::kV),
         .out = &work.current.at(LinearRole::kOut),
         .bits = kv_bits,
         .measure_loss = [&](QuantSite site,
                             const SiteCodes& tried) { return MeasureKvLoss(site, tried, work); }},
        pool_, codes));
    for (const QuantSite site : {QuantSite::kK, QuantSite::kV}) {
      work.Record(site, *of(site));
      work.roundings.Set(site, SiteRounding(codes.at(site), options_.first_token_exact));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<double>> LayerQuantizer::MeasureKvLoss(QuantSite site,
                                                                  const SiteCodes& codes,
                                                                  Work& work) {
  const int64_t width = SiteWidth(config_, QuantSite::kOutIn);
  const int64_t group = config_.num_heads / config_.num_kv_heads;
  TW_ASSIGN_OR_RETURN(Tensor exact, pass_.AllocateRows(width));
  TW_ASSIGN_OR_RETURN(Tensor coded, pass_.AllocateRows(width));
  SiteRoundings roundings = work.roundings;
  roundings.Set(site, SiteRounding(codes, options_.first_token_exact));
  const ResidualStream& stream = *work.input_stream;
  const int64_t step = std::max<int64_t>(1, sums_.TotalWindows(stream) / kLossWindows);
  const auto add = [&](Range windows, absl::Span<double> losses) -> absl::Status {
    for (int64_t w = windows.begin; w < windows.end; w += step) {
      TW_RETURN_IF_ERROR(pass_.Capture(work.current_weights, work.roundings, stream.window(w),
                                       QuantSite::kOutIn, exact.mutable_view()));
      TW_RETURN_IF_ERROR(pass_.Capture(work.current_weights, roundings, stream.window(w),
                                       QuantSite::kOutIn, coded.mutable_view()));
      TW_ASSIGN_OR_RETURN(const std::vector<double> by_head,
                          HeadLosses(exact.view(), coded.mutable_view(),
                                     work.current_weights.out.front().weight.view(),
                                     config_.head_dim, pass_.stream()));
      for (int64_t h = 0; h < config_.num_heads; ++h) losses[h / group] += by_head[h];
    }
    return absl::OkStatus();
  };
  return sums_.Sum(stream, config_.num_kv_heads, add);
}

absl::Status LayerQuantizer::QuantizeSite(QuantSite site, Work& work) {
  const bool weights = options_.scheme.weight_format() != WeightFormat::kDense;
  const bool ordered = options_.scheme.weight_format() == WeightFormat::kGptq;
  const bool coded = SiteBits(options_.scheme, site) < 16;
  if (!weights && !coded) return absl::OkStatus();
  if (ordered || coded) TW_RETURN_IF_ERROR(ChooseSiteCodes(site, work));
  if (!weights) return absl::OkStatus();
  const SiteRoundings none;
  const LayerRun target = {&work.target, &none, work.target_stream};
  SiteProblem problem;
  {
    TW_ASSIGN_OR_RETURN(const SecondMoments moments, sums_.Moments(site, work.Run(), &target));
    TW_ASSIGN_OR_RETURN(problem, PrepareSite(site, moments, work));
  }
  for (const LinearRole role : kLinearRoles) {
    if (InputSite(role) == site && !work.current.at(role).empty()) {
      TW_RETURN_IF_ERROR(ordered ? QuantizeLinear(role, problem, work)
                                 : QuantizeVectors(role, problem, work));
    }
  }
  return ReplaceReaders(work.current, site, work.current_weights, pass_.stream());
}

absl::StatusOr<LayerQuantizer::SiteProblem> LayerQuantizer::PrepareSite(
    QuantSite site, const SecondMoments& moments, const Work& work) {
  const bool ordered = options_.scheme.weight_format() == WeightFormat::kGptq;
  const bool ours = options_.vptq != VptqVariant::kReference;
  const bool biased = std::all_of(kLinearRoles.begin(), kLinearRoles.end(), [&](LinearRole role) {
    const DenseLinear& linear = work.current.at(role);
    return InputSite(role) != site || linear.empty() || !linear.bias.empty();
  });
  const bool centred = biased && (ordered || ours);
  const int64_t width = moments.width();
  SiteProblem problem;
  if (centred) problem.mean = moments.Mean();
  problem.hessian = moments.Hessian(centred, &pool_);
  if (!ordered && !ours) return problem;
  problem.shift = moments.TargetShift(centred, &pool_);
  if (ordered) {
    const std::vector<int32_t>& order = work.result.codes.at(site).order;
    problem.hessian = InOrder(problem.hessian, order, pool_);
    problem.shift = InOrder(problem.shift, order, pool_);
    TW_ASSIGN_OR_RETURN(problem.factor, DampedFactor(problem.hessian, width, kDamping, gpu_));
  }
  TW_ASSIGN_OR_RETURN(problem.target_factor,
                      DampedFactor(problem.hessian, width, kTargetDamping, gpu_));
  return problem;
}

absl::Status LayerQuantizer::QuantizeVectors(LinearRole role, const SiteProblem& problem,
                                             Work& work) {
  DenseLinear& linear = work.current.at(role);
  const int64_t width = linear.in_features;
  const bool ours = options_.vptq != VptqVariant::kReference;
  std::vector<float> target = linear.weight;
  if (ours) {
    TW_ASSIGN_OR_RETURN(target, AsymmetricTarget(linear.out_features, width, linear.weight,
                                                 problem.shift, problem.target_factor,
                                                 /*strength=*/1.0, pool_, gpu_));
  }
  VptqOptions vptq = VptqOptionsOf(work.shapes[static_cast<size_t>(role)]);
  vptq.recipe = ours ? VptqRecipe::kBest : VptqRecipe::kPublished;
  vptq.scaled_hessian = options_.vptq != VptqVariant::kNoScaling;
  vptq.feedback = options_.vptq != VptqVariant::kNoFeedback;
  if (!vptq.feedback) vptq.sweeps = 0;
  vptq.seed = options_.seed * kLinearRoles.size() + static_cast<uint64_t>(role);
  auto made = Vptq({.out_features = linear.out_features,
                    .in_features = width,
                    .weights = target,
                    .hessian = problem.hessian},
                   vptq, pool_, /*columns=*/nullptr, gpu_);
  if (!made.ok()) return Annotate(made.status(), RoleWord(role));
  VptqResult& result = *made;
  SetWeights(Dequantize(result.codes), problem.mean, linear);
  work.result.errors[static_cast<size_t>(role)] = result.relative_error;
  work.result.vector(role) = std::move(result.codes);
  return absl::OkStatus();
}

absl::Status LayerQuantizer::QuantizeLinear(LinearRole role, const SiteProblem& problem,
                                            Work& work) {
  DenseLinear& linear = work.current.at(role);
  const int64_t width = linear.in_features;
  const std::vector<int32_t>& order = work.result.codes.at(InputSite(role)).order;
  const std::vector<float> weights = ColumnsInOrder(linear, order, pool_);
  TW_ASSIGN_OR_RETURN(const std::vector<float> target,
                      AsymmetricTarget(linear.out_features, width, weights, problem.shift,
                                       problem.target_factor, /*strength=*/1.0, pool_, gpu_));
  const std::vector<int32_t> groups = GroupOffsets(width, options_.group_size);
  TW_ASSIGN_OR_RETURN(GptqResult result, Gptq({.out_features = linear.out_features,
                                               .in_features = width,
                                               .weights = target,
                                               .hessian = problem.hessian,
                                               .factor = problem.factor,
                                               .group_offsets = groups},
                                              {.bits = options_.scheme.weight_bits,
                                               .shrink_steps = 20,
                                               .local_search = true,
                                               .search_weights = SearchWeights::kConditional,
                                               .sweeps = 3,
                                               .refits = 1},
                                              pool_, gpu_));
  if (!problem.mean.empty()) {
    const std::vector<float> correction =
        BiasCorrection(weights, result.codes, VectorInOrder(problem.mean, order));
    for (int64_t o = 0; o < linear.out_features; ++o) linear.bias[o] += correction[o];
  }
  SetColumns(Dequantize(result.codes, &pool_), order, linear, pool_);
  work.result.errors[static_cast<size_t>(role)] = result.relative_error;
  work.result.weight(role) = std::move(result.codes);
  return absl::OkStatus();
}

}  // namespace thinwire
