// A decoder layer of GPTQ codes, written by the test, and what it must compute. For tests of this
// folder.
#pragma once

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "kernels/coded_linear/coded_linear.h"
#include "kernels/codes/codes.h"
#include "kernels/convert/gather.h"
#include "kernels/core/float16.h"
#include "kernels/core/stream.h"
#include "kernels/core/thread_pool.h"
#include "kernels/norm/norm.h"
#include "runtime/checkpoint/checkpoint.h"
#include "runtime/checkpoint/gptq_tensors.h"
#include "runtime/checkpoint/quantisation.h"
#include "runtime/checkpoint/safetensors_writer.h"
#include "runtime/model/decoder_spec.h"
#include "runtime/model/decoder_weights.h"
#include "tests/support/safetensors_writer.h"

namespace thinwire {

inline constexpr int64_t kTokens = 5;
inline constexpr double kEpsilon = 0x1p-24;

// What a checkpoint is like.
struct Kind {
  bool llama = false;  // GQA, a gate, RMS norms; else OPT
  int bits = 4;
  int64_t group_size = 32;
  bool desc_act = false;
  bool bias = false;

  std::string DebugString() const {
    return absl::StrCat(llama ? "llama" : "opt", ", ", bits, " bits, groups of ", group_size,
                        desc_act ? ", act-order" : "", bias ? ", biases" : "");
  }
};

inline ModelConfig ConfigOf(const Kind& kind) {
  ModelConfig config;
  config.family = kind.llama ? ModelFamily::kLlama : ModelFamily::kOpt;
  config.vocab = 8;
  config.hidden = 128;
  config.embed_dim = 128;
  config.num_layers = 1;
  config.num_heads = 4;
  config.num_kv_heads = kind.llama ? 2 : 4;
  config.head_dim = 32;
  config.ffn = 176;  // halves of 88 cut a group of 32 or 128
  config.max_positions = 16;
  config.norm_epsilon = 1e-5;
  config.activation = kind.llama ? ActivationKind::kSilu : ActivationKind::kRelu;
  config.attention_bias = config.attention_out_bias = config.mlp_bias = kind.bias;
  config.gptq =
      GptqConfig{.bits = kind.bits, .group_size = kind.group_size, .desc_act = kind.desc_act};
  return config;
}

// A projection as its tensors have it, in the model's order.
struct Projection {
  int64_t out = 0;
  int64_t in = 0;
  int64_t groups = 1;
  std::vector<uint8_t> codes;  // [out, in]
  std::vector<float> scales;   // [out, groups]
  std::vector<uint8_t> zeros;
  std::vector<int32_t> g_idx;
  std::vector<float> bias;

  double Weight(int64_t o, int64_t i) const {
    return Scale(o, i) * (codes[o * in + i] - Zero(o, i));
  }
  // What the terms of a product of codes can be as large as.
  double Magnitude(int64_t o, int64_t i) const {
    return Scale(o, i) * (codes[o * in + i] + Zero(o, i));
  }
  double Bias(int64_t o) const { return bias.empty() ? 0.0 : bias[o]; }

 private:
  double Scale(int64_t o, int64_t i) const { return scales[o * groups + g_idx[i]]; }
  int Zero(int64_t o, int64_t i) const { return zeros[o * groups + g_idx[i]]; }
};

// One layer and its folders.
class TestLayer {
 public:
  explicit TestLayer(const Kind& kind)
      : kind_(kind), config_(ConfigOf(kind)), names_(DecoderSpecFor(config_).layer), random_(5) {
    const int64_t q = config_.num_heads * config_.head_dim;
    const int64_t kv = config_.num_kv_heads * config_.head_dim;
    Add(names_.q, q, config_.hidden);
    Add(names_.k, kv, config_.hidden);
    Add(names_.v, kv, config_.hidden);
    Add(names_.out, config_.hidden, q);
    if (!names_.gate.empty()) Add(names_.gate, config_.ffn, config_.hidden);
    Add(names_.up, config_.ffn, config_.hidden);
    Add(names_.down, config_.hidden, config_.ffn);
    for (const std::string& name : {names_.attention_norm, names_.mlp_norm}) {
      vectors_[name + ".weight"] = Uniform(config_.hidden, 0.5f, 1.5f);
      if (!kind.llama) vectors_[name + ".bias"] = Uniform(config_.hidden, -0.5f, 0.5f);
    }
  }

