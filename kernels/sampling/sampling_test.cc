#include "kernels/sampling/sampling.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/sampling/philox.h"
#include "kernels/testing/cpu_targets.h"

namespace thinwire {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// The definition in sampling.h, with a full sort.
int32_t SampleReference(const std::vector<float>& logits, const SamplingParams& params,
                        double uniform) {
  std::vector<int32_t> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  const auto logit = [&](int32_t id) { return logits[static_cast<size_t>(id)]; };
  std::stable_sort(order.begin(), order.end(),
                   [&](int32_t a, int32_t b) { return logit(a) > logit(b); });
  if (params.temperature == 0.0f) return order[0];
  if (params.top_k > 0) {
    order.resize(std::min(order.size(), static_cast<size_t>(params.top_k)));
  }
  std::vector<double> cumulative;
  double mass = 0.0;
  for (const int32_t id : order) {
    mass += std::exp((static_cast<double>(logit(id)) - logit(order[0])) / params.temperature);
    cumulative.push_back(mass);
  }
  if (params.top_p < 1.0f) {
    const double nucleus = static_cast<double>(params.top_p) * mass;
    const auto last = std::lower_bound(cumulative.begin(), cumulative.end(), nucleus);
    cumulative.resize(static_cast<size_t>(last - cumulative.begin()) + 1);
    mass = cumulative.back();
  }
  const auto drawn = std::upper_bound(cumulative.begin(), cumulative.end(), uniform * mass);
  return order[static_cast<size_t>(drawn - cumulative.begin())];
}

// One row, drawn at `position`.
absl::StatusOr<int32_t> SampleRow(const std::vector<float>& logits, const SamplingParams& params,
                                  int64_t position) {
  ThreadPool pool(1);
  Stream stream = Stream::Cpu(&pool);
  int32_t token = -1;
  SampleArgs args;
  args.logits =
      ConstTensorView(logits.data(), DType::kF32, {1, static_cast<int64_t>(logits.size())});
  args.params = absl::MakeConstSpan(&params, 1);
  args.positions = absl::MakeConstSpan(&position, 1);
  args.token_ids = absl::MakeSpan(&token, 1);
  const absl::Status status = Sample(args, stream);
  if (!status.ok()) return status;
  return token;
}

// The tokens that 2000 positions draw: all that are kept, where the rarest has 2% (the chance to
// miss it is below 0.98^2000 = 3e-18).
std::set<int32_t> Kept(const std::vector<float>& logits, int32_t top_k, float top_p) {
  std::set<int32_t> kept;
  for (int64_t position = 0; position < 2000; ++position) {
    kept.insert(SampleRow(logits, {.temperature = 1.0f, .top_k = top_k, .top_p = top_p, .seed = 5},
                          position)
                    .value());
  }
  return kept;
}

std::vector<float> Normal(size_t count, float deviation, std::mt19937& random) {
  std::vector<float> values(count);
  for (float& v : values) v = std::normal_distribution<float>(0.0f, deviation)(random);
  return values;
}

TEST(PhiloxTest, MatchesThePublishedVectors) {
  // The known answers that come with the authors' implementation (Random123).
  EXPECT_THAT(Philox4x32({0, 0, 0, 0}, {0, 0}),
              ElementsAre(0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8));
  constexpr uint32_t kOnes = 0xffffffff;
  EXPECT_THAT(Philox4x32({kOnes, kOnes, kOnes, kOnes}, {kOnes, kOnes}),
              ElementsAre(0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd));
  EXPECT_THAT(
      Philox4x32({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}),
      ElementsAre(0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1));
}

TEST(UniformRandomTest, UsesTheUpper53BitsAndAllOfSeedAndPosition) {
  EXPECT_EQ(UniformRandom(0, 0), static_cast<double>(0xe169c58d6627e8d5 >> 11) * 0x1p-53);
  std::set<double> seen;
  for (const uint64_t a : {uint64_t{0}, uint64_t{1}, uint64_t{1} << 32, ~uint64_t{0}}) {
    for (const uint64_t b : {uint64_t{0}, uint64_t{1}, uint64_t{1} << 32, ~uint64_t{0}}) {
      const double u = UniformRandom(a, b);
      EXPECT_GE(u, 0.0);
      EXPECT_LT(u, 1.0);
      seen.insert(u);
    }
  }
  EXPECT_EQ(seen.size(), 16u);
}

TEST(SampleTest, GreedyTakesTheSmallestIdAmongEqualsOnEveryTarget) {
  ForEachCpuTarget([&](absl::string_view target) {
    SCOPED_TRACE(std::string(target));
    std::mt19937 random(3);
    for (const size_t vocab : {1, 2, 15, 16, 17, 31, 97, 1025}) {
      for (size_t first = 0; first < vocab; first += 1 + vocab / 7) {
        std::vector<float> logits = Normal(vocab, 1.0f, random);
        logits[first] = 10.0f;
        logits[vocab - 1] = 10.0f;
        logits[(first + vocab - 1) / 2 + (vocab - first) / 4] = 10.0f;
        EXPECT_EQ(SampleRow(logits, {}, 0).value(), SampleReference(logits, {}, 0.0));
      }
      EXPECT_EQ(SampleRow(std::vector<float>(vocab, -3.5f), {}, 0).value(), 0);
    }
  });
}

TEST(SampleTest, AgreesWithAFullSortOnEveryTarget) {
  constexpr std::array<float, 5> kDeviations = {0.0f, 0.01f, 1.0f, 8.0f, 1000.0f};
  constexpr std::array<float, 4> kTemperatures = {0.01f, 0.7f, 1.0f, 50.0f};
  constexpr std::array<int32_t, 5> kTopKs = {0, 1, 2, 50, 4000};
  constexpr std::array<float, 5> kTopPs = {1.0f, 0.999f, 0.9f, 0.1f, 1e-6f};
  ForEachCpuTarget([&](absl::string_view target) {
    SCOPED_TRACE(std::string(target));
    std::mt19937 random(11);
    const auto one_of = [&](const auto& choices) { return choices[random() % choices.size()]; };
    for (const size_t vocab : {1, 2, 7, 257, 1000, 5003}) {
      for (int repeat = 0; repeat < 100; ++repeat) {
        const float deviation = one_of(kDeviations);
        std::vector<float> logits = Normal(vocab, deviation, random);
        if (vocab > 100) {
          logits[5] = -kInfinity;                                   // forbidden
          for (size_t i = 40; i < 60; ++i) logits[i] = logits[20];  // ties
        }
        const SamplingParams params{one_of(kTemperatures), one_of(kTopKs), one_of(kTopPs),
                                    random()};
        const auto position = static_cast<int64_t>(random());
        const double uniform = UniformRandom(params.seed, static_cast<uint64_t>(position));
        ASSERT_EQ(SampleRow(logits, params, position).value(),
                  SampleReference(logits, params, uniform))
            << "vocab " << vocab << ", deviation " << deviation << ", temperature "
            << params.temperature << ", top_k " << params.top_k << ", top_p " << params.top_p;
      }
    }
  });
}

TEST(SampleTest, FrequenciesFollowTheSoftmax) {
  // Pearson's statistic of n draws from 8 tokens has 7 degrees of freedom;
  // P(X > 7 + 2 sqrt(7t) + 2t) <= exp(-t) (Laurent and Massart 2000, lemma 1). t = 14: one seed in
  // a million fails.
  const std::vector<float> logits = {0.3f, -1.0f, 2.0f, 0.0f, 1.5f, -0.5f, 0.9f, 1.1f};
  constexpr double kTemperature = 0.8;
  constexpr int kDraws = 20000;
  double total = 0.0;
  for (const float logit : logits) total += std::exp(logit / kTemperature);
  std::array<int, 8> counts = {};
  for (int64_t position = 0; position < kDraws; ++position) {
    ++counts[static_cast<size_t>(
        SampleRow(logits, {.temperature = 0.8f, .seed = 1234}, position).value())];
  }
  double statistic = 0.0;
  for (size_t i = 0; i < counts.size(); ++i) {
    const double expected = kDraws * std::exp(logits[i] / kTemperature) / total;
    statistic += (counts[i] - expected) * (counts[i] - expected) / expected;
  }
  EXPECT_LT(statistic, 7 + 2 * std::sqrt(7.0 * 14.0) + 2 * 14.0);
}

TEST(SampleTest, TopPKeepsTheSmallestPrefixThatReachesIt) {
  const std::vector<float> equal(4, 1.0f);  // four quarters, summed exactly
  EXPECT_THAT(Kept(equal, 0, 0.25f), ElementsAre(0));
  EXPECT_THAT(Kept(equal, 0, 0.5f), ElementsAre(0, 1));
  EXPECT_THAT(Kept(equal, 0, 0.500001f), ElementsAre(0, 1, 2));
  EXPECT_THAT(Kept(equal, 0, 1.0f), ElementsAre(0, 1, 2, 3));
  EXPECT_THAT(Kept(equal, 0, 1e-30f), ElementsAre(0));
  const std::vector<float> falling = {-2.0f, 0.0f, -1.0f};  // 0.0900, 0.6652, 0.2447
  EXPECT_THAT(Kept(falling, 0, 0.665f), ElementsAre(1));
  EXPECT_THAT(Kept(falling, 0, 0.666f), ElementsAre(1, 2));
  EXPECT_THAT(Kept(falling, 0, 0.9099f), ElementsAre(1, 2));
  EXPECT_THAT(Kept(falling, 0, 0.9101f), ElementsAre(0, 1, 2));
}

TEST(SampleTest, TopKCutsFirstAndTiesGoToSmallIds) {
  const std::vector<float> logits = {1.0f, 2.0f, 1.0f, 2.0f, 1.0f};
  EXPECT_THAT(Kept(logits, 1, 1.0f), ElementsAre(1));
  EXPECT_THAT(Kept(logits, 2, 1.0f), ElementsAre(1, 3));
  EXPECT_THAT(Kept(logits, 3, 1.0f), ElementsAre(0, 1, 3));
  EXPECT_THAT(Kept(logits, 5, 1.0f), ElementsAre(0, 1, 2, 3, 4));
  EXPECT_THAT(Kept(logits, 99, 1.0f), ElementsAre(0, 1, 2, 3, 4));
  // Of the two that top_k keeps, one has half of the mass.
  EXPECT_THAT(Kept(logits, 2, 0.5f), ElementsAre(1));
  EXPECT_THAT(Kept(logits, 2, 0.51f), ElementsAre(1, 3));
}

TEST(SampleTest, ForbiddenTokensAreNeverDrawn) {
  std::vector<float> logits(301, -kInfinity);
  logits[7] = -100.0f;
  logits[300] = -100.0f;
  EXPECT_THAT(Kept(logits, 0, 1.0f), ElementsAre(7, 300));
  EXPECT_THAT(Kept(logits, 200, 0.9f), ElementsAre(7, 300));
}

TEST(SampleTest, ADrawDoesNotDependOnTheOtherRows) {
  constexpr size_t kRows = 13;
  constexpr size_t kVocab = 4099;
  std::mt19937 random(17);
  const std::vector<float> logits = Normal(kRows * (kVocab + 3), 2.0f, random);
  std::vector<SamplingParams> params(kRows);
  std::vector<int64_t> positions(kRows);
  for (size_t r = 0; r < kRows; ++r) {
    params[r].temperature = r % 4 == 0 ? 0.0f : 0.5f * static_cast<float>(r);
    params[r].top_k = r % 3 == 0 ? 40 : 0;
    params[r].top_p = r % 2 == 0 ? 0.95f : 1.0f;
    params[r].seed = r / 2;
    positions[r] = static_cast<int64_t>(r % 5);
  }
  for (const int num_threads : {1, 3}) {
    ThreadPool pool(num_threads);
    Stream stream = Stream::Cpu(&pool);
    std::vector<int32_t> tokens(kRows, -1);
    SampleArgs args;
    args.logits =
        ConstTensorView(logits.data(), DType::kF32, {kRows, kVocab + 3}).Columns(0, kVocab);
    args.params = params;
    args.positions = positions;
    args.token_ids = absl::MakeSpan(tokens);
    ASSERT_TRUE(Sample(args, stream).ok());
    for (size_t r = 0; r < kRows; ++r) {
      const auto row = logits.begin() + static_cast<std::ptrdiff_t>(r * (kVocab + 3));
      EXPECT_EQ(tokens[r],
                SampleRow(std::vector<float>(row, row + kVocab), params[r], positions[r]).value());
    }
  }
}

TEST(SampleTest, LeavesTokensInTheirPlaces) {
  ThreadPool pool(2);
  Stream stream = Stream::Cpu(&pool);
  const std::vector<float> logits = {0, 2, 1, 5, 4, 3, 1, 1, 9};
  const ConstTensorView view(logits.data(), DType::kF32, {3, 3});
  const std::vector<SamplingParams> params(3);
  const std::vector<int64_t> positions(3);
  std::vector<int32_t> ids = {-7, -7, -7, -7};
  const TensorView to(ids.data(), DType::kI32, {4});
  ASSERT_TRUE(SampleThere({view, params, positions, {{3, 0, 1}}, to}, stream).ok());
  EXPECT_THAT(ids, ElementsAre(0, 2, -7, 1));
  const absl::Status status = SampleThere({view, params, positions, {{3, 4, 1}}, to}, stream);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()),
              HasSubstr("expected places in [0, 4), found 4 of row 1"));
}

