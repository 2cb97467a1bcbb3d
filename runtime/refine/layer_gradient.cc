#include "runtime/refine/layer_gradient.h"

#include <algorithm>

#include "kernels/activation/activation.h"
#include "kernels/core/check.h"
#include "kernels/core/status_macros.h"
#include "kernels/norm/norm.h"
#include "kernels/rope/rope.h"
#include "runtime/model/decoder_spec.h"
#include "runtime/model/rope_frequencies.h"
#include "runtime/refine/activation_gradient.h"
#include "runtime/refine/matrix_products.h"
#include "runtime/refine/norm_gradient.h"

namespace thinwire {
namespace {

CausalAttentionShape AttentionShape(const ModelConfig& config, int64_t num_windows,
                                    int64_t seqlen) {
  return {.num_windows = num_windows,
          .seqlen = seqlen,
          .num_heads = config.num_heads,
          .num_kv_heads = config.num_kv_heads,
          .head_dim = config.head_dim,
          .sliding_window = config.sliding_window};
}

TensorView Matrix(std::vector<float>& values, int64_t width) {
  return TensorView(values.data(), DType::kF32,
                    {static_cast<int64_t>(values.size()) / width, width});
}

ConstTensorView Vector(const std::vector<float>& values) {
  if (values.empty()) return {};
  return ConstTensorView(values.data(), DType::kF32, {static_cast<int64_t>(values.size())});
}

}  // namespace

LayerGradient::LayerGradient(const ModelConfig& config, int64_t num_windows, int64_t seqlen,
                             ThreadPool* pool)
    : config_(config),
      shape_(AttentionShape(config, num_windows, seqlen)),
      num_tokens_(num_windows * seqlen),
      pool_(pool),
      stream_(Stream::Cpu(pool)),
      attention_(shape_, pool) {
  TW_CHECK(config.norm_before);
  const auto size = [&](int64_t width) { return static_cast<size_t>(num_tokens_ * width); };
  for (int64_t t = 0; t < num_tokens_; ++t) positions_.push_back(static_cast<int32_t>(t % seqlen));
  if (DecoderSpecFor(config).rope) {
    frequencies_ = RopeFrequencies(config.rope, config.head_dim);
    for (const float frequency : frequencies_) negative_frequencies_.push_back(-frequency);
  }
  for (std::vector<float>* rows : {&attention_in_, &middle_, &mlp_in_, &dnormed_}) {
    rows->resize(size(config.hidden));
  }
  for (std::vector<float>* rows : {&qkv_, &dqkv_}) rows->resize(size(shape_.qkv_width()));
  for (std::vector<float>* rows : {&attended_, &dattended_}) rows->resize(size(shape_.q_width()));
  for (std::vector<float>* rows : {&up_, &down_in_, &dup_}) rows->resize(size(config.ffn));
  if (DecoderSpecFor(config).layer.gate.empty()) return;
  for (std::vector<float>* rows : {&gate_, &dgate_}) rows->resize(size(config.ffn));
}

absl::Status LayerGradient::ApplyNorm(const DenseNorm& norm, const std::vector<float>& x,
                                      std::vector<float>& out) {
  // Without a delta, x is not written.
  std::vector<float>& unchanged = const_cast<std::vector<float>&>(x);
  return Norm({.kind = DecoderSpecFor(config_).norm,
               .x = Matrix(unchanged, config_.hidden),
               .weight = Vector(norm.gain),
               .bias = Vector(norm.offset),
               .out = Matrix(out, config_.hidden),
               .epsilon = static_cast<float>(config_.norm_epsilon)},
              stream_);
}

absl::Status LayerGradient::Rotate(float* rows, int64_t num_heads, bool back) {
  if (frequencies_.empty()) return absl::OkStatus();
  // A rotation's derivative is the rotation by the negative angle.
  const std::vector<float>& frequencies = back ? negative_frequencies_ : frequencies_;
  const TensorView all(rows, DType::kF32, {num_tokens_, shape_.qkv_width()});
  return Rope({.x = all.Columns(0, num_heads * config_.head_dim),
               .positions = ConstTensorView(positions_.data(), DType::kI32, {num_tokens_}),
               .inv_freq = Vector(frequencies),
               .num_heads = num_heads,
               .head_dim = config_.head_dim},
              stream_);
}

void LayerGradient::Apply(const DenseLinear& linear, const std::vector<float>& x, float* y,
                          int64_t ldy, bool add) {
  const int64_t out = linear.out_features;
  ProductNT(num_tokens_, out, linear.in_features, x.data(), linear.in_features,
            linear.weight.data(), add ? 1.0f : 0.0f, y, ldy, *pool_);
  if (linear.bias.empty()) return;
  pool_->ParallelFor(num_tokens_, 64, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      for (int64_t o = 0; o < out; ++o) y[t * ldy + o] += linear.bias[o];
    }
  });
}