  const ModelConfig& config() const { return config_; }
  const LayerTensorNames& names() const { return names_; }
  const Projection& at(const std::string& name) const { return projections_.at(name); }
  const std::vector<float>& vector(const std::string& name) const { return vectors_.at(name); }
  const LayerCodes& codes() const { return rptq_.layers[0]; }
  const TestFolder& folder() const { return folder_; }
  std::mt19937& random() { return random_; }

  std::vector<float> Uniform(int64_t size, float least, float greatest) {
    std::uniform_real_distribution<float> distribution(least, greatest);
    std::vector<float> values(size);
    for (float& value : values) value = distribution(random_);
    return values;
  }

  // Gives every site an order inside its blocks and codes of 8 bits; groups of weights follow the
  // orders where `aligned`, as our quantiser makes them.
  void Reorder(bool coded, bool aligned) {
    coded_ = coded;
    rptq_.tp = 2;
    rptq_.layers.resize(1);
    const int64_t head_group = config_.num_heads / config_.num_kv_heads * config_.head_dim;
    for (const QuantSite site : kQuantSites) {
      const bool cached = site == QuantSite::kK || site == QuantSite::kV;
      if (!coded && (cached || site == QuantSite::kQ)) continue;
      SiteCodes& codes = rptq_.layers[0].at(site);
      codes = RandomSite(site, coded);
      if (site != QuantSite::kOutIn) continue;
      // Query heads that read the same values agree.
      for (int64_t j = 0; j < SiteWidth(config_, site); ++j) {
        const int64_t first = j / head_group * head_group;
        const int64_t head = j / config_.head_dim * config_.head_dim;
        codes.order[j] =
            static_cast<int32_t>(codes.order[first + j % config_.head_dim] - first + head);
      }
    }
    if (!aligned) return;
    for (auto& [name, projection] : projections_) {
      const SiteCodes& codes = rptq_.layers[0].at(InputSite(name));
      for (int64_t j = 0; j < projection.in; ++j) {
        projection.g_idx[codes.order[j]] = static_cast<int32_t>(j / GroupSize(projection.in));
      }
    }
  }

  QuantSite InputSite(const std::string& name) const {
    if (name == names_.out) return QuantSite::kOutIn;
    if (name == names_.down) return QuantSite::kDownIn;
    return name == names_.gate || name == names_.up ? QuantSite::kMlpIn : QuantSite::kQkvIn;
  }

