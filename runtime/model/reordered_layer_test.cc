// Layers whose sites are in an order of their own and coded.
#include <algorithm>
#include <cmath>
#include <map>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "kernels/attention/kv_codes.h"
#include "kernels/core/stream.h"
#include "kernels/core/thread_pool.h"
#include "kernels/norm/norm.h"
#include "parallel/comm/local_communicator.h"
#include "parallel/wire/wire.h"
#include "runtime/cache/paged_kv_cache.h"
#include "runtime/model/coded_layer_testing.h"
#include "runtime/model/decoder_weights.h"
#include "runtime/model/layer_runner.h"

namespace thinwire {
namespace {

// Rounds by channel in the model's order; `margin`: how near a value came to where two codes meet.
struct Rounded {
  Rounded(const SiteCodes& codes, const std::vector<double>& x)
      : values(x.size()), magnitude(x.size()) {
    const size_t width = codes.order.size();
    for (size_t e = 0; e < x.size(); ++e) {
      const size_t j = static_cast<size_t>(
          std::find(codes.order.begin(), codes.order.end(), static_cast<int32_t>(e % width)) -
          codes.order.begin());
      const double step = codes.step[j];
      const double zero = codes.zero[j];
      const double exact = std::clamp(x[e] / step + zero, 0.0, 255.0);
      const double code = std::nearbyint(exact);
      margin = std::min(margin, 0.5 - std::abs(exact - code));
      values[e] = step * (code - zero);
      magnitude[e] = step * (code + std::abs(zero));
    }
  }