TEST(SampleTest, NamesTheFirstRowThatHasNoSoftmax) {
  for (const float bad : {std::nanf(""), kInfinity}) {
    for (const float temperature : {0.0f, 1.0f}) {
      for (const int num_threads : {1, 3}) {
        constexpr size_t kVocab = 8191;
        std::vector<float> logits(6 * kVocab, 0.5f);
        logits[2 * kVocab + 8190] = bad;
        logits[4 * kVocab] = bad;
        const std::vector<SamplingParams> params(6, SamplingParams{.temperature = temperature});
        const std::vector<int64_t> positions(6, 0);
        std::vector<int32_t> tokens(6);
        ThreadPool pool(num_threads);
        Stream stream = Stream::Cpu(&pool);
        SampleArgs args;
        args.logits = ConstTensorView(logits.data(), DType::kF32, {6, kVocab});
        args.params = params;
        args.positions = positions;
        args.token_ids = absl::MakeSpan(tokens);
        const absl::Status status = Sample(args, stream);
        EXPECT_EQ(status.code(), absl::StatusCode::kInternal);
        EXPECT_THAT(std::string(status.message()), HasSubstr("row 2 of 6"));
      }
    }
  }
  EXPECT_EQ(SampleRow({-kInfinity, -kInfinity}, {}, 0).status().code(),
            absl::StatusCode::kInternal);
}

