#include "runtime/quantizer/layer_quantizer.h"

#include <algorithm>
#include <numeric>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "kernels/core/check.h"
#include "kernels/core/status_macros.h"
#include "kernels/linear/blas.h"
#include "runtime/quant/asymmetric_target.h"
#include "runtime/quant/cholesky.h"
#include "runtime/quant/gptq.h"
#include "runtime/quant/second_moments.h"
#include "runtime/quant/vptq.h"
#include "runtime/quantizer/channel_stats.h"
#include "runtime/quantizer/folds.h"
#include "runtime/quantizer/kv_grids.h"
#include "runtime/quantizer/ordered_linear.h"
#include "runtime/quantizer/rank_exchange.h"
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

absl::Status AtSite(const absl::Status& status, QuantSite site) {
  return status.ok() ? status : Annotate(status, absl::StrCat("activations of ", SiteName(site)));
}

absl::StatusOr<std::vector<double>> DampedFactor(const std::vector<double>& hessian, int64_t width,
                                                 double damping) {
  for (int attempt = 0;; ++attempt, damping *= 10.0) {
    std::vector<double> factor = hessian;
    DampHessian(Damping::kRelative, damping, width, absl::MakeSpan(factor));
    const absl::Status status = UpperFactorOfInverse(width, absl::MakeSpan(factor));
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
  std::array<std::optional<ChannelStats>, kQuantSites.size()> original;
  LayerResult result;

  // Puts down what `site` was coded for.
  void Record(QuantSite site, const ChannelStats& stats) {
    const std::optional<ChannelStats>& before = original[static_cast<size_t>(site)];
    RecordRanges(stats, before.has_value() ? *before : stats, result.codes.at(site));
  }

  absl::Status Refresh() {
    TW_ASSIGN_OR_RETURN(current_weights, ToLayerWeights(current));
    return absl::OkStatus();
  }
};

absl::Status LayerQuantizer::Fold(Work& work) {
  const ResidualStream& target = *work.target_stream;
  DenseLayer& layer = work.current;
  TW_ASSIGN_OR_RETURN(const LayerWeights weights, ToLayerWeights(layer));
  std::array<std::optional<ChannelStats>, kQuantSites.size()>& stats = work.original;
  // Vectors have no steps that clusters would share.
  const bool vectors = options_.scheme.weight_format() == WeightFormat::kVptq;
  const int step_bits = vectors ? 16 : SiteBits(options_.scheme, QuantSite::kDownIn);
  const int64_t num_rows = target.num_windows * target.seqlen * world_.size();
  std::array<LaneSum<ChannelStats>, kQuantSites.size()> sums;
  const SiteRoundings none;
  for (const Range& lane : Lanes(target)) {
    std::vector<ChannelStats> parts;
    for (const QuantSite site : kQuantSites) {
      const bool sampled =
          step_bits < 8 && (site == QuantSite::kOutIn || site == QuantSite::kDownIn);
      parts.emplace_back(SiteWidth(config_, site),
                         sampled ? std::max<int64_t>(1, num_rows / kSamples) : 0);
    }
    for (int64_t w = lane.begin; w < lane.end; ++w) {
      TW_RETURN_IF_ERROR(pass_.Visit(weights, none, target.window(w), QuantSite::kDownIn,
                                     [&](QuantSite site, ConstTensorView x) {
                                       return AtSite(parts[static_cast<size_t>(site)].Add(x), site);
                                     }));
    }
    for (size_t site = 0; site < parts.size(); ++site) sums[site].Add(std::move(parts[site]));
  }
  for (size_t site = 0; site < stats.size(); ++site) {
    stats[site] = sums[site].Take();
    TW_RETURN_IF_ERROR(stats[site]->MergeOverRanks(world_, pass_.stream()));
  }
  const auto of = [&](QuantSite site) { return &*stats[static_cast<size_t>(site)]; };
  FoldLayer(config_,
            {.qkv_in = of(QuantSite::kQkvIn),
             .v = of(QuantSite::kV),
             .out_in = of(QuantSite::kOutIn),
             .mlp_in = of(QuantSite::kMlpIn),
             .down_in = of(QuantSite::kDownIn),
             .step_bits = step_bits},
            layer, pool_);
  if (vectors) EqualizeRows(config_, layer);
  return absl::OkStatus();
}

absl::StatusOr<LayerResult> LayerQuantizer::Quantize(const DenseLayer& dense,
                                                     const ResidualStream& target,
                                                     const ResidualStream& input) {
  Work work;
  work.target_stream = &target;
  work.input_stream = &input;
  work.current = dense;
  if (options_.scheme.weight_format() != WeightFormat::kDense && !options_.published_vptq) {
    TW_RETURN_IF_ERROR(Fold(work));
  }
  TW_ASSIGN_OR_RETURN(work.target, ToLayerWeights(work.current));
  TW_RETURN_IF_ERROR(work.Refresh());
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

absl::Status LayerQuantizer::ChooseSiteCodes(QuantSite site, Work& work) {
  const int bits = SiteBits(options_.scheme, site);
  const int64_t num_rows = work.input_stream->num_windows * work.input_stream->seqlen;
  ChannelStats stats(SiteWidth(config_, site),
                     std::max<int64_t>(1, num_rows * world_.size() / kSamples));
  for (int64_t w = 0; w < work.input_stream->num_windows; ++w) {
    TW_RETURN_IF_ERROR(
        pass_.Visit(work.current_weights, work.roundings, work.input_stream->window(w), site,
                    [&](QuantSite seen, ConstTensorView x) {
                      return seen == site ? AtSite(stats.Add(x), site) : absl::OkStatus();
                    }));
  }
  TW_RETURN_IF_ERROR(stats.MergeOverRanks(world_, pass_.stream()));
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
  const int64_t num_rows = work.input_stream->num_windows * work.input_stream->seqlen;
  const int64_t stride = std::max<int64_t>(1, num_rows * world_.size() / kSamples);
  std::array<std::optional<ChannelStats>, 3> stats;
  const auto index = [](QuantSite site) {
    return site == QuantSite::kQ ? 0 : site == QuantSite::kK ? 1 : 2;
  };
  for (const QuantSite site : {QuantSite::kQ, QuantSite::kK, QuantSite::kV}) {
    stats[index(site)].emplace(SiteWidth(config_, site), stride);
  }
  for (int64_t w = 0; w < work.input_stream->num_windows; ++w) {
    TW_RETURN_IF_ERROR(pass_.Visit(
        work.current_weights, work.roundings, work.input_stream->window(w), QuantSite::kV,
        [&](QuantSite site, ConstTensorView x) {
          if (site == QuantSite::kQkvIn) return absl::OkStatus();
          // A first token's K and V are kept as they are.
          const int64_t first = site != QuantSite::kQ && options_.first_token_exact ? 1 : 0;
          return AtSite(stats[index(site)]->Add(x, first), site);
        }));
  }
  for (auto& site : stats) TW_RETURN_IF_ERROR(site->MergeOverRanks(world_, pass_.stream()));
  LayerCodes& codes = work.result.codes;
  if (q_bits < 16) {
    TW_ASSIGN_OR_RETURN(codes.at(QuantSite::kQ),
                        ChooseChannelGrids(*stats[0], config_.head_dim, q_bits, pool_));
    work.Record(QuantSite::kQ, *stats[0]);
    work.roundings.Set(QuantSite::kQ, SiteRounding(codes.at(QuantSite::kQ), false));
  }
  if (kv_bits < 16) {
    TW_RETURN_IF_ERROR(ChooseKvGrids(
        {.config = &config_,
         .q = &*stats[0],
         .k = &*stats[1],
         .v = &*stats[2],
         .out = &work.current.at(LinearRole::kOut),
         .bits = kv_bits,
         .measure_loss = [&](QuantSite site,
                             const SiteCodes& tried) { return MeasureKvLoss(site, tried, work); }},
        pool_, codes));
    for (const QuantSite site : {QuantSite::kK, QuantSite::kV}) {
      work.Record(site, *stats[index(site)]);
      work.roundings.Set(site, SiteRounding(codes.at(site), options_.first_token_exact));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<double>> LayerQuantizer::MeasureKvLoss(QuantSite site,
                                                                  const SiteCodes& codes,
                                                                  Work& work) {
  const int64_t width = SiteWidth(config_, QuantSite::kOutIn);
  const int64_t head_dim = config_.head_dim;
  const int64_t group = config_.num_heads / config_.num_kv_heads;
  const DenseLinear& out = work.current.at(LinearRole::kOut);
  const int64_t seqlen = work.input_stream->seqlen;
  std::vector<double> losses(config_.num_kv_heads, 0.0);
  std::vector<float> exact(seqlen * width), coded(seqlen * width);
  std::vector<float> moved(seqlen * out.out_features);
  SiteRoundings roundings = work.roundings;
  roundings.Set(site, SiteRounding(codes, options_.first_token_exact));
  const int64_t num_windows = work.input_stream->num_windows;
  const int64_t step = std::max<int64_t>(1, num_windows * world_.size() / kLossWindows);
  for (int64_t w = 0; w < num_windows; w += step) {
    for (const bool with_codes : {false, true}) {
      std::vector<float>& rows = with_codes ? coded : exact;
      TW_RETURN_IF_ERROR(pass_.Visit(
          work.current_weights, with_codes ? roundings : work.roundings,
          work.input_stream->window(w), QuantSite::kOutIn, [&](QuantSite seen, ConstTensorView x) {
            if (seen != QuantSite::kOutIn) return absl::OkStatus();
            for (int64_t t = 0; t < seqlen; ++t) {
              std::copy_n(x.data<float>() + t * x.row_stride(), width, rows.begin() + t * width);
            }
            return absl::OkStatus();
          }));
    }
    for (size_t i = 0; i < coded.size(); ++i) coded[i] -= exact[i];
    for (int64_t h = 0; h < config_.num_heads; ++h) {
      SgemmNT(seqlen, out.out_features, head_dim, coded.data() + h * head_dim, width,
              out.weight.data() + h * head_dim, width, 0.0f, moved.data(), out.out_features);
      double loss = 0.0;
      for (const float value : moved) loss += double{value} * double{value};
      losses[h / group] += loss;
    }
  }
  TW_RETURN_IF_ERROR(SumOverRanks(absl::MakeSpan(losses), world_, pass_.stream()));
  return losses;
}

absl::Status LayerQuantizer::QuantizeSite(QuantSite site, Work& work) {
  const bool weights = options_.scheme.weight_format() != WeightFormat::kDense;
  const bool ordered = options_.scheme.weight_format() == WeightFormat::kGptq;
  const bool coded = SiteBits(options_.scheme, site) < 16;
  if (!weights && !coded) return absl::OkStatus();
  if (ordered || coded) TW_RETURN_IF_ERROR(ChooseSiteCodes(site, work));
  if (!weights) return absl::OkStatus();
  const int64_t width = SiteWidth(config_, site);
  LaneSum<SecondMoments> sums;
  const int64_t seqlen = work.input_stream->seqlen;
  std::vector<float> x(seqlen * width), y(seqlen * width);
  const SiteRoundings none;
  const auto copy_rows = [&](ConstTensorView from, std::vector<float>& to) {
    for (int64_t t = 0; t < seqlen; ++t) {
      std::copy_n(from.data<float>() + t * from.row_stride(), width, to.begin() + t * width);
    }
    return absl::OkStatus();
  };
  for (const Range& lane : Lanes(*work.input_stream)) {
    SecondMoments part(width, /*with_target=*/true);
    for (int64_t w = lane.begin; w < lane.end; ++w) {
      TW_RETURN_IF_ERROR(pass_.Visit(work.target, none, work.target_stream->window(w), site,
                                     [&](QuantSite seen, ConstTensorView rows) {
                                       return seen == site ? copy_rows(rows, y) : absl::OkStatus();
                                     }));
      TW_RETURN_IF_ERROR(pass_.Visit(work.current_weights, work.roundings,
                                     work.input_stream->window(w), site,
                                     [&](QuantSite seen, ConstTensorView rows) {
                                       return seen == site ? copy_rows(rows, x) : absl::OkStatus();
                                     }));
      work.roundings.at(site).Apply(TensorView(x.data(), DType::kF32, {seqlen, width}));
      TW_RETURN_IF_ERROR(AtSite(part.Add(x.data(), width, y.data(), width, seqlen, pool_), site));
    }
    sums.Add(std::move(part));
  }
  SecondMoments moments = sums.Take();
  TW_RETURN_IF_ERROR(SumOverRanks(moments.mutable_sums(), world_, pass_.stream()));
  for (const LinearRole role : kLinearRoles) {
    if (InputSite(role) == site && !work.current.at(role).empty()) {
      TW_RETURN_IF_ERROR(ordered ? QuantizeLinear(role, moments, work)
                                 : QuantizeVectors(role, moments, work));
    }
  }
  return work.Refresh();
}

absl::Status LayerQuantizer::QuantizeVectors(LinearRole role, const SecondMoments& moments,
                                             Work& work) {
  DenseLinear& linear = work.current.at(role);
  const int64_t width = linear.in_features;
  const bool ours = !options_.published_vptq;
  // With a bias to take up the means, only deviations from them count.
  const bool centred = ours && !linear.bias.empty();
  const std::vector<double> hessian = moments.Hessian(centred);
  std::vector<float> target = linear.weight;
  if (ours) {
    TW_ASSIGN_OR_RETURN(const std::vector<double> factor,
                        DampedFactor(hessian, width, kTargetDamping));
    target = AsymmetricTarget(linear.out_features, width, linear.weight,
                              moments.TargetShift(centred), factor, /*strength=*/1.0, pool_);
  }
  const VptqShape& shape = options_.scheme.vptq;
  TW_ASSIGN_OR_RETURN(
      VptqResult result,
      Vptq({.out_features = linear.out_features,
            .in_features = width,
            .weights = target,
            .hessian = hessian},
           {.length = shape.length,
            .index_bits = shape.index_bits,
            .residual = shape.residual,
            .residual_bits = shape.residual_bits,
            .recipe = ours ? VptqRecipe::kBest : VptqRecipe::kPublished,
            .seed = options_.seed * kLinearRoles.size() + static_cast<uint64_t>(role)},
           pool_));
  const std::vector<float> weights = Dequantize(result.codes);
  if (centred) {
    const std::vector<double> mean = moments.Mean();
    for (int64_t o = 0; o < linear.out_features; ++o) {
      double sum = linear.bias[o];
      for (int64_t i = 0; i < width; ++i) {
        sum += (double{linear.weight[o * width + i]} - double{weights[o * width + i]}) * mean[i];
      }
      linear.bias[o] = static_cast<float>(sum);
    }
  }
  linear.weight = weights;
  work.result.errors[static_cast<size_t>(role)] = result.relative_error;
  work.result.vector(role) = std::move(result.codes);
  return absl::OkStatus();
}

absl::Status LayerQuantizer::QuantizeLinear(LinearRole role, const SecondMoments& moments,
                                            Work& work) {
  DenseLinear& linear = work.current.at(role);
  const int64_t width = linear.in_features;
  const std::vector<int32_t>& order = work.result.codes.at(InputSite(role)).order;
  // With a bias to take up the means, only deviations from them count.
  const bool centred = !linear.bias.empty();
  const std::vector<double> hessian = InOrder(moments.Hessian(centred), order);
  const std::vector<double> shift = InOrder(moments.TargetShift(centred), order);
  const std::vector<float> weights = ColumnsInOrder(linear, order);
  TW_ASSIGN_OR_RETURN(const std::vector<double> factor, DampedFactor(hessian, width, kDamping));
  TW_ASSIGN_OR_RETURN(const std::vector<double> target_factor,
                      DampedFactor(hessian, width, kTargetDamping));
  const std::vector<float> target = AsymmetricTarget(linear.out_features, width, weights, shift,
                                                     target_factor, /*strength=*/1.0, pool_);
  const std::vector<int32_t> groups = GroupOffsets(width, options_.group_size);
  TW_ASSIGN_OR_RETURN(GptqResult result, Gptq({.out_features = linear.out_features,
                                               .in_features = width,
                                               .weights = target,
                                               .hessian = hessian,
                                               .factor = factor,
                                               .group_offsets = groups},
                                              {.bits = options_.scheme.weight_bits,
                                               .shrink_steps = 20,
                                               .local_search = true,
                                               .search_weights = SearchWeights::kConditional,
                                               .sweeps = 3,
                                               .refits = 1},
                                              pool_));
  if (!linear.bias.empty()) {
    const std::vector<float> correction =
        BiasCorrection(weights, result.codes, VectorInOrder(moments.Mean(), order));
    for (int64_t o = 0; o < linear.out_features; ++o) linear.bias[o] += correction[o];
  }
  SetColumns(Dequantize(result.codes), order, linear);
  work.result.errors[static_cast<size_t>(role)] = result.relative_error;
  work.result.weight(role) = std::move(result.codes);
  return absl::OkStatus();
}

}  // namespace thinwire