  std::vector<double> values, magnitude;
  double margin = 0.5;
};

std::vector<double> Normed(const TestLayer& layer, const std::string& name,
                           const std::vector<float>& x) {
  const bool rms = layer.config().family == ModelFamily::kLlama;
  const int64_t width = layer.config().hidden;
  std::vector<double> y(x.size());
  for (int64_t t = 0; t < static_cast<int64_t>(x.size()) / width; ++t) {
    double mean = 0.0;
    for (int64_t c = 0; c < width && !rms; ++c) mean += x[t * width + c] / double(width);
    double square = 0.0;
    for (int64_t c = 0; c < width; ++c) {
      square += std::pow(x[t * width + c] - mean, 2) / static_cast<double>(width);
    }
    for (int64_t c = 0; c < width; ++c) {
      y[t * width + c] =
          (x[t * width + c] - mean) / std::sqrt(square + 1e-5) * layer.vector(name + ".weight")[c] +
          (rms ? 0.0 : layer.vector(name + ".bias")[c]);
    }
  }
  return y;
}

// Rows whose codes are beyond doubt: fp32 moves u = x / step + zero, up to 255, by less.
constexpr double kMargin = 1e-3;

template <typename Function>
std::vector<float> UndoubtedRows(TestLayer& layer, int64_t width, const SiteCodes& codes,
                                 const Function& function) {
  std::vector<float> rows;
  while (static_cast<int64_t>(rows.size()) < kTokens * width) {
    const std::vector<float> row = layer.Uniform(width, -2.0f, 2.0f);
    if (Rounded(codes, function(row)).margin < kMargin) continue;
    rows.insert(rows.end(), row.begin(), row.end());
  }
  return rows;
}

// K or V codes of a rank, whose rows have channel `places[p]` of the model at place p.
void ExpectKvCodes(const SiteCodes& site, const KvCodes& codes, const std::vector<int32_t>& places,
                   const std::string& what) {
  const int64_t head_dim = codes.head_dim();
  ASSERT_EQ(codes.num_heads() * head_dim, static_cast<int64_t>(places.size()));
  const int64_t first = *std::min_element(places.begin(), places.end());
  for (int64_t h = 0; h < codes.num_heads(); ++h) {
    for (int64_t j = 0; j < head_dim; ++j) {
      const int64_t position = first + h * head_dim + j;
      SCOPED_TRACE(absl::StrCat(what, ", position ", position));
      ASSERT_EQ(places[h * head_dim + codes.head(h).order[j]], site.order[position]);
      ASSERT_EQ(codes.head(h).step[j], site.step[position]);
      ASSERT_EQ(codes.head(h).zero[j], site.zero[position]);
    }
  }
}

// Sites in an order of their own and coded: each half of a layer computes what rounding by channel
// in the model's order gives.
void ExpectRoundsAsInModelOrder(const Kind& kind, int tp, bool aligned) {
  TestLayer layer(kind);
  layer.Reorder(/*coded=*/true, aligned);
  const Checkpoint checkpoint = layer.Write(/*dense=*/false);
  const ModelConfig& config = layer.config();
  const LayerTensorNames& names = layer.names();
  const LayerCodes& codes = layer.codes();
  const NormKind norm = kind.llama ? NormKind::kRmsNorm : NormKind::kLayerNorm;
  Ops ops;

  const auto same = [](const std::vector<float>& row) { return Doubles(row); };
  std::map<QuantSite, std::vector<float>> x;
  std::map<QuantSite, Rounded> rounded;
  for (const QuantSite site :
       {QuantSite::kQkvIn, QuantSite::kMlpIn, QuantSite::kOutIn, QuantSite::kDownIn}) {
    const SiteCodes& site_codes = codes.at(site);
    const int64_t width = SiteWidth(config, site);
    const bool of_norm = site == QuantSite::kQkvIn || site == QuantSite::kMlpIn;
    const std::string name = site == QuantSite::kQkvIn ? names.attention_norm : names.mlp_norm;
    const auto normed = [&](const std::vector<float>& row) { return Normed(layer, name, row); };
    x[site] = of_norm ? UndoubtedRows(layer, width, site_codes, normed)
                      : UndoubtedRows(layer, width, site_codes, same);
    rounded.emplace(site, Rounded(site_codes, of_norm ? normed(x[site]) : Doubles(x[site])));
  }
  const auto expected = [&](const std::string& name) {
    const Rounded& input = rounded.at(layer.InputSite(name));
    return Expected(layer.at(name), input.values, input.magnitude);
  };

  std::vector<float> out_sum, down_sum;
  for (int rank = 0; rank < tp; ++rank) {
    const ShardPlan plan = layer.PlanOf(tp, rank);
    const LayerWeights weights = LoadDecoderLayer(checkpoint, config, plan, 0).value();
    const Range heads = Times(plan.heads(), config.head_dim);
    const Range kv_heads = Times(plan.kv_heads(), config.head_dim);
    const auto part_of = [&](QuantSite site, Range range) {
      const std::vector<int32_t>& order = codes.at(site).order;
      return std::vector<int32_t>(order.begin() + range.begin, order.begin() + range.end);
    };
    const std::vector<int32_t> out_order = part_of(QuantSite::kOutIn, heads);
    const std::vector<int32_t> down_order = part_of(QuantSite::kDownIn, plan.ffn());
    // Values leave v_proj in the order that o_proj reads the attention's output in.
    std::vector<int32_t> v_order;
    const int64_t group = config.num_heads / config.num_kv_heads;
    for (int64_t c = kv_heads.begin; c < kv_heads.end; ++c) {
      const int64_t kv = c / config.head_dim;
      const int64_t head = kv * group;
      v_order.push_back(static_cast<int32_t>(
          codes.at(QuantSite::kOutIn).order[head * config.head_dim + c % config.head_dim] -
          (head - kv) * config.head_dim));
    }

    ExpectKvCodes(codes.at(QuantSite::kK), *weights.k_codes, Sequence(kv_heads), "k");
    ExpectKvCodes(codes.at(QuantSite::kV), *weights.v_codes, v_order, "v");
    for (int64_t j = heads.begin; j < heads.end; ++j) {
      const SiteCodes& q = codes.at(QuantSite::kQ);
      ASSERT_EQ(weights.q.step.view().data<float>()[q.order[j] - heads.begin], q.step[j]);
      ASSERT_EQ(weights.q.zero.view().data<float>()[q.order[j] - heads.begin], q.zero[j]);
    }

    const std::vector<uint8_t> qkv_in =
        ops.NormedCodes(norm, weights.attention_norm, weights.qkv_in, x[QuantSite::kQkvIn]);
    ExpectOutputs(expected(names.q), ops.Integer(weights.qkv[0], qkv_in), Sequence(heads), "q");
    ExpectOutputs(expected(names.k), ops.Integer(weights.qkv[1], qkv_in), Sequence(kv_heads), "k");
    ExpectOutputs(expected(names.v), ops.Integer(weights.qkv[2], qkv_in), v_order, "v");
    const std::vector<uint8_t> mlp_in =
        ops.NormedCodes(norm, weights.mlp_norm, weights.mlp_in, x[QuantSite::kMlpIn]);
    ExpectOutputs(expected(names.up), ops.Integer(weights.up.back(), mlp_in), down_order, "up");
    if (kind.llama) {
      ExpectOutputs(expected(names.gate), ops.Integer(weights.up[0], mlp_in), down_order, "gate");
    }
    AddTo(out_sum,
          ops.Integer(weights.out[0],
                      ops.Codes(weights.out_in, Columns(x[QuantSite::kOutIn], out_order))));
    AddTo(down_sum,
          ops.Integer(weights.down[0],
                      ops.Codes(weights.down_in, Columns(x[QuantSite::kDownIn], down_order))));
  }
  ExpectOutputs(expected(names.out), out_sum, Sequence({0, config.hidden}), "out");
  ExpectOutputs(expected(names.down), down_sum, Sequence({0, config.hidden}), "down");
}

TEST(ReorderedLayerTest, SitesRoundAsInTheOrderOfTheModel) {
  for (const bool llama : {false, true}) {
    for (const int64_t group_size : {-1, 32, 128}) {
      for (const int tp : {1, 2}) {
        // Not aligned: weights of others, grouped in sequence, under our order.
        for (const bool aligned : {true, false}) {
          const Kind kind = {.llama = llama,
                             .bits = llama ? 3 : 4,
                             .group_size = group_size,
                             .desc_act = aligned,
                             .bias = !llama};
          SCOPED_TRACE(absl::StrCat(kind.DebugString(), ", tp ", tp, aligned ? ", aligned" : ""));
          ExpectRoundsAsInModelOrder(kind, tp, aligned);
        }
      }
    }
  }
}

// x + delta after one layer over one sequence, on rank 0.
std::vector<float> RunLayer(const TestLayer& layer, const Checkpoint& checkpoint, int tp,
                            const std::vector<float>& x) {
  const auto communicators = CreateLocalCommunicators(tp);
  std::vector<float> result;
  const auto play = [&](int rank) {
    const ModelConfig& config = layer.config();
    ThreadPool pool(1);
    Stream stream = Stream::Cpu(&pool);
    Ledger ledger;
    Wire wire(communicators[rank].get(), communicators[rank].get(), WireOptions(), &ledger);
    const ShardPlan plan = layer.PlanOf(tp, rank);
    const LayerWeights weights = LoadDecoderLayer(checkpoint, config, plan, 0).value();
    LayerRunner runner = LayerRunner::Create(config, plan, DType::kF32, kTokens, stream).value();
    KvCacheShape shape = {.num_layers = 1,
                          .num_kv_heads = plan.kv_heads().size(),
                          .head_dim = config.head_dim,
                          .page_size = 16,
                          .dtype = DType::kF32};
    if (weights.k_codes.has_value()) {
      shape.coded_rows = {{weights.k_codes->row_bytes(), weights.v_codes->row_bytes()}};
    }
    PagedKvCache cache = PagedKvCache::Allocate(shape, 1, 0, Device::Cpu()).value();
    const std::vector<int32_t> positions = Sequence({0, kTokens});
    const std::vector<int64_t> slots(positions.begin(), positions.end());
    const std::vector<int32_t> token_offsets = {0, kTokens}, context_lens = {kTokens};
    const std::vector<int32_t> page_offsets = {0, 1}, page_ids = {0};
    const StepBatch batch = {.token_ids = positions,
                             .positions = positions,
                             .slots = slots,
                             .token_offsets = token_offsets,
                             .context_lens = context_lens,
                             .page_offsets = page_offsets,
                             .page_ids = page_ids};
    std::vector<float> rows = x;
    const TensorView view(rows.data(), DType::kF32, {kTokens, config.hidden});
    Residual residual = {.x = view, .rows = {0, kTokens}};
    ASSERT_TRUE(runner.Run(weights, 0, residual, batch, cache, wire, stream).ok());
    ASSERT_TRUE(runner.FinishSum(residual, wire, stream).ok());
    ASSERT_TRUE(AddInPlace(view, runner.delta(kTokens), stream).ok());
    if (rank == 0) result = rows;
  };
  std::vector<std::thread> ranks;
  for (int rank = 1; rank < tp; ++rank) ranks.emplace_back(play, rank);
  play(0);
  for (std::thread& rank : ranks) rank.join();
  return result;
}

double Distance(const std::vector<float>& a, const std::vector<float>& b) {
  double sum = 0.0;
  for (size_t e = 0; e < a.size(); ++e) sum += std::pow(double{a[e]} - double{b[e]}, 2);
  return std::sqrt(sum);
}

// Queries, keys and values, too. A value where two codes meet may get either, and then so may
// others behind it: at worst the layers are as if rounded independently, each within some 1 / 255
// of a site's range at each of seven sites. A channel taken for another costs as much as the
// outputs are large.
TEST(ReorderedLayerTest, AWholeReorderedLayerIsTheDenseOneRounded) {
  for (const bool llama : {false, true}) {
    const Kind kind = {.llama = llama, .desc_act = true, .bias = true};
    TestLayer coded(kind), dense(kind);
    for (TestLayer* layer : {&coded, &dense}) layer->Reorder(/*coded=*/true, /*aligned=*/true);
    const std::vector<float> x = coded.Uniform(kTokens * coded.config().hidden, -2.0f, 2.0f);
    const Checkpoint dense_checkpoint = dense.Write(/*dense=*/true);
    const Checkpoint coded_checkpoint = coded.Write(/*dense=*/false);
    const std::vector<float> rounded = RunLayer(dense, dense_checkpoint, 1, x);
    for (const int tp : {1, 2}) {
      SCOPED_TRACE(absl::StrCat(kind.DebugString(), ", tp ", tp));
      const std::vector<float> result = RunLayer(coded, coded_checkpoint, tp, x);
      const double size = Distance(rounded, x);
      EXPECT_GT(size, 1.0);
      EXPECT_LT(Distance(result, rounded), 7.0 / 255.0 * size);
    }
  }
}

}  // namespace
}  // namespace thinwire