TEST(SampleTest, ANanIsFoundWhereverItIsOnEveryTarget) {
  ForEachCpuTarget([&](absl::string_view target) {
    SCOPED_TRACE(std::string(target));
    for (const size_t vocab : {1, 3, 16, 17, 50}) {
      for (size_t at = 0; at < vocab; ++at) {
        std::vector<float> logits(vocab, 1.0f);
        logits[at] = std::nanf("");
        EXPECT_EQ(SampleRow(logits, {}, 0).status().code(), absl::StatusCode::kInternal) << at;
      }
    }
  });
}

TEST(SampleTest, RefusesParametersOutOfBounds) {
  const auto message = [](const SamplingParams& params) {
    const absl::Status status = SampleRow({1.0f, 2.0f}, params, 0).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_EQ(ValidateSamplingParams(params).code(), absl::StatusCode::kInvalidArgument);
    return std::string(status.message());
  };
  EXPECT_THAT(message({.temperature = -0.5f}), HasSubstr("row 0: temperature"));
  EXPECT_THAT(message({.temperature = std::nanf("")}), HasSubstr("temperature"));
  EXPECT_THAT(message({.temperature = kInfinity}), HasSubstr("temperature"));
  EXPECT_THAT(message({.top_k = -1}), HasSubstr("top_k: expected a number >= 0, found -1"));
  EXPECT_THAT(message({.top_p = 0.0f}), HasSubstr("top_p"));
  EXPECT_THAT(message({.top_p = 1.5f}), HasSubstr("(0, 1], found 1.5"));
  EXPECT_TRUE(ValidateSamplingParams({}).ok());
}