  // Writes the layer, as codes or as what they stand for, and opens it.
  Checkpoint Write(bool dense) {
    config_.gptq.reset();
    const GptqConfig gptq = {
        .bits = kind_.bits, .group_size = kind_.group_size, .desc_act = kind_.desc_act};
    if (!dense) config_.gptq = gptq;
    const std::string prefix =
        DecoderSpecFor(config_).prefixes.front() + DecoderSpecFor(config_).layers + "0.";
    std::map<std::string, std::vector<float>> vectors;
    for (const auto& [name, values] : vectors_) vectors[prefix + name] = values;
    std::vector<TensorSpec> specs;
    for (const auto& [name, projection] : projections_) {
      if (!projection.bias.empty()) vectors[prefix + name + ".bias"] = projection.bias;
    }
    for (const auto& [name, values] : vectors) {
      specs.push_back({name, DType::kF32, {static_cast<int64_t>(values.size())}});
    }
    for (const auto& [name, p] : projections_) {
      if (dense) {
        specs.push_back({prefix + name + ".weight", DType::kF32, {p.out, p.in}});
        continue;
      }
      for (TensorSpec& spec : GptqTensorSpecs(prefix + name, p.out, p.in, p.groups, kind_.bits)) {
        specs.push_back(std::move(spec));
      }
    }
    auto writer = SafetensorsWriter::Create(folder_.Path("model.safetensors"), specs).value();
    for (const auto& [name, values] : vectors) {
      EXPECT_TRUE(writer.AppendValues<float>(name, values).ok());
    }
    for (const auto& [name, p] : projections_) {
      if (dense) {
        std::vector<float> values(p.out * p.in);
        for (int64_t e = 0; e < p.out * p.in; ++e) {
          values[e] = static_cast<float>(p.Weight(e / p.in, e % p.in));
        }
        EXPECT_TRUE(writer.AppendValues<float>(prefix + name + ".weight", values).ok());
        continue;
      }
      EXPECT_TRUE(AppendGptqLinear(writer, prefix + name, gptq,
                                   ConstTensorView(p.codes.data(), DType::kU8, {p.out, p.in}),
                                   ConstTensorView(p.scales.data(), DType::kF32, {p.out, p.groups}),
                                   ConstTensorView(p.zeros.data(), DType::kU8, {p.out, p.groups}),
                                   p.g_idx)
                      .ok());
    }
    EXPECT_TRUE(writer.Commit().ok());
    if (!rptq_.layers.empty()) {
      ThinwireFile made;
      made.scheme = {.weight_bits = dense ? 16 : kind_.bits,
                     .act_bits = coded_ ? 8 : 16,
                     .kv_bits = coded_ ? 8 : 16};
      made.group_size = kind_.group_size;
      made.first_token_exact = false;
      made.tp = rptq_.tp;
      made.tool_version = "0.1.0";
      EXPECT_TRUE(WriteThinwireFile(folder_.path(), made).ok());
      EXPECT_TRUE(WriteRptqFile(folder_.path(), rptq_, config_).ok());
    }
    return Checkpoint::Open(folder_.path()).value();
  }

  ShardPlan PlanOf(int tp, int rank) const {
    return ShardPlan::Create({.num_layers = config_.num_layers,
                              .num_heads = config_.num_heads,
                              .num_kv_heads = config_.num_kv_heads,
                              .ffn = config_.ffn,
                              .vocab = config_.vocab},
                             {.tp_size = tp, .pp_size = 1}, rank)
        .value();
  }

 private:
  int64_t GroupSize(int64_t in) const { return kind_.group_size < 0 ? in : kind_.group_size; }

  void Add(const std::string& name, int64_t out, int64_t in) {
    Projection p = {.out = out, .in = in};
    p.groups = (in + GroupSize(in) - 1) / GroupSize(in);
    const int levels = 1 << kind_.bits;
    for (int64_t e = 0; e < out * in; ++e) p.codes.push_back(random_() % levels);
    for (int64_t e = 0; e < out * p.groups; ++e) p.zeros.push_back(1 + random_() % (levels - 1));
    for (const float scale : Uniform(out * p.groups, 0.01f, 0.03f)) {
      p.scales.push_back(ToFloat(ToHalf(scale)));
    }
    for (int64_t i = 0; i < in; ++i) p.g_idx.push_back(static_cast<int32_t>(i / GroupSize(in)));
    // q, k and v have orders of their own.
    if (kind_.desc_act) std::shuffle(p.g_idx.begin(), p.g_idx.end(), random_);
    if (kind_.bias) p.bias = Uniform(out, -1.0f, 1.0f);
    projections_[name] = std::move(p);
  }

