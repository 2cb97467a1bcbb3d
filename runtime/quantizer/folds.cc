#include "runtime/quantizer/folds.h"

#include <algorithm>
#include <cmath>

#include "kernels/core/check.h"
#include "runtime/quant/grid_search.h"

namespace thinwire {
namespace {

// Channels whose statistics are this much below the site's own are dead: they keep their scale.
constexpr double kDead = 1e-8;

// 0 makes columns of weights alike, 1 activations. Measured with 4-bit weights: 0.25 loses least on
// gated models and is among the best on others.
constexpr double kAlpha = 0.25;

// Rows, and columns, that a thread takes at least.
constexpr int64_t kRows = 16;
constexpr int64_t kColumns = 64;

// run(o) for every row, shared among threads.
template <typename F>
void ForRows(const DenseLinear& linear, ThreadPool& pool, const F& run) {
  pool.ParallelFor(linear.out_features, kRows, [&](int64_t begin, int64_t end) {
    for (int64_t o = begin; o < end; ++o) run(o);
  });
}

// sum over the rows of `linears` of (W_oc / |W_o|)^2, |W_o|^2 = sum_c W_oc^2 variance_c: how much
// column c matters to outputs of unit variance, whatever scale each output has.
std::vector<double> ColumnEnergy(const std::vector<const DenseLinear*>& linears,
                                 const std::vector<double>& variance, ThreadPool& pool) {
  std::vector<double> energy(variance.size(), 0.0);
  for (const DenseLinear* linear : linears) {
    std::vector<double> norms(static_cast<size_t>(linear->out_features), 0.0);
    ForRows(*linear, pool, [&](int64_t o) {
      const absl::Span<const float> row = linear->row(o);
      for (size_t c = 0; c < variance.size(); ++c) {
        norms[o] += double{row[c]} * double{row[c]} * variance[c];
      }
    });
    // Each column's rows in their order, whatever the number of threads.
    pool.ParallelFor(linear->in_features, kColumns, [&](int64_t begin, int64_t end) {
      for (int64_t o = 0; o < linear->out_features; ++o) {
        if (!(norms[o] > 0.0)) continue;
        const absl::Span<const float> row = linear->row(o);
        for (int64_t c = begin; c < end; ++c)
          energy[c] += double{row[c]} * double{row[c]} / norms[o];
      }
    });
  }
  return energy;
}

// f = variance^(alpha / 2) / energy^((1 - alpha) / 2), 1 for dead channels.
std::vector<double> Scales(const std::vector<double>& variance, const std::vector<double>& energy) {
  std::vector<double> scales(variance.size(), 1.0);
  const double most_variance = *std::max_element(variance.begin(), variance.end());
  const double most_energy = *std::max_element(energy.begin(), energy.end());
  for (size_t c = 0; c < variance.size(); ++c) {
    if (variance[c] <= kDead * kDead * most_variance || energy[c] <= kDead * kDead * most_energy) {
      continue;
    }
    scales[c] = std::pow(variance[c], 0.5 * kAlpha) / std::pow(energy[c], 0.5 - 0.5 * kAlpha);
  }
  return scales;
}

// The steps of least squared error, at least 1e-3 of their median: `parts` channels of the site,
// `stride` apart, share one.
std::vector<double> BestSteps(const ChannelStats& stats, int bits,
                              const std::vector<std::vector<int64_t>>& channels, ThreadPool& pool) {
  std::vector<double> steps(channels.size());
  pool.ParallelForDynamic(static_cast<int64_t>(channels.size()), [&](int64_t i) {
    std::vector<float> samples;
    for (const int64_t c : channels[i]) {
      const std::vector<float> more = stats.Samples(c);
      samples.insert(samples.end(), more.begin(), more.end());
    }
    const auto fit = SearchGrid(samples, {}, {.bits = bits});
    TW_CHECK(fit.ok());  // samples are finite: ChannelStats saw to it
    steps[i] = fit->grid.step;
  });
  std::vector<double> sorted = steps;
  std::nth_element(sorted.begin(), sorted.begin() + sorted.size() / 2, sorted.end());
  const double least = 1e-3 * sorted[sorted.size() / 2];
  for (double& step : steps) step = std::max(step, least);
  return steps;
}

void ScaleColumns(const std::vector<double>& scales, DenseLinear& linear, ThreadPool& pool) {
  ForRows(linear, pool, [&](int64_t o) {
    const absl::Span<float> row = linear.row(o);
    for (size_t c = 0; c < scales.size(); ++c) row[c] = static_cast<float>(row[c] * scales[c]);
  });
}

void DivideRows(const std::vector<double>& scales, DenseLinear& linear, ThreadPool& pool) {
  ForRows(linear, pool, [&](int64_t o) {
    for (float& weight : linear.row(o)) weight = static_cast<float>(weight / scales[o]);
    if (!linear.bias.empty()) linear.bias[o] = static_cast<float>(linear.bias[o] / scales[o]);
  });
}

// bias += W mean.
void AddMean(const std::vector<double>& mean, DenseLinear& linear, ThreadPool& pool) {
  ForRows(linear, pool, [&](int64_t o) {
    const absl::Span<const float> row = linear.row(o);
    double sum = linear.bias[o];
    for (size_t c = 0; c < mean.size(); ++c) sum += double{row[c]} * mean[c];
    linear.bias[o] = static_cast<float>(sum);
  });
}

std::vector<double> Variances(const ChannelStats& stats, bool centred) {
  std::vector<double> variances(stats.width());
  for (int64_t c = 0; c < stats.width(); ++c) {
    variances[c] = centred ? stats.variance(c) : stats.mean_square(c);
  }
  return variances;
}

void FoldNorm(const ChannelStats& stats, DenseNorm& norm, std::vector<DenseLinear*> readers,
              ThreadPool& pool) {
  readers.erase(std::remove_if(readers.begin(), readers.end(),
                               [](const DenseLinear* linear) { return linear->empty(); }),
                readers.end());
  const int64_t width = stats.width();
  bool shift = !norm.offset.empty();
  for (const DenseLinear* linear : readers) shift = shift && !linear->bias.empty();
  const std::vector<double> variance = Variances(stats, shift);
  const std::vector<double> scales =
      Scales(variance, ColumnEnergy({readers.begin(), readers.end()}, variance, pool));
  if (norm.gain.empty()) return;  // a norm without weights has nowhere to put them
  std::vector<double> mean(width);
  for (int64_t c = 0; c < width; ++c) {
    mean[c] = shift ? stats.mean(c) : 0.0;
    norm.gain[c] = static_cast<float>(norm.gain[c] / scales[c]);
    if (shift) norm.offset[c] = static_cast<float>((norm.offset[c] - mean[c]) / scales[c]);
  }
  for (DenseLinear* linear : readers) {
    if (shift) AddMean(mean, *linear, pool);
    ScaleColumns(scales, *linear, pool);
  }
}

void FoldValues(const ModelConfig& config, const FoldStats& all, DenseLayer& layer,
                ThreadPool& pool) {
  const ChannelStats& stats = *all.v;
  DenseLinear& v = layer.at(LinearRole::kV);
  DenseLinear& out = layer.at(LinearRole::kOut);
  const int64_t head_dim = config.head_dim;
  const int64_t group = config.num_heads / config.num_kv_heads;
  const auto kv_channel = [&](int64_t c) { return c / head_dim / group * head_dim + c % head_dim; };
  const bool shift = !v.bias.empty() && !out.bias.empty();
  const std::vector<double> variance = Variances(stats, shift);
  std::vector<double> read_variance(out.in_features), read_mean(out.in_features);
  for (int64_t c = 0; c < out.in_features; ++c) {
    read_variance[c] = variance[kv_channel(c)];
    read_mean[c] = stats.mean(kv_channel(c));
  }
  const std::vector<double> read_energy = ColumnEnergy({&out}, read_variance, pool);
  std::vector<double> energy(variance.size(), 0.0);
  for (int64_t c = 0; c < out.in_features; ++c) energy[kv_channel(c)] += read_energy[c];
  std::vector<double> scales = Scales(variance, energy);
  if (all.step_bits < 8) {
    std::vector<std::vector<int64_t>> channels(variance.size());
    for (int64_t c = 0; c < out.in_features; ++c) channels[kv_channel(c)].push_back(c);
    scales = BestSteps(*all.out_in, all.step_bits, channels, pool);
  }
  if (shift) {
    AddMean(read_mean, out, pool);
    for (int64_t c = 0; c < v.out_features; ++c) {
      v.bias[c] = static_cast<float>(v.bias[c] - stats.mean(c));
    }
  }
  DivideRows(scales, v, pool);
  std::vector<double> read_scales(out.in_features);
  for (int64_t c = 0; c < out.in_features; ++c) read_scales[c] = scales[kv_channel(c)];
  ScaleColumns(read_scales, out, pool);
}

// Scales pass through ReLU and through the product with the gate; other activations are left alone.
bool ScalesPassActivation(const ModelConfig& config, const DenseLayer& layer) {
  return !layer.at(LinearRole::kGate).empty() || config.activation == ActivationKind::kRelu;
}

// [out]: mean square of each row's weights, each over its column's mean square.
std::vector<double> RowEnergy(const DenseLinear& linear, ThreadPool& pool) {
  const std::vector<double> columns = ColumnSquares({&linear}, linear.in_features, &pool);
  const auto out = static_cast<double>(linear.out_features);
  std::vector<double> energy(linear.out_features, 0.0);
  ForRows(linear, pool, [&](int64_t o) {
    const absl::Span<const float> row = linear.row(o);
    for (size_t c = 0; c < columns.size(); ++c) {
      if (columns[c] > 0.0) energy[o] += double{row[c]} * double{row[c]} * out / columns[c];
    }
    energy[o] /= static_cast<double>(linear.in_features);
  });
  return energy;
}

// sqrt(energy), 1 for dead rows.
std::vector<double> RowScales(const std::vector<double>& energy) {
  const double most = *std::max_element(energy.begin(), energy.end());
  std::vector<double> scales(energy.size(), 1.0);
  for (size_t o = 0; o < energy.size(); ++o) {
    if (energy[o] > kDead * kDead * most) scales[o] = std::sqrt(energy[o]);
  }
  return scales;
}

// q's rows over a scale, k's times it, such that both have the same energy.
void BalanceQueriesAndKeys(const ModelConfig& config, DenseLinear& q, DenseLinear& k,
                           ThreadPool& pool) {
  const int64_t head_dim = config.head_dim;
  const int64_t group = config.num_heads / config.num_kv_heads;
  const int64_t half = head_dim / 2;
  const bool rotary = config.family != ModelFamily::kOpt;
  // Channels that share a scale: of all query heads of a KV head, and of a pair.
  const auto kv_channel = [&](int64_t c) { return c / head_dim / group * head_dim + c % head_dim; };
  const auto first_of_pair = [&](int64_t c) {
    return rotary && c % head_dim >= half ? c - half : c;
  };
  const std::vector<double> q_energy = RowEnergy(q, pool), k_energy = RowEnergy(k, pool);
  std::vector<double> q_sums(k_energy.size(), 0.0), k_sums(k_energy.size(), 0.0);
  for (int64_t c = 0; c < q.out_features; ++c) {
    q_sums[first_of_pair(kv_channel(c))] += q_energy[c] / static_cast<double>(group);
  }
  for (int64_t c = 0; c < k.out_features; ++c) k_sums[first_of_pair(c)] += k_energy[c];
  std::vector<double> scales(k_energy.size(), 1.0), inverse(k_energy.size());
  for (int64_t c = 0; c < k.out_features; ++c) {
    const int64_t at = first_of_pair(c);
    if (q_sums[at] > 0.0 && k_sums[at] > 0.0) scales[c] = std::pow(q_sums[at] / k_sums[at], 0.25);
    inverse[c] = 1.0 / scales[c];
  }
  DivideRows(inverse, k, pool);
  std::vector<double> q_scales(q.out_features);
  for (int64_t c = 0; c < q.out_features; ++c) q_scales[c] = scales[kv_channel(c)];
  DivideRows(q_scales, q, pool);
}

}  // namespace

void EqualizeRows(const ModelConfig& config, DenseLayer& layer, ThreadPool& pool) {
  DenseLinear& v = layer.at(LinearRole::kV);
  DenseLinear& out = layer.at(LinearRole::kOut);
  const int64_t group = config.num_heads / config.num_kv_heads;
  const std::vector<double> v_scales = RowScales(RowEnergy(v, pool));
  std::vector<double> read_scales(out.in_features);
  for (int64_t c = 0; c < out.in_features; ++c) {
    read_scales[c] = v_scales[c / config.head_dim / group * config.head_dim + c % config.head_dim];
  }
  DivideRows(v_scales, v, pool);
  ScaleColumns(read_scales, out, pool);
  if (ScalesPassActivation(config, layer)) {
    const std::vector<double> scales = RowScales(RowEnergy(layer.at(LinearRole::kUp), pool));
    DivideRows(scales, layer.at(LinearRole::kUp), pool);
    ScaleColumns(scales, layer.at(LinearRole::kDown), pool);
  }
  BalanceQueriesAndKeys(config, layer.at(LinearRole::kQ), layer.at(LinearRole::kK), pool);
}

void FoldLayer(const ModelConfig& config, const FoldStats& stats, DenseLayer& layer,
               ThreadPool& pool) {
  FoldValues(config, stats, layer, pool);
  if (ScalesPassActivation(config, layer)) {
    const std::vector<double> variance = Variances(*stats.down_in, false);
    std::vector<double> scales =
        Scales(variance, ColumnEnergy({&layer.at(LinearRole::kDown)}, variance, pool));
    if (stats.step_bits < 8) {
      std::vector<std::vector<int64_t>> channels(variance.size());
      for (size_t c = 0; c < channels.size(); ++c) channels[c] = {static_cast<int64_t>(c)};
      scales = BestSteps(*stats.down_in, stats.step_bits, channels, pool);
    }
    DivideRows(scales, layer.at(LinearRole::kUp), pool);
    ScaleColumns(scales, layer.at(LinearRole::kDown), pool);
  }
  if (!config.norm_before) return;  // the norm's output is the residual
  FoldNorm(*stats.qkv_in, layer.attention_norm,
           {&layer.at(LinearRole::kQ), &layer.at(LinearRole::kK), &layer.at(LinearRole::kV)}, pool);
  FoldNorm(*stats.mlp_in, layer.mlp_norm,
           {&layer.at(LinearRole::kGate), &layer.at(LinearRole::kUp)}, pool);
}

}  // namespace thinwire
