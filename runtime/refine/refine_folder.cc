#include "runtime/refine/refine_folder.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <numbers>
#include <numeric>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/types/span.h"
#include "kernels/core/atomic_file.h"
#include "kernels/core/check.h"
#include "kernels/core/status_macros.h"
#include "kernels/norm/norm.h"
#include "nlohmann/json.hpp"
#include "runtime/checkpoint/checkpoint.h"
#include "runtime/checkpoint/decoder_shape.h"
#include "runtime/checkpoint/model_config.h"
#include "runtime/checkpoint/quantisation.h"
#include "runtime/checkpoint/thinwire_file.h"
#include "runtime/json/json_file.h"
#include "runtime/model/decoder_spec.h"
#include "runtime/model/decoder_weights.h"
#include "runtime/quantizer/dense_layer.h"
#include "runtime/quantizer/layer_pass.h"
#include "runtime/quantizer/site_rounding.h"
#include "runtime/refine/adam.h"
#include "runtime/refine/layer_gradient.h"
#include "runtime/refine/logit_loss.h"
#include "runtime/refine/norm_gradient.h"
#include "runtime/refine/rewritten_folder.h"
#include "runtime/refine/trained_decoder.h"

namespace thinwire {
namespace {

// splitmix64.
uint64_t NextRandom(uint64_t& state) {
  state += 0x9e3779b97f4a7c15;
  uint64_t z = state;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
  z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
  return z ^ (z >> 31);
}

// Windows in a random order, all of them before one comes again.
class WindowOrder {
 public:
  WindowOrder(int64_t num_windows, uint64_t seed) : order_(num_windows), state_(seed) {
    std::iota(order_.begin(), order_.end(), 0);
    next_ = order_.size();
  }

  int64_t Next() {
    if (next_ == order_.size()) {
      for (size_t i = order_.size() - 1; i > 0; --i) {
        std::swap(order_[i], order_[NextRandom(state_) % (i + 1)]);
      }
      next_ = 0;
    }
    return order_[next_++];
  }

 private:
  std::vector<int64_t> order_;
  size_t next_ = 0;
  uint64_t state_;
};

TensorView Matrix(std::vector<float>& values, int64_t width) {
  return TensorView(values.data(), DType::kF32,
                    {static_cast<int64_t>(values.size()) / width, width});
}

ConstTensorView Vector(const std::vector<float>& values) {
  if (values.empty()) return {};
  return ConstTensorView(values.data(), DType::kF32, {static_cast<int64_t>(values.size())});
}

// The model as it came: what enters its first layer and what leaves its last norm.
struct Target {
  ResidualStream embedded, last;
};

absl::StatusOr<Target> RunModel(const Checkpoint& source, const ModelConfig& config,
                                const DecoderWeights& ends, const RefineOptions& options,
                                int64_t batch, ThreadPool& pool) {
  const auto seqlen = static_cast<int64_t>(options.windows.front().size());
  TW_ASSIGN_OR_RETURN(const std::unique_ptr<LayerPass> pass,
                      LayerPass::Create(config, seqlen, &pool));
  Target target;
  TW_ASSIGN_OR_RETURN(target.embedded, pass->Embed(source, options.windows));
  TW_ASSIGN_OR_RETURN(target.last, pass->Embed(source, options.windows));
  // As the refined model is computed; what is left of the windows one at a time.
  LayerGradient several(config, batch, seqlen, &pool), one(config, 1, seqlen, &pool);
  const TensorView rows = target.last.rows.mutable_view();
  for (int64_t layer = 0; layer < config.num_layers; ++layer) {
    TW_ASSIGN_OR_RETURN(const DenseLayer dense, LoadDenseLayer(source, config, layer));
    for (int64_t token = 0; token < rows.dim(0);) {
      LayerGradient& step = rows.dim(0) - token >= several.num_tokens() ? several : one;
      const TensorView part = rows.Rows(token, step.num_tokens());
      TW_RETURN_IF_ERROR(
          step.Forward(dense, absl::MakeSpan(part.mutable_data<float>(), part.num_elements())));
      token += step.num_tokens();
    }
  }
  if (config.final_norm) {
    TW_RETURN_IF_ERROR(Norm({.kind = DecoderSpecFor(config).norm,
                             .x = rows,
                             .weight = ends.final_norm.weight.view(),
                             .bias = ends.final_norm.bias.view(),
                             .out = rows,
                             .epsilon = static_cast<float>(config.norm_epsilon)},
                            pass->stream()));
  }
  return target;
}

absl::Status NoteSteps(const RefineOptions& options) {
  const std::string path = absl::StrCat(options.out, "/", kThinwireFileName);
  TW_ASSIGN_OR_RETURN(nlohmann::json json, ReadJsonFile(path));
  json["refine_steps"] = options.num_steps;
  return WriteFileAtomically(path, json.dump(2) + "\n");
}

// One folder being refined.
class Refiner {
 public:
  // roundings: by layer, of what is coded at run time.
  Refiner(const ModelConfig& config, TrainedDecoder decoder, std::vector<SiteRoundings> roundings,
          LogitLoss loss, int64_t batch, int64_t seqlen, ThreadPool* pool)
      : config_(config),
        decoder_(std::move(decoder)),
        roundings_(std::move(roundings)),
        loss_(std::move(loss)),
        gradient_(config, batch, seqlen, pool),
        pool_(pool),
        stream_(Stream::Cpu(pool)) {
    const auto size = static_cast<size_t>(gradient_.num_tokens() * config.hidden);
    residuals_.assign(static_cast<size_t>(config.num_layers + 1), std::vector<float>(size));
    for (std::vector<float>* rows : {&target_, &normed_, &derivative_}) rows->resize(size);
  }

