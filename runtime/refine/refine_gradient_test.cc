#include <cmath>
#include <numeric>
#include <random>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/convert/convert.h"
#include "kernels/vptq_linear/byte_book.h"
#include "kernels/vptq_linear/vptq_codes.h"
#include "runtime/quantizer/small_layer_testing.h"
#include "runtime/refine/adam.h"
#include "runtime/refine/layer_gradient.h"
#include "runtime/refine/layer_reference_testing.h"
#include "runtime/refine/logit_loss.h"
#include "runtime/refine/trained_linear.h"

namespace thinwire {
namespace {

constexpr double kEpsilon = 1.0 / (1 << 24);

// Of a derivative along a random direction, relative to the derivative's length: errors of single
// numbers, which are independent, add as lengths do. Each number is the end of some 15 steps in
// fp32, sums of up to 96 products (40 tokens for weights): sqrt(15 * 96) roundings of the size of
// the terms, which cancel to a tenth in sums of mixed signs.
constexpr double kTolerance = 10 * 38 * kEpsilon;

std::vector<double> Random(std::mt19937_64& random, size_t size) {
  std::normal_distribution<double> normal;
  std::vector<double> values(size);
  for (double& value : values) value = normal(random);
  return values;
}

double Dot(const std::vector<float>& a, const std::vector<double>& b) {
  double sum = 0.0;
  for (size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
  return sum;
}

double Length(const std::vector<float>& a) {
  double squares = 0.0;
  for (const float value : a) squares += double{value} * value;
  return std::sqrt(squares);
}

struct LayerCase {
  ModelFamily family;
  ActivationKind activation;
  int64_t sliding_window;
  bool coded = false;
};

// Sites in 4 bits, so coarse that no value is near enough to a boundary for fp32 to take the other
// side: of 1e4 values, each within 1e-6 of the definition, one in a hundred such tests would have
// one.
SiteRoundings CoarseCodes(const ModelConfig& config) {
  LayerCodes codes;
  for (const QuantSite site : kQuantSites) {
    const int64_t width = SiteWidth(config, site);
    SiteCodes& at = codes.at(site);
    at.order.resize(width);
    std::iota(at.order.begin(), at.order.end(), 0);
    at.offsets = {0, static_cast<int32_t>(width)};
    at.bits = {4};
    for (int64_t c = 0; c < width; ++c) {
      at.step.push_back(0.7f + 0.01f * static_cast<float>(c % 16));
      at.zero.push_back(7.0f + 0.1f * static_cast<float>(c % 7));
    }
  }
  return SiteRoundings(codes, /*first_exact=*/true);
}

class LayerGradientTest : public ::testing::TestWithParam<LayerCase> {};

// Along random directions in each tensor, against central differences of the definition in double.
TEST_P(LayerGradientTest, IsTheDerivativeOfTheDefinition) {
  constexpr int64_t kWindows = 2, kSeqlen = 20;
  constexpr double kStep = 1e-6;
  const bool coded = GetParam().coded;
  ModelConfig config = SmallConfig(GetParam().family);
  config.activation = GetParam().activation;
  config.sliding_window = GetParam().sliding_window;
  DenseLayer layer = RandomLayer(config, 3);
  // Scores near 1: a softmax of one column has no derivative.
  for (DenseNorm* norm : {&layer.attention_norm, &layer.mlp_norm}) {
    for (float& gain : norm->gain) gain = std::min(gain, 1.5f);
  }
  std::mt19937_64 random(4);
  const auto size = static_cast<size_t>(kWindows * kSeqlen * config.hidden);
  const std::vector<double> dy = Random(random, size);
  std::vector<float> x(size), dx(size);
  std::normal_distribution<float> normal;
  for (float& value : x) value = normal(random);
  std::copy(dy.begin(), dy.end(), dx.begin());

  const SiteRoundings roundings = coded ? CoarseCodes(config) : SiteRoundings();
  LayerReference reference(config, layer, kSeqlen, x);
  const std::vector<double> exact = reference.Run();
  reference.Freeze(roundings);
  ThreadPool pool(2);
  LayerGradient gradient(config, kWindows, kSeqlen, &pool);
  std::vector<float> y = x;
  ASSERT_TRUE(gradient.Forward(layer, absl::MakeSpan(y), &roundings).ok());
  const std::vector<double> expected = reference.Run();
  EXPECT_EQ(expected != exact, coded);
  for (size_t i = 0; i < size; ++i) ASSERT_NEAR(y[i], expected[i], 200 * kEpsilon * 10.0) << i;

  DenseLayer found;
  ASSERT_TRUE(gradient.Backward(layer, x, absl::MakeSpan(dx), found, &roundings).ok());
  std::vector<const std::vector<float>*> gradients = {&dx};
  for (const DenseNorm* norm : {&found.attention_norm, &found.mlp_norm}) {
    gradients.push_back(&norm->gain);
    gradients.push_back(&norm->offset);
  }
  for (const LinearRole role : kLinearRoles) {
    gradients.push_back(&found.at(role).weight);
    gradients.push_back(&found.at(role).bias);
  }
  const std::vector<std::vector<double>*> tensors = reference.tensors();
  ASSERT_EQ(gradients.size(), tensors.size());
  const auto along = [&](std::vector<double>& tensor, const std::vector<double>& direction,
                         double step) {
    const std::vector<double> before = tensor;
    for (size_t i = 0; i < tensor.size(); ++i) tensor[i] += step * direction[i];
    const std::vector<double> made = reference.Run();
    tensor = before;
    double sum = 0.0;
    for (size_t i = 0; i < size; ++i) sum += made[i] * static_cast<float>(dy[i]);
    return sum;
  };
  for (size_t t = 0; t < tensors.size(); ++t) {
    ASSERT_EQ(gradients[t]->size(), tensors[t]->size()) << t;
    // A key's bias changes no softmax: what rounding leaves is to be small beside the weight's.
    const double length = std::max(Length(*gradients[t]), t == 0 ? 0.0 : Length(*gradients[t - 1]));
    for (int trial = 0; trial < 3 && !tensors[t]->empty(); ++trial) {
      const std::vector<double> direction = Random(random, tensors[t]->size());
      const double difference =
          (along(*tensors[t], direction, kStep) - along(*tensors[t], direction, -kStep)) /
          (2 * kStep);
      EXPECT_NEAR(Dot(*gradients[t], direction), difference, kTolerance * length) << "tensor " << t;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(
    Layers, LayerGradientTest,
    ::testing::Values(LayerCase{ModelFamily::kOpt, ActivationKind::kRelu, 0},
                      LayerCase{ModelFamily::kOpt, ActivationKind::kGelu, 0},
                      LayerCase{ModelFamily::kLlama, ActivationKind::kSilu, 0},
                      LayerCase{ModelFamily::kOpt, ActivationKind::kRelu, 0, true},
                      LayerCase{ModelFamily::kLlama, ActivationKind::kSilu, 0, true},
                      LayerCase{ModelFamily::kMistral, ActivationKind::kGeluTanh, 7}));

TEST(CausalAttentionTest, BlocksOfRowsAreOneAttention) {
  // Longer than a block: against windows that are cut off behind what a row sees.
  constexpr int64_t kSeqlen = 300, kDim = 4, kSliding = 150;
  ThreadPool pool(2);
  std::mt19937_64 random(5);
  std::normal_distribution<float> normal;
  for (const int64_t sliding : {int64_t{0}, kSliding}) {
    const CausalAttentionShape shape = {1, kSeqlen, 1, 1, kDim, sliding};
    std::vector<float> qkv(kSeqlen * shape.qkv_width()), out(kSeqlen * kDim);
    for (float& value : qkv) value = normal(random);
    CausalAttention(shape, &pool).Forward(qkv.data(), out.data());
    for (int64_t i = 0; i < kSeqlen; ++i) {
      double total = 0.0, sums[kDim] = {};
      for (int64_t j = sliding > 0 ? std::max<int64_t>(0, i - sliding + 1) : 0; j <= i; ++j) {
        double score = 0.0;
        for (int64_t d = 0; d < kDim; ++d) {
          score += double{qkv[i * 12 + d]} * qkv[j * 12 + kDim + d];
        }
        const double weight = std::exp(score / std::sqrt(double{kDim}));
        total += weight;
        for (int64_t d = 0; d < kDim; ++d) sums[d] += weight * qkv[j * 12 + 2 * kDim + d];
      }
      for (int64_t d = 0; d < kDim; ++d) {
        ASSERT_NEAR(out[i * kDim + d], sums[d] / total, kSeqlen * kEpsilon) << i;
      }
    }
  }
}

TEST(LogitLossTest, IsTheDivergenceAndItsDerivative) {
  constexpr int64_t kTokens = 5;
  constexpr double kStep = 1e-5;
  ModelConfig config = SmallConfig(ModelFamily::kLlama);
  std::mt19937_64 random(6);
  std::normal_distribution<float> normal;
  const auto rows = [&](int64_t count) {
    std::vector<float> values(count * config.hidden);
    for (float& value : values) value = 0.3f * normal(random);
    return values;
  };
  const std::vector<float> head = rows(config.vocab), p = rows(kTokens), q = rows(kTokens);
  DecoderWeights ends;
  ends.head = Tensor::Allocate(DType::kF32, {config.vocab, config.hidden}, Device::Cpu()).value();
  std::copy(head.begin(), head.end(), ends.head.mutable_view().mutable_data<float>());
  ThreadPool pool(1);
  LogitLoss loss = LogitLoss::Create(config, ends, &pool).value();
  std::vector<float> gradient(q.size());
  EXPECT_NEAR(loss.Run(p, p, absl::MakeSpan(gradient)), 0.0, 100 * kEpsilon);
  for (const float value : gradient) EXPECT_NEAR(value, 0.0, 100 * kEpsilon);

  const auto log_probabilities = [&](const std::vector<double>& hidden, int64_t token) {
    std::vector<double> logits(config.vocab);
    double sum = 0.0;
    for (int64_t v = 0; v < config.vocab; ++v) {
      for (int64_t c = 0; c < config.hidden; ++c) {
        logits[v] += hidden[token * config.hidden + c] * head[v * config.hidden + c];
      }
      sum += std::exp(logits[v]);
    }
    for (double& logit : logits) logit -= std::log(sum);
    return logits;
  };
  const auto definition = [&](const std::vector<double>& hidden) {
    double sum = 0.0;
    for (int64_t t = 0; t < kTokens; ++t) {
      const auto log_p = log_probabilities({p.begin(), p.end()}, t);
      const auto log_q = log_probabilities(hidden, t);
      for (int64_t v = 0; v < config.vocab; ++v) sum += std::exp(log_p[v]) * (log_p[v] - log_q[v]);
    }
    return sum / kTokens;
  };
  // 100 logarithms, each a few units in the last place of numbers near log(100).
  EXPECT_NEAR(loss.Run(p, q, absl::MakeSpan(gradient)), definition({q.begin(), q.end()}),
              20 * kEpsilon);
  const std::vector<double> direction = Random(random, q.size());
  std::vector<double> up(q.begin(), q.end()), down = up;
  for (size_t i = 0; i < up.size(); ++i) {
    up[i] += kStep * direction[i];
    down[i] -= kStep * direction[i];
  }
  EXPECT_NEAR(Dot(gradient, direction), (definition(up) - definition(down)) / (2 * kStep),
              kTolerance * Length(gradient));
}

// Columns in an order of their own: outliers, then two groups with residuals. 7 outputs end inside
// a vector of 3.
class TrainedLinearTest : public ::testing::Test {
 protected:
  static constexpr int64_t kOut = 7, kIn = 9;

  Tensor Book(int bits, int length) {
    const int64_t count = int64_t{1} << bits;
    const int64_t stride = VptqStride(length);
    Tensor book = Tensor::Allocate(DType::kF16, {count, stride}, Device::Cpu()).value();
    std::vector<float> values(count * stride);
    for (float& value : values) value = normal_(random_);
    ConvertFromFloat(values.data(), book.mutable_view().mutable_raw(), DType::kF16, count * stride);
    return book;
  }

  VptqGroup Group(const VptqPart& part, int64_t columns, bool residual) {
    VptqGroup group;
    group.num_columns = columns;
    group.centroids = Book(part.index_bits, part.length);
    if (residual) group.residual = Book(part.residual_bits, part.length);
    const int bits = part.code_bits(group);
    const int64_t rows = part.num_vectors(kOut);
    const int64_t bytes = VptqCodeBytes(rows, columns, bits);
    group.codes = Tensor::Allocate(DType::kU8, {bytes}, Device::Cpu()).value();
    auto* const codes = group.codes.mutable_view().mutable_data<uint8_t>();
    std::fill_n(codes, bytes, uint8_t{0});
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t j = 0; j < columns; ++j) {
        SetVptqCode(codes + r * VptqRowBytes(columns, bits), j * bits,
                    random_() % (uint64_t{1} << bits));
      }
    }
    return group;
  }

  TrainedLinearTest() {
    LinearWeights weights = Weights();
    for (int64_t o = 0; o < kOut; ++o) {
      expected_.resize((o + 1) * kIn);
      weights.vptq->DequantizeRow(o, absl::MakeSpan(expected_).subspan(o * kIn, kIn));
    }
    linear_ = TrainedLinear("q", std::move(weights), &config_, /*byte_books=*/false);
  }

  LinearWeights Weights() {
    VptqPart outliers{.length = 2, .index_bits = 2};
    outliers.groups.push_back(Group(outliers, 1, false));
    VptqPart part{.length = 3, .index_bits = 3, .residual_bits = 2};
    for (int g = 0; g < 2; ++g) part.groups.push_back(Group(part, 4, true));
    std::vector<VptqPart> parts;
    parts.push_back(std::move(outliers));
    parts.push_back(std::move(part));
    std::vector<float> scale(kIn), offset(kIn);
    for (float& value : scale) value = 1.0f + 0.2f * normal_(random_);
    for (float& value : offset) value = normal_(random_);
    LinearWeights weights;
    weights.vptq = VptqWeights::Create(kOut, std::move(parts), {4, 0, 8, 2, 6, 1, 3, 5, 7},
                                       std::move(scale), std::move(offset))
                       .value();
    weights.bias = Tensor::Allocate(DType::kF32, {kOut}, Device::Cpu()).value();
    std::fill_n(weights.bias.mutable_view().mutable_data<float>(), kOut, 0.5f);
    config_ = {.length = 3,
               .index_bits = 3,
               .residual = true,
               .residual_bits = 2,
               .outlier_size = 1,
               .outlier_length = 2,
               .outlier_bits = 2,
               .num_groups = 2,
               .norm = true,
               .perm = true};
    return weights;
  }

  std::mt19937_64 random_{7};
  std::normal_distribution<float> normal_;
  VptqLayerConfig config_;
  std::vector<float> expected_;
  TrainedLinear linear_;
  ThreadPool pool_{2};
};

TEST_F(TrainedLinearTest, ExpandsToWhatTheCodesStandFor) {
  DenseLinear dense;
  linear_.Expand(dense, pool_);
  ASSERT_EQ(dense.weight.size(), expected_.size());
  for (size_t i = 0; i < expected_.size(); ++i) EXPECT_FLOAT_EQ(dense.weight[i], expected_[i]);
  EXPECT_THAT(dense.bias, ::testing::Each(0.5f));
}

// The weights are linear in each parameter alone, so differences are derivatives but for rounding.
TEST_F(TrainedLinearTest, ParametersHaveTheDerivativesOfTheWeights) {
  DenseLinear gradient;
  linear_.Expand(gradient, pool_);
  for (float& value : gradient.weight) value = normal_(random_);
  for (float& value : gradient.bias) value = normal_(random_);
  linear_.Differentiate(gradient, pool_);
  const auto product = [&] {
    DenseLinear dense;
    linear_.Expand(dense, pool_);
    double sum = 0.0;
    for (size_t i = 0; i < dense.weight.size(); ++i) {
      sum += double{dense.weight[i]} * gradient.weight[i];
    }
    for (size_t o = 0; o < dense.bias.size(); ++o) sum += double{dense.bias[o]} * gradient.bias[o];
    return sum;
  };
  std::vector<std::string> names;
  for (Parameter* parameter : linear_.parameters()) {
    names.push_back(parameter->tensor);
    const std::vector<float> before = parameter->value;
    const double at = product();
    double expected = 0.0;
    for (size_t i = 0; i < before.size(); ++i) {
      parameter->value[i] += normal_(random_);
      expected += double{parameter->gradient[i]} * (double{parameter->value[i]} - before[i]);
    }
    // 63 weights of size up to 10, a few roundings each.
    EXPECT_NEAR(product() - at, expected, 63 * 10 * 4 * kEpsilon) << parameter->tensor;
    parameter->value = before;
    EXPECT_EQ(parameter->unit.size(), before.size());
  }
  EXPECT_THAT(names, ::testing::ElementsAre("q.centroids.weight", "q.res_centroids.weight",
                                            "q.outlier_centroids.weight", "q.weight_scale",
                                            "q.weight_bias", "q.bias"));
}

// Books of two groups, of their residuals and of outliers.
TEST_F(TrainedLinearTest, ByteBooksStandForWhatTheyAreRoundedTo) {
  TrainedLinear rounded("q", Weights(), &config_, /*byte_books=*/true);
  DenseLinear before, after;
  rounded.Expand(before, pool_);
  rounded.RoundBooks();
  const std::vector<Parameter*> parameters = rounded.parameters();
  const int lengths[] = {3, 3, 2};
  const int64_t counts[] = {2, 2, 1};
  for (size_t p = 0; p < 3; ++p) {
    const std::vector<float>& books = parameters[p]->value;
    const auto size = static_cast<int64_t>(books.size()) / counts[p];
    for (int64_t g = 0; g < counts[p]; ++g) {
      const ConstTensorView book(books.data() + g * size, DType::kF32,
                                 {size / lengths[p], lengths[p]});
      EXPECT_TRUE(AsByteBook(book, lengths[p]).has_value()) << parameters[p]->tensor;
    }
  }
  rounded.Expand(after, pool_);
  EXPECT_EQ(before.weight, after.weight);
}

TEST(AdamTest, MovesInUnitsAgainstTheGradient) {
  Parameter parameter{
      .tensor = "t", .value = {1, 1, 1}, .unit = {1, 10, 1}, .gradient = {2, -3, 0}};
  Adam adam({&parameter});
  adam.Step(0.01);
  // The first step's averages are the gradient itself.
  EXPECT_THAT(parameter.value,
              ::testing::ElementsAre(::testing::FloatEq(0.99f), ::testing::FloatEq(1.1f), 1.0f));
  parameter.gradient = {-2, -3, 0};
  adam.Step(0.01);
  // First moment (0.9 * 0.2 - 0.2) / 0.19 of gradients of size 2.
  EXPECT_NEAR(parameter.value[0], 0.99 + 0.01 * 0.02 / 0.19 / 2.0, 1e-6);
  EXPECT_FLOAT_EQ(parameter.value[1], 1.2f);
}

}  // namespace
}  // namespace thinwire
