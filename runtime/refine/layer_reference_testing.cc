#include "runtime/refine/layer_reference_testing.h"

#include <algorithm>
#include <cmath>

#include "kernels/activation/activation.h"
#include "runtime/model/rope_frequencies.h"

namespace thinwire {
namespace {

constexpr size_t kAttentionNorm = 1, kMlpNorm = 3, kLinears = 5;

std::vector<double> Doubles(const std::vector<float>& values) {
  return {values.begin(), values.end()};
}

// Rotates heads of [num_tokens, width].
void Rotate(const std::vector<float>& frequencies, int64_t seqlen, int64_t dim, int64_t width,
            std::vector<double>& rows) {
  const int64_t half = dim / 2;
  for (int64_t t = 0; t < static_cast<int64_t>(rows.size()) / width; ++t) {
    for (int64_t head = 0; head < width / dim; ++head) {
      double* const x = rows.data() + t * width + head * dim;
      for (int64_t i = 0; i < half; ++i) {
        const double angle = static_cast<float>(t % seqlen) * frequencies[i];
        const double a = x[i], b = x[i + half];
        x[i] = a * std::cos(angle) - b * std::sin(angle);
        x[i + half] = b * std::cos(angle) + a * std::sin(angle);
      }
    }
  }
}

}  // namespace

LayerReference::LayerReference(const ModelConfig& config, const DenseLayer& layer, int64_t seqlen,
                               const std::vector<float>& x)
    : config_(config), seqlen_(seqlen), tensors_({Doubles(x)}) {
  for (const DenseNorm* norm : {&layer.attention_norm, &layer.mlp_norm}) {
    tensors_.push_back(Doubles(norm->gain));
    tensors_.push_back(Doubles(norm->offset));
  }
  for (const LinearRole role : kLinearRoles) {
    tensors_.push_back(Doubles(layer.at(role).weight));
    tensors_.push_back(Doubles(layer.at(role).bias));
  }
}

std::vector<std::vector<double>*> LayerReference::tensors() {
  std::vector<std::vector<double>*> all;
  for (std::vector<double>& tensor : tensors_) all.push_back(&tensor);
  return all;
}

void LayerReference::Freeze(const SiteRoundings& roundings) {
  added_ = {};
  freezing_ = &roundings;
  Run();
  freezing_ = nullptr;
}

void LayerReference::At(QuantSite site, std::vector<double>& rows, int64_t width) const {
  std::vector<double>& added = added_[static_cast<size_t>(site)];
  if (freezing_ != nullptr && !freezing_->at(site).empty()) {
    std::vector<float> rounded(rows.begin(), rows.end());
    const auto num_tokens = static_cast<int64_t>(rows.size()) / width;
    for (int64_t t = 0; t < num_tokens; t += seqlen_) {
      freezing_->at(site).Apply(
          TensorView(rounded.data() + t * width, DType::kF32, {seqlen_, width}));
    }
    added.resize(rows.size());
    for (size_t i = 0; i < rows.size(); ++i) added[i] = rounded[i] - rows[i];
  }
  for (size_t i = 0; i < added.size(); ++i) rows[i] += added[i];
}

std::vector<double> LayerReference::Norm(size_t gain, const std::vector<double>& x) const {
  const int64_t hidden = config_.hidden;
  const std::vector<double>& offset = tensors_[gain + 1];
  std::vector<double> y(x.size());
  for (size_t first = 0; first < x.size(); first += static_cast<size_t>(hidden)) {
    double mean = 0.0, squares = 0.0;
    if (config_.family == ModelFamily::kOpt) {
      for (int64_t c = 0; c < hidden; ++c) mean += x[first + c] / static_cast<double>(hidden);
    }
    for (int64_t c = 0; c < hidden; ++c) squares += std::pow(x[first + c] - mean, 2);
    const double deviation =
        std::sqrt(squares / static_cast<double>(hidden) + static_cast<float>(config_.norm_epsilon));
    for (int64_t c = 0; c < hidden; ++c) {
      y[first + c] = (x[first + c] - mean) / deviation * tensors_[gain][c] +
                     (offset.empty() ? 0.0 : offset[c]);
    }
  }
  return y;
}

std::vector<double> LayerReference::Apply(LinearRole role, const std::vector<double>& x) const {
  const size_t index = kLinears + 2 * static_cast<size_t>(role);
  const std::vector<double>& weight = tensors_[index];
  const std::vector<double>& bias = tensors_[index + 1];
  const size_t in = role == LinearRole::kDown  ? config_.ffn
                    : role == LinearRole::kOut ? config_.num_heads * config_.head_dim
                                               : config_.hidden;
  const size_t out = weight.size() / in;
  const size_t num_tokens = x.size() / in;
  std::vector<double> y(num_tokens * out);
  for (size_t t = 0; t < num_tokens; ++t) {
    for (size_t o = 0; o < out; ++o) {
      double sum = bias.empty() ? 0.0 : bias[o];
      for (size_t i = 0; i < in; ++i) sum += weight[o * in + i] * x[t * in + i];
      y[t * out + o] = sum;
    }
  }
  return y;
}

std::vector<double> LayerReference::Attend(const std::vector<double>& x) const {
  const int64_t dim = config_.head_dim;
  const int64_t width = config_.num_heads * dim;
  const int64_t kv_width = config_.num_kv_heads * dim;
  std::vector<double> q = Apply(LinearRole::kQ, x), k = Apply(LinearRole::kK, x);
  std::vector<double> v = Apply(LinearRole::kV, x);
  if (config_.family != ModelFamily::kOpt) {
    const std::vector<float> frequencies = RopeFrequencies(config_.rope, dim);
    Rotate(frequencies, seqlen_, dim, width, q);
    Rotate(frequencies, seqlen_, dim, kv_width, k);
  }
  At(QuantSite::kQ, q, width);
  At(QuantSite::kK, k, kv_width);
  At(QuantSite::kV, v, kv_width);
  const int64_t num_tokens = static_cast<int64_t>(q.size()) / width;
  std::vector<double> out(q.size(), 0.0);
  for (int64_t t = 0; t < num_tokens; ++t) {
    const int64_t start = t / seqlen_ * seqlen_;
    const int64_t oldest =
        config_.sliding_window > 0 ? std::max(start, t - config_.sliding_window + 1) : start;
    for (int64_t head = 0; head < config_.num_heads; ++head) {
      const int64_t kv = head / (config_.num_heads / config_.num_kv_heads) * dim;
      double total = 0.0;
      std::vector<double> weights;
      for (int64_t s = oldest; s <= t; ++s) {
        double score = 0.0;
        for (int64_t d = 0; d < dim; ++d) {
          score += q[t * width + head * dim + d] * k[s * kv_width + kv + d];
        }
        weights.push_back(std::exp(score / std::sqrt(static_cast<double>(dim))));
        total += weights.back();
      }
      for (int64_t s = oldest; s <= t; ++s) {
        for (int64_t d = 0; d < dim; ++d) {
          out[t * width + head * dim + d] += weights[s - oldest] / total * v[s * kv_width + kv + d];
        }
      }
    }
  }
  At(QuantSite::kOutIn, out, width);
  return out;
}

std::vector<double> LayerReference::Run() const {
  std::vector<double> x = tensors_[0];
  const auto add = [&](const std::vector<double>& delta) {
    for (size_t i = 0; i < x.size(); ++i) x[i] += delta[i];
  };
  std::vector<double> normed = Norm(kAttentionNorm, x);
  At(QuantSite::kQkvIn, normed, config_.hidden);
  add(Apply(LinearRole::kOut, Attend(normed)));
  normed = Norm(kMlpNorm, x);
  At(QuantSite::kMlpIn, normed, config_.hidden);
  std::vector<double> inner = Apply(LinearRole::kUp, normed);
  if (config_.family == ModelFamily::kOpt) {
    for (double& value : inner) value = ActivationReference(config_.activation, value);
  } else {
    const std::vector<double> gate = Apply(LinearRole::kGate, normed);
    for (size_t i = 0; i < inner.size(); ++i) {
      inner[i] *= ActivationReference(config_.activation, gate[i]);
    }
  }
  At(QuantSite::kDownIn, inner, config_.ffn);
  add(Apply(LinearRole::kDown, inner));
  return x;
}

}  // namespace thinwire