  std::vector<Parameter*> parameters() { return decoder_.parameters(); }
  void RoundBooks() { decoder_.RoundBooks(); }

  // Sets the gradients of all parameters on some windows; returns the loss.
  absl::StatusOr<double> Differentiate(const Target& target, const std::vector<int64_t>& windows) {
    CopyWindows(target.embedded, windows, residuals_.front());
    CopyWindows(target.last, windows, target_);
    for (int64_t l = 0; l < config_.num_layers; ++l) {
      const auto at = static_cast<size_t>(l);
      decoder_.Expand(l, layer_, *pool_);
      residuals_[at + 1] = residuals_[at];
      TW_RETURN_IF_ERROR(
          gradient_.Forward(layer_, absl::MakeSpan(residuals_[at + 1]), &roundings_[at]));
    }
    TW_ASSIGN_OR_RETURN(const double loss, DifferentiateEnd());
    for (int64_t l = config_.num_layers - 1; l >= 0; --l) {
      decoder_.Expand(l, layer_, *pool_);
      const auto at = static_cast<size_t>(l);
      TW_RETURN_IF_ERROR(gradient_.Backward(layer_, residuals_[at], absl::MakeSpan(derivative_),
                                            layer_gradient_, &roundings_[at]));
      decoder_.Differentiate(l, layer_gradient_, *pool_);
    }
    return loss;
  }

 private:
  static void CopyWindows(const ResidualStream& from, const std::vector<int64_t>& windows,
                          std::vector<float>& to) {
    auto out = to.begin();
    for (const int64_t window : windows) {
      const ConstTensorView rows = from.window(window);
      out = std::copy_n(rows.data<float>(), rows.num_elements(), out);
    }
  }

  // From the last residual to the loss, and its derivative back.
  absl::StatusOr<double> DifferentiateEnd() {
    std::vector<float>& last = residuals_.back();
    if (!config_.final_norm) {
      return loss_.Run(target_, last, absl::MakeSpan(derivative_));
    }
    const DenseNorm norm = decoder_.final_norm().Expand();
    const auto epsilon = static_cast<float>(config_.norm_epsilon);
    const NormKind kind = DecoderSpecFor(config_).norm;
    TW_RETURN_IF_ERROR(Norm({.kind = kind,
                             .x = Matrix(last, config_.hidden),
                             .weight = Vector(norm.gain),
                             .bias = Vector(norm.offset),
                             .out = Matrix(normed_, config_.hidden),
                             .epsilon = epsilon},
                            stream_));
    // The derivative to normed_ takes its place.
    std::vector<float> to_normed(normed_.size());
    const double loss = loss_.Run(target_, normed_, absl::MakeSpan(to_normed));
    std::fill(derivative_.begin(), derivative_.end(), 0.0f);
    DenseNorm gradient;
    NormGradient({.kind = kind,
                  .epsilon = epsilon,
                  .gain = norm.gain,
                  .x = last,
                  .dy = to_normed,
                  .dx = absl::MakeSpan(derivative_)},
                 config_.hidden, norm.gain.empty() ? nullptr : &gradient.gain,
                 norm.offset.empty() ? nullptr : &gradient.offset, *pool_);
    decoder_.final_norm().Differentiate(gradient);
    return loss;
  }