void LayerGradient::Round(QuantSite site, const SiteRoundings* roundings, float* rows,
                          int64_t width, int64_t stride) {
  if (roundings == nullptr || roundings->at(site).empty()) return;
  // Window by window: the first token of each may be exact.
  pool_->ParallelFor(shape_.num_windows, 1, [&](int64_t begin, int64_t end) {
    for (int64_t w = begin; w < end; ++w) {
      const TensorView window(rows + w * shape_.seqlen * stride, DType::kF32,
                              {shape_.seqlen, stride});
      roundings->at(site).Apply(window.Columns(0, width));
    }
  });
}

absl::Status LayerGradient::Recompute(const DenseLayer& layer, absl::Span<const float> x,
                                      const SiteRoundings* roundings) {
  const int64_t ffn = config_.ffn;
  std::copy(x.begin(), x.end(), middle_.begin());
  const auto round = [&](QuantSite site, float* rows, int64_t width, int64_t stride) {
    Round(site, roundings, rows, width, stride);
  };
  TW_RETURN_IF_ERROR(ApplyNorm(layer.attention_norm, middle_, attention_in_));
  round(QuantSite::kQkvIn, attention_in_.data(), config_.hidden, config_.hidden);
  int64_t column = 0;
  for (const LinearRole role : {LinearRole::kQ, LinearRole::kK, LinearRole::kV}) {
    Apply(layer.at(role), attention_in_, qkv_.data() + column, shape_.qkv_width());
    column += layer.at(role).out_features;
  }
  TW_CHECK_EQ(column, shape_.qkv_width());
  TW_RETURN_IF_ERROR(Rotate(qkv_.data(), shape_.num_heads, false));
  TW_RETURN_IF_ERROR(Rotate(qkv_.data() + shape_.q_width(), shape_.num_kv_heads, false));
  const int64_t q_width = shape_.q_width();
  const int64_t kv_width = shape_.num_kv_heads * shape_.head_dim;
  round(QuantSite::kQ, qkv_.data(), q_width, shape_.qkv_width());
  round(QuantSite::kK, qkv_.data() + q_width, kv_width, shape_.qkv_width());
  round(QuantSite::kV, qkv_.data() + q_width + kv_width, kv_width, shape_.qkv_width());
  attention_.Forward(qkv_.data(), attended_.data());
  round(QuantSite::kOutIn, attended_.data(), q_width, q_width);
  Apply(layer.at(LinearRole::kOut), attended_, middle_.data(), config_.hidden, /*add=*/true);
  TW_RETURN_IF_ERROR(ApplyNorm(layer.mlp_norm, middle_, mlp_in_));
  round(QuantSite::kMlpIn, mlp_in_.data(), config_.hidden, config_.hidden);
  Apply(layer.at(LinearRole::kUp), mlp_in_, up_.data(), ffn);
  if (gate_.empty()) {
    std::copy(up_.begin(), up_.end(), down_in_.begin());
    TW_RETURN_IF_ERROR(Activate(config_.activation, Matrix(down_in_, ffn), stream_));
  } else {
    Apply(layer.at(LinearRole::kGate), mlp_in_, gate_.data(), ffn);
    TW_RETURN_IF_ERROR(GatedActivation({.kind = config_.activation,
                                        .gate = Matrix(gate_, ffn),
                                        .up = Matrix(up_, ffn),
                                        .out = Matrix(down_in_, ffn)},
                                       stream_));
  }
  round(QuantSite::kDownIn, down_in_.data(), ffn, ffn);
  return absl::OkStatus();
}