TEST(SampleTest, RefusesWrongCountsAndShapesByName) {
  const std::vector<float> logits(6);
  const std::vector<SamplingParams> params(2);
  const std::vector<int64_t> positions(2);
  std::vector<int32_t> tokens(2);
  ThreadPool pool(1);
  Stream stream = Stream::Cpu(&pool);
  SampleArgs args;
  args.logits = ConstTensorView(logits.data(), DType::kF32, {2, 3});
  args.params = params;
  args.positions = positions;
  args.token_ids = absl::MakeSpan(tokens);
  ASSERT_TRUE(Sample(args, stream).ok());
  const auto message = [&](const SampleArgs& bad) {
    const absl::Status status = Sample(bad, stream);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    return std::string(status.message());
  };
  SampleArgs bad = args;
  bad.logits = ConstTensorView(logits.data(), DType::kF16, {2, 3});
  EXPECT_THAT(message(bad), HasSubstr("found fp16[2, 3]"));
  bad = args;
  bad.params = absl::MakeConstSpan(params).first(1);
  EXPECT_THAT(message(bad), HasSubstr("expected 2 params"));
  bad = args;
  bad.positions = {};
  EXPECT_THAT(message(bad), HasSubstr("positions"));
  bad = args;
  bad.token_ids = {};
  EXPECT_THAT(message(bad), HasSubstr("token_ids"));
  bad = args;
  bad.logits = ConstTensorView(logits.data(), DType::kF32, {2, 3}, Device::Cuda(0));
  EXPECT_THAT(message(bad), HasSubstr("cuda:0"));
  SampleArgs none;
  none.logits = ConstTensorView(nullptr, DType::kF32, {0, 3});
  EXPECT_TRUE(Sample(none, stream).ok());
}