  const ModelConfig config_;
  TrainedDecoder decoder_;
  const std::vector<SiteRoundings> roundings_;
  LogitLoss loss_;
  LayerGradient gradient_;
  ThreadPool* pool_;
  Stream stream_;
  std::vector<std::vector<float>> residuals_;  // before each layer, and behind the last
  std::vector<float> target_, normed_, derivative_;
  DenseLayer layer_, layer_gradient_;
};

}  // namespace

absl::Status CheckRefinable(const std::string& model_dir, const QuantScheme& scheme) {
  if (scheme.weight_format() != WeightFormat::kVptq) {
    return absl::UnimplementedError(
        absl::StrCat("--refine: expected --weights vptq-..., found ", SchemeName(scheme)));
  }
  TW_ASSIGN_OR_RETURN(const ModelConfig config, LoadModelConfig(model_dir));
  if (config.norm_before) return absl::OkStatus();
  return absl::UnimplementedError(
      absl::StrCat("--refine: expected norms before attention and MLP, ",
                   "found them behind their sums in ", model_dir));
}

absl::Status RefineFolder(const RefineOptions& options, ThreadPool& pool,
                          const RefineProgress& on_step) {
  TW_ASSIGN_OR_RETURN(const ThinwireFile made_by, ReadThinwireFile(options.folder));
  TW_RETURN_IF_ERROR(CheckRefinable(options.model_dir, made_by.scheme));
  TW_CHECK(!options.windows.empty());
  const auto num_windows = static_cast<int64_t>(options.windows.size());
  const auto seqlen = static_cast<int64_t>(options.windows.front().size());
  const int64_t batch = std::min(options.batch, num_windows);
  TW_ASSIGN_OR_RETURN(const ModelConfig config, LoadModelConfig(options.folder));
  TW_ASSIGN_OR_RETURN(const Checkpoint checkpoint, Checkpoint::Open(options.folder));
  TW_ASSIGN_OR_RETURN(TrainedDecoder decoder,
                      TrainedDecoder::Load(checkpoint, config, made_by.scheme.vptq.byte_books));
  TW_ASSIGN_OR_RETURN(const ModelConfig source_config, LoadModelConfig(options.model_dir));
  TW_ASSIGN_OR_RETURN(const Checkpoint source, Checkpoint::Open(options.model_dir));
  TW_ASSIGN_OR_RETURN(const ShardPlan plan,
                      ShardPlan::Create(ShapeOf(source_config), Mesh{1, 1}, 0));
  std::optional<LogitLoss> loss;
  Target target;
  {
    TW_ASSIGN_OR_RETURN(const DecoderWeights ends, LoadDecoderEnds(source, source_config, plan));
    TW_ASSIGN_OR_RETURN(loss, LogitLoss::Create(source_config, ends, &pool));
    TW_ASSIGN_OR_RETURN(target, RunModel(source, source_config, ends, options, batch, pool));
  }
  TW_ASSIGN_OR_RETURN(const Quantisation quantisation, ReadQuantisation(options.folder, config));
  std::vector<SiteRoundings> roundings(static_cast<size_t>(config.num_layers));
  for (int64_t l = 0; l < config.num_layers; ++l) {
    const LayerCodes* codes = quantisation.layer(l);
    if (codes == nullptr) continue;
    roundings[static_cast<size_t>(l)] = SiteRoundings(*codes, made_by.first_token_exact);
  }
  Refiner refiner(config, std::move(decoder), std::move(roundings), *std::move(loss), batch, seqlen,
                  &pool);
  Adam adam(refiner.parameters());
  WindowOrder order(num_windows, options.seed);
  for (int64_t step = 0; step < options.num_steps; ++step) {
    std::vector<int64_t> windows(static_cast<size_t>(batch));
    for (int64_t& window : windows) window = order.Next();
    TW_ASSIGN_OR_RETURN(const double value, refiner.Differentiate(target, windows));
    if (!std::isfinite(value)) {
      return absl::FailedPreconditionError(absl::StrCat(
          "--refine: expected finite predictions, found a loss of ", value, " in step ", step));
    }
    if (on_step != nullptr) on_step(step, options.num_steps, value);
    const double done = static_cast<double>(step) / static_cast<double>(options.num_steps);
    adam.Step(options.rate * 0.5 * (1.0 + std::cos(std::numbers::pi * done)));
  }
  refiner.RoundBooks();
  TW_RETURN_IF_ERROR(WriteRewrittenFolder(options.folder, options.out, refiner.parameters()));
  return NoteSteps(options);
}

}  // namespace thinwire
