#include "kernels/sampling/top_log_probs.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/sampling/sampling.h"

namespace thinwire {
namespace {

using ::testing::HasSubstr;

constexpr float kInfinity = std::numeric_limits<float>::infinity();

TEST(TopLogProbsTest, AreTheFirstOfAFullSortWithTheValuesOfLogProbs) {
  std::mt19937 random(31);
  ThreadPool pool(1);
  Stream stream = Stream::Cpu(&pool);
  for (const int64_t vocab : {1, 2, 7, 20, 21, 1003, 50272}) {
    constexpr int64_t kRows = 3;
    std::vector<float> logits(kRows * vocab);
    // Few values, so that there are equals; some are forbidden.
    std::uniform_int_distribution<int> level(-9, 6);
    for (float& logit : logits) {
      const int drawn = level(random);
      logit = drawn == -9 ? -kInfinity : 0.37f * static_cast<float>(drawn);
    }
    for (int64_t row = 0; row < kRows; ++row) logits[row * vocab + vocab / 2] = 2.5f;
    const int64_t k = std::min<int64_t>(vocab, 20);
    std::vector<TokenLogProb> got(kRows * k);
    const ConstTensorView view(logits.data(), DType::kF32, {kRows, vocab});
    ASSERT_TRUE(TopLogProbs({.logits = view, .k = k, .out = absl::MakeSpan(got)}, stream).ok());
    for (int64_t row = 0; row < kRows; ++row) {
      const float* values = logits.data() + row * vocab;
      std::vector<int32_t> order(vocab);
      std::iota(order.begin(), order.end(), 0);
      std::stable_sort(order.begin(), order.end(),
                       [&](int32_t a, int32_t b) { return values[a] > values[b]; });
      for (int64_t i = 0; i < k; ++i) {
        const TokenLogProb& token = got[row * k + i];
        ASSERT_EQ(token.token_id, order[i]) << vocab << " row " << row << " place " << i;
        float want = 0.0f;
        ASSERT_TRUE(
            LogProbs(
                {.logits = view.Rows(row, 1), .targets = {&order[i], 1}, .log_probs = {&want, 1}},
                stream)
                .ok());
        ASSERT_EQ(token.log_prob, want);
      }
    }
  }
}

TEST(TopLogProbsTest, NamesWhatIsWrong) {
  ThreadPool pool(1);
  Stream stream = Stream::Cpu(&pool);
  std::vector<float> logits = {0.0f, 1.0f, 2.0f, 0.0f, std::nanf(""), 2.0f};
  std::vector<TokenLogProb> out(4);
  TopLogProbArgs args = {.logits = ConstTensorView(logits.data(), DType::kF32, {2, 3}),
                         .k = 2,
                         .out = absl::MakeSpan(out)};
  const auto message = [&](const TopLogProbArgs& bad) {
    return std::string(TopLogProbs(bad, stream).message());
  };
  EXPECT_THAT(message(args), HasSubstr("row 1 of 2"));
  logits[4] = 0.0f;
  EXPECT_TRUE(TopLogProbs(args, stream).ok());
  TopLogProbArgs bad = args;
  bad.k = 0;
  EXPECT_THAT(message(bad), HasSubstr("k in [1, 3], found 0"));
  bad.k = 4;
  EXPECT_THAT(message(bad), HasSubstr("found 4"));
  bad = args;
  bad.out = absl::MakeSpan(out).first(3);
  EXPECT_THAT(message(bad), HasSubstr("expected out of 4 tokens"));
  bad = args;
  bad.logits = ConstTensorView(logits.data(), DType::kF32, {6});
  EXPECT_THAT(message(bad), HasSubstr("fp32[num_rows, vocab]"));
  bad.logits = ConstTensorView(logits.data(), DType::kF32, {2, 3}, Device::Cuda(0));
  EXPECT_THAT(message(bad), HasSubstr("cuda:0"));
}

}  // namespace
}  // namespace thinwire