TEST(LogProbsTest, AgreesWithTheDefinitionOnEveryTarget) {
  ForEachCpuTarget([&](absl::string_view target) {
    SCOPED_TRACE(std::string(target));
    std::mt19937 random(23);
    for (const size_t vocab : {1, 2, 9, 17, 1001, 50272}) {
      constexpr size_t kRows = 3;
      std::vector<float> logits = Normal(kRows * vocab, 5.0f, random);
      for (float& logit : logits) logit += 300.0f;
      if (vocab > 10) logits[3] = -kInfinity;
      std::vector<int32_t> targets(kRows);
      for (int32_t& t : targets) t = static_cast<int32_t>(random() % vocab);
      if (vocab > 10) targets[1] = 3;
      std::vector<float> got(kRows);
      ThreadPool pool(2);
      Stream stream = Stream::Cpu(&pool);
      LogProbArgs args;
      args.logits =
          ConstTensorView(logits.data(), DType::kF32, {kRows, static_cast<int64_t>(vocab)});
      args.targets = targets;
      args.log_probs = absl::MakeSpan(got);
      ASSERT_TRUE(LogProbs(args, stream).ok());
      for (size_t r = 0; r < kRows; ++r) {
        const float* row = logits.data() + r * vocab;
        const double max = *std::max_element(row, row + vocab);
        double sum = 0.0;
        for (size_t i = 0; i < vocab; ++i) sum += std::exp(row[i] - max);
        const double want = row[targets[r]] - max - std::log(sum);
        // One rounding to fp32; the sums of up to 50272 terms differ by less than 50272 * 2^-52.
        ASSERT_NEAR(got[r], want, 0x1p-24 * std::fabs(want) + 50272 * 0x1p-52);
      }
    }
  });
}

TEST(LogProbsTest, RefusesTargetsOutsideTheVocabularyAndNamesBadRows) {
  std::vector<float> logits = {0.0f, 0.0f, 0.0f, -kInfinity, 0.0f, 0.0f};
  std::vector<int32_t> targets = {1, 0};
  std::vector<float> log_probs(2);
  ThreadPool pool(1);
  Stream stream = Stream::Cpu(&pool);
  LogProbArgs args;
  args.logits = ConstTensorView(logits.data(), DType::kF32, {2, 3});
  args.targets = targets;
  args.log_probs = absl::MakeSpan(log_probs);
  ASSERT_TRUE(LogProbs(args, stream).ok());
  EXPECT_FLOAT_EQ(log_probs[0], std::log(1.0f / 3));
  EXPECT_EQ(log_probs[1], -kInfinity);
  for (const int32_t bad : {-1, 3}) {
    targets[1] = bad;
    const absl::Status status = LogProbs(args, stream);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(status.message()), HasSubstr("in row 1"));
  }
  targets[1] = 0;
  logits[4] = std::nanf("");
  const absl::Status status = LogProbs(args, stream);
  EXPECT_EQ(status.code(), absl::StatusCode::kInternal);
  EXPECT_THAT(std::string(status.message()), HasSubstr("row 1 of 2"));
}

}  // namespace
}  // namespace thinwire