  SiteCodes RandomSite(QuantSite site, bool coded) {
    const int64_t width = SiteWidth(config_, site);
    const int64_t block = SiteBlock(config_, site, 2);
    SiteCodes codes;
    codes.order.resize(width);
    std::iota(codes.order.begin(), codes.order.end(), 0);
    for (int64_t begin = 0; begin < width; begin += block) {
      std::shuffle(codes.order.begin() + begin, codes.order.begin() + begin + block, random_);
    }
    for (int64_t begin = 0; begin < width; begin += 8) {
      codes.offsets.push_back(static_cast<int32_t>(begin));
      codes.bits.push_back(coded ? 8 : 16);
    }
    codes.offsets.push_back(static_cast<int32_t>(width));
    if (!coded) return codes;
    // One step for each cluster.
    const std::vector<float> steps = Uniform(width / 8, 0.015f, 0.06f);
    for (int64_t j = 0; j < width; ++j) codes.step.push_back(steps[j / 8]);
    codes.zero = Uniform(width, 100.0f, 155.0f);
    return codes;
  }

  const Kind kind_;
  ModelConfig config_;
  LayerTensorNames names_;
  std::mt19937 random_;
  TestFolder folder_;
  std::map<std::string, Projection> projections_;  // by name below the layer's prefix
  std::map<std::string, std::vector<float>> vectors_;
  RptqFile rptq_;
  bool coded_ = false;
};

// What a rank's part of a projection makes of rows.
class Ops {
 public:
  std::vector<float> Float(const LinearWeights& linear, const std::vector<float>& x) {
    const int64_t in = linear.codes->in_features();
    std::vector<float> gathered = x;
    if (!linear.input_order.empty()) {
      EXPECT_TRUE(
          GatherColumns(View(x, in), linear.input_order.view(), View(gathered, in), stream_).ok());
    }
    std::vector<float> y(kTokens * linear.out_features());
    EXPECT_TRUE(CodedLinear({.x = View(std::as_const(gathered), in),
                             .weights = &*linear.codes,
                             .bias = linear.bias.view(),
                             .y = View(y, linear.out_features())},
                            stream_)
                    .ok());
    return y;
  }

  std::vector<uint8_t> Codes(const SiteCoding& coding, const std::vector<float>& x) {
    const auto width = static_cast<int64_t>(x.size()) / kTokens;
    std::vector<uint8_t> codes(x.size());
    EXPECT_TRUE(Quantize({.x = View(x, width),
                          .inverse_step = coding.inverse_step.view(),
                          .zero = coding.zero.view(),
                          .max_code = coding.max_code.view(),
                          .codes = TensorView(codes.data(), DType::kU8, {kTokens, width})},
                         stream_)
                    .ok());
    return codes;
  }

  std::vector<uint8_t> NormedCodes(NormKind kind, const NormWeights& norm, const SiteCoding& coding,
                                   std::vector<float> x) {
    const auto width = static_cast<int64_t>(x.size()) / kTokens;
    std::vector<uint8_t> codes(x.size());
    EXPECT_TRUE(NormCodes({.kind = kind,
                           .x = View(x, width),
                           .order = coding.order.view(),
                           .weight = norm.weight.view(),
                           .bias = norm.bias.view(),
                           .max_code = coding.max_code.view(),
                           .codes = TensorView(codes.data(), DType::kU8, {kTokens, width})},
                          stream_)
                    .ok());
    return codes;
  }

  std::vector<float> Integer(const LinearWeights& linear, const std::vector<uint8_t>& codes) {
    std::vector<float> y(kTokens * linear.out_features());
    EXPECT_TRUE(IntegerLinear({.codes = ConstTensorView(codes.data(), DType::kU8,
                                                        {kTokens, linear.codes->in_features()}),
                               .segment_offsets = linear.segment_offsets,
                               .segment_step = linear.segment_step,
                               .weights = &*linear.codes,
                               .offset = linear.offset.view(),
                               .bias = linear.bias.view(),
                               .y = View(y, linear.out_features())},
                              stream_)
                    .ok());
    return y;
  }

 private:
  static ConstTensorView View(const std::vector<float>& x, int64_t width) {
    return ConstTensorView(x.data(), DType::kF32, {kTokens, width});
  }
  static TensorView View(std::vector<float>& x, int64_t width) {
    return TensorView(x.data(), DType::kF32, {kTokens, width});
  }

