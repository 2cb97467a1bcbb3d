#include <cmath>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/sampling/sampling.h"
#include "kernels/sampling/top_log_probs.h"
#include "kernels/testing/gpu_test.h"
#include "kernels/testing/on_device.h"

namespace thinwire {
namespace {

using ::testing::HasSubstr;

class SamplingCudaTest : public GpuTest {
 protected:
  std::mt19937 random_{std::random_device{}()};

  std::vector<int32_t> Ids(const std::vector<float>& logits,
                           const std::vector<SamplingParams>& params, Stream& on) {
    const auto rows = static_cast<int64_t>(params.size());
    const auto vocab = static_cast<int64_t>(logits.size()) / rows;
    const Tensor there = OnDevice(ConstTensorView(logits.data(), DType::kF32, {rows, vocab}), on);
    std::vector<int64_t> positions;
    for (int64_t r = 0; r < rows; ++r) positions.push_back(1000 + 17 * r);
    std::vector<int32_t> ids(params.size(), -7);
    const absl::Status status = Sample({there.view(), params, positions, absl::MakeSpan(ids)}, on);
    EXPECT_TRUE(status.ok()) << status;
    return ids;
  }
};

TEST_F(SamplingCudaTest, DrawsTheTokensOfTheCpu) {
  const SamplingParams kinds[] = {{0.0f, 0, 1.0f, 1},  {1.0f, 0, 1.0f, 2},    {0.7f, 0, 0.9f, 3},
                                  {1.3f, 50, 1.0f, 4}, {0.05f, 40, 0.95f, 5}, {1.0f, 1, 1.0f, 6},
                                  {50.0f, 0, 0.5f, 7}, {2.0f, 7, 0.3f, 8},    {1.0f, 0, 0.001f, 9},
                                  {1e-5f, 0, 1.0f, 10}};
  for (const int64_t vocab : {1, 2, 33, 1024, 50272, 128256}) {
    std::vector<float> logits;
    std::vector<SamplingParams> params;
    for (int round = 0; round < 5; ++round) {
      for (SamplingParams p : kinds) {
        p.seed += static_cast<uint64_t>(random_());
        params.push_back(p);
        for (int64_t v = 0; v < vocab; ++v) {
          float logit = std::normal_distribution<float>(0.0f, 3.0f)(random_);
          if (round == 1) logit = std::round(logit);  // many equals
          if (round == 2) logit = 0.0f;               // all equal
          if (round == 3 && v % 3 == 0) logit = -std::numeric_limits<float>::infinity();
          if (round == 4 && v % 5 == 1) logit *= 0.0f;  // zeros of both signs
          if (vocab == 1) logit = 1.0f;
          logits.push_back(logit);
        }
      }
    }
    if (vocab > 1) {
      // Some finite value in each row.
      for (size_t r = 0; r < params.size(); ++r) logits[r * static_cast<size_t>(vocab) + 1] = 1.0f;
    }
    const std::vector<int32_t> got = Ids(logits, params, stream());
    const std::vector<int32_t> want = Ids(logits, params, host());
    for (size_t r = 0; r < got.size(); ++r) {
      ASSERT_EQ(got[r], want[r]) << "vocab " << vocab << " row " << r << " temperature "
                                 << params[r].temperature << " top_k " << params[r].top_k
                                 << " top_p " << params[r].top_p;
    }
    EXPECT_EQ(Ids(logits, params, stream()), got) << "not the same twice";
  }
}

TEST_F(SamplingCudaTest, LeavesTokensWhereLaterWorkFindsThem) {
  constexpr int64_t kRows = 131;  // more than a launch takes
  constexpr int64_t kVocab = 700;
  std::vector<float> logits(kRows * kVocab);
  for (float& logit : logits) logit = std::normal_distribution<float>(0.0f, 2.0f)(random_);
  logits[70 * kVocab + 3] = std::numeric_limits<float>::quiet_NaN();
  std::vector<SamplingParams> params(kRows, SamplingParams{1.0f});
  std::vector<int64_t> positions(kRows, 5);
  std::vector<int32_t> places(kRows);
  for (int64_t r = 0; r < kRows; ++r) {
    params[r].seed = random_();
    if (r % 3 == 0) params[r].temperature = 0.0f;
    places[r] = static_cast<int32_t>(kRows - r);
  }
  const ConstTensorView here(logits.data(), DType::kF32, {kRows, kVocab});
  const Tensor there = OnDevice(here, stream());
  Tensor ids = VectorOnDevice(std::vector<int32_t>(kRows + 2, -7), stream());
  const absl::Status status =
      SampleThere({there.view(), params, positions, places, ids.mutable_view()}, stream());
  ASSERT_TRUE(status.ok()) << status;
  const Tensor back = OnHost(ids.view(), stream());
  const auto* const got = back.view().data<int32_t>();
  EXPECT_EQ(got[0], -7);
  EXPECT_EQ(got[kRows + 1], -7);
  for (int64_t r = 0; r < kRows; ++r) {
    int32_t want = -1;
    if (r != 70) {
      ASSERT_TRUE(Sample({here.Rows(r, 1),
                          absl::MakeConstSpan(params).subspan(r, 1),
                          absl::MakeConstSpan(positions).subspan(r, 1),
                          {&want, 1}},
                         host())
                      .ok());
    }
    EXPECT_EQ(got[places[r]], want) << "row " << r;
  }
}

TEST_F(SamplingCudaTest, LogProbabilitiesAreThoseOfTheCpu) {
  for (const int64_t vocab : {1, 1000, 50272}) {
    constexpr int64_t kRows = 9;
    std::vector<float> logits;
    std::vector<int32_t> targets;
    for (int64_t r = 0; r < kRows; ++r) {
      for (int64_t v = 0; v < vocab; ++v) {
        logits.push_back(std::normal_distribution<float>(0.0f, 4.0f)(random_));
      }
      targets.push_back(static_cast<int32_t>(random_() % static_cast<uint64_t>(vocab)));
    }
    const auto run = [&](Stream& on) {
      const Tensor there =
          OnDevice(ConstTensorView(logits.data(), DType::kF32, {kRows, vocab}), on);
      std::vector<float> log_probs(kRows, 1.0f);
      EXPECT_TRUE(LogProbs({there.view(), targets, absl::MakeSpan(log_probs)}, on).ok());
      return log_probs;
    };
    const std::vector<float> got = run(stream());
    const std::vector<float> want = run(host());
    for (size_t r = 0; r < got.size(); ++r) {
      // Sums in double differ by less than a rounding of fp32.
      EXPECT_NEAR(got[r], want[r], 0x1p-23 * std::fabs(want[r]) + 1e-12);
    }
  }
}

TEST_F(SamplingCudaTest, TheMostProbableTokensAreThoseOfTheCpuToTheBit) {
  constexpr int64_t kRows = 3;
  constexpr int64_t kVocab = 32001;
  constexpr int64_t kTop = 20;
  std::mt19937 random(7);
  std::normal_distribution<float> normal(0.0f, 4.0f);
  std::vector<float> logits(kRows * kVocab);
  for (float& logit : logits) logit = normal(random);
  const ConstTensorView here(logits.data(), DType::kF32, {kRows, kVocab});
  const Tensor there = OnDevice(here, stream());
  std::vector<TokenLogProb> got(kRows * kTop), want(kRows * kTop);
  ASSERT_TRUE(TopLogProbs({there.view(), kTop, absl::MakeSpan(got)}, stream()).ok());
  ASSERT_TRUE(TopLogProbs({here, kTop, absl::MakeSpan(want)}, host()).ok());
  for (size_t i = 0; i < want.size(); ++i) {
    EXPECT_EQ(got[i].token_id, want[i].token_id);
    EXPECT_EQ(got[i].log_prob, want[i].log_prob);
  }
}

TEST_F(SamplingCudaTest, RowsWithoutASoftmaxAreNamed) {
  std::vector<float> logits(4 * 100, 1.0f);
  logits[250] = std::numeric_limits<float>::quiet_NaN();
  for (size_t v = 300; v < 400; ++v) logits[v] = -std::numeric_limits<float>::infinity();
  const Tensor there = OnDevice(ConstTensorView(logits.data(), DType::kF32, {4, 100}), stream());
  const std::vector<SamplingParams> params(4, SamplingParams{1.0f});
  const std::vector<int64_t> positions(4);
  const std::vector<int32_t> targets(4);
  std::vector<int32_t> ids(4);
  std::vector<float> log_probs(4);
  const absl::Status sampled =
      Sample({there.view(), params, positions, absl::MakeSpan(ids)}, stream());
  EXPECT_EQ(sampled.code(), absl::StatusCode::kInternal);
  EXPECT_THAT(std::string(sampled.message()), HasSubstr("row 2 of 4"));
  const absl::Status scored =
      LogProbs({there.view().Rows(3, 1), absl::MakeSpan(targets).subspan(0, 1),
                absl::MakeSpan(log_probs).subspan(0, 1)},
               stream());
  EXPECT_EQ(scored.code(), absl::StatusCode::kInternal);
}

}  // namespace
}  // namespace thinwire