absl::Status LayerGradient::Forward(const DenseLayer& layer, absl::Span<float> x,
                                    const SiteRoundings* roundings) {
  TW_CHECK_EQ(static_cast<int64_t>(x.size()), num_tokens_ * config_.hidden);
  TW_RETURN_IF_ERROR(Recompute(layer, x, roundings));
  std::copy(middle_.begin(), middle_.end(), x.begin());
  Apply(layer.at(LinearRole::kDown), down_in_, x.data(), config_.hidden, /*add=*/true);
  return absl::OkStatus();
}

void LayerGradient::Differentiate(const DenseLinear& linear, const std::vector<float>& x,
                                  const float* dy, int64_t ldy, bool add, std::vector<float>& dx,
                                  DenseLinear& gradient) {
  const int64_t out = linear.out_features;
  const int64_t in = linear.in_features;
  gradient.out_features = out;
  gradient.in_features = in;
  gradient.weight.resize(linear.weight.size());
  gradient.bias.resize(linear.bias.size());
  ProductTN(out, in, num_tokens_, dy, ldy, x.data(), gradient.weight.data(), *pool_);
  if (!linear.bias.empty()) {
    ColumnSums(num_tokens_, out, dy, ldy, gradient.bias.data(), *pool_);
  }
  ProductNN(num_tokens_, in, out, dy, ldy, linear.weight.data(), add ? 1.0f : 0.0f, dx.data(), in,
            *pool_);
}

void LayerGradient::DifferentiateNorm(const DenseNorm& norm, absl::Span<const float> x,
                                      const std::vector<float>& dy, absl::Span<float> dx,
                                      DenseNorm& gradient) {
  NormGradient({.kind = DecoderSpecFor(config_).norm,
                .epsilon = static_cast<float>(config_.norm_epsilon),
                .gain = norm.gain,
                .x = x,
                .dy = dy,
                .dx = dx},
               config_.hidden, norm.gain.empty() ? nullptr : &gradient.gain,
               norm.offset.empty() ? nullptr : &gradient.offset, *pool_);
}

absl::Status LayerGradient::Backward(const DenseLayer& layer, absl::Span<const float> x,
                                     absl::Span<float> dx, DenseLayer& gradient,
                                     const SiteRoundings* roundings) {
  TW_CHECK_EQ(static_cast<int64_t>(dx.size()), num_tokens_ * config_.hidden);
  TW_RETURN_IF_ERROR(Recompute(layer, x, roundings));
  const int64_t hidden = config_.hidden;
  const int64_t ffn = config_.ffn;
  const auto count = static_cast<int64_t>(up_.size());
  Differentiate(layer.at(LinearRole::kDown), down_in_, dx.data(), hidden, false, dup_,
                gradient.at(LinearRole::kDown));
  if (gate_.empty()) {
    ActivationGradient(config_.activation, count, up_.data(), dup_.data(), *pool_);
  } else {
    GatedActivationGradient(config_.activation, count, gate_.data(), up_.data(), dup_.data(),
                            dgate_.data(), *pool_);
  }
  Differentiate(layer.at(LinearRole::kUp), mlp_in_, dup_.data(), ffn, false, dnormed_,
                gradient.at(LinearRole::kUp));
  if (!gate_.empty()) {
    Differentiate(layer.at(LinearRole::kGate), mlp_in_, dgate_.data(), ffn, true, dnormed_,
                  gradient.at(LinearRole::kGate));
  }
  DifferentiateNorm(layer.mlp_norm, middle_, dnormed_, dx, gradient.mlp_norm);
  Differentiate(layer.at(LinearRole::kOut), attended_, dx.data(), hidden, false, dattended_,
                gradient.at(LinearRole::kOut));
  attention_.Backward(qkv_.data(), dattended_.data(), dqkv_.data());
  TW_RETURN_IF_ERROR(Rotate(dqkv_.data(), shape_.num_heads, true));
  TW_RETURN_IF_ERROR(Rotate(dqkv_.data() + shape_.q_width(), shape_.num_kv_heads, true));
  int64_t column = 0;
  for (const LinearRole role : {LinearRole::kQ, LinearRole::kK, LinearRole::kV}) {
    Differentiate(layer.at(role), attention_in_, dqkv_.data() + column, shape_.qkv_width(),
                  column > 0, dnormed_, gradient.at(role));
    column += layer.at(role).out_features;
  }
  DifferentiateNorm(layer.attention_norm, x, dnormed_, dx, gradient.attention_norm);
  return absl::OkStatus();
}

}  // namespace thinwire