  ThreadPool pool_{1};
  Stream stream_ = Stream::Cpu(&pool_);
};

// Rows of a projection in double, and how far a sum in fp32 may be from it: each of the terms and
// of the additions may err by half a unit of a sum of magnitudes.
struct Expected {
  Expected(const Projection& p, const std::vector<double>& x, const std::vector<double>& magnitude)
      : y(kTokens * p.out), bound(kTokens * p.out) {
    for (int64_t t = 0; t < kTokens; ++t) {
      for (int64_t o = 0; o < p.out; ++o) {
        double sum = p.Bias(o);
        double size = std::abs(sum);
        for (int64_t i = 0; i < p.in; ++i) {
          sum += p.Weight(o, i) * x[t * p.in + i];
          size += p.Magnitude(o, i) * magnitude[t * p.in + i];
        }
        y[t * p.out + o] = sum;
        bound[t * p.out + o] = static_cast<double>(p.in + 8) * kEpsilon * size;
      }
    }
  }

  std::vector<double> y;
  std::vector<double> bound;
};

// `y`: [kTokens, channels.size()], column r being output channels[r].
inline void ExpectOutputs(const Expected& expected, const std::vector<float>& y,
                          const std::vector<int32_t>& channels, const std::string& what) {
  const auto rows = static_cast<int64_t>(channels.size());
  const auto out = static_cast<int64_t>(expected.y.size()) / kTokens;
  ASSERT_EQ(static_cast<int64_t>(y.size()), kTokens * rows) << what;
  for (int64_t t = 0; t < kTokens; ++t) {
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t e = t * out + channels[r];
      ASSERT_NEAR(y[t * rows + r], expected.y[e], expected.bound[e])
          << what << ", token " << t << ", output " << channels[r];
    }
  }
}

inline std::vector<int32_t> Sequence(Range range) {
  std::vector<int32_t> channels(range.size());
  std::iota(channels.begin(), channels.end(), static_cast<int32_t>(range.begin));
  return channels;
}

inline std::vector<double> Doubles(const std::vector<float>& values) {
  return {values.begin(), values.end()};
}

inline std::vector<double> Absolute(const std::vector<float>& values) {
  std::vector<double> sizes;
  for (const float value : values) sizes.push_back(std::abs(value));
  return sizes;
}

// Columns `channels` of rows of `width`.
inline std::vector<float> Columns(const std::vector<float>& x,
                                  const std::vector<int32_t>& channels) {
  const auto width = static_cast<int64_t>(x.size()) / kTokens;
  std::vector<float> part;
  for (int64_t t = 0; t < kTokens; ++t) {
    for (const int32_t channel : channels) part.push_back(x[t * width + channel]);
  }
  return part;
}

inline void AddTo(std::vector<float>& sum, const std::vector<float>& part) {
  if (sum.empty()) sum.assign(part.size(), 0.0f);
  for (size_t e = 0; e < part.size(); ++e) sum[e] += part[e];
}

inline Range Times(Range heads, int64_t head_dim) {
  return {heads.begin * head_dim, heads.end * head_dim};
}

// The projections of a layer with their names, stacked ones apart.
inline std::vector<std::pair<std::string, const LinearWeights*>> Linears(
    const TestLayer& layer, const LayerWeights& weights) {
  const LayerTensorNames& names = layer.names();
  std::vector<std::pair<std::string, const LinearWeights*>> all = {
      {names.q, &weights.qkv[0]},   {names.k, &weights.qkv[1]},     {names.v, &weights.qkv[2]},
      {names.out, &weights.out[0]}, {names.up, &weights.up.back()}, {names.down, &weights.down[0]}};
  if (!names.gate.empty()) all.emplace_back(names.gate, &weights.up[0]);
  return all;
}

}  // namespace thinwire
