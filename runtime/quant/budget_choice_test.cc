#include "runtime/quant/budget_choice.h"

#include <cmath>
#include <limits>
#include <random>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace thinwire {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

using Options = std::vector<std::vector<BudgetOption>>;

// The least loss of all choices within the budget; infinity if there is none.
double LeastLoss(const Options& options, size_t unit, int64_t budget) {
  if (budget < 0) return std::numeric_limits<double>::infinity();
  if (unit == options.size()) return 0.0;
  double least = std::numeric_limits<double>::infinity();
  for (const BudgetOption& option : options[unit]) {
    least = std::min(least, option.loss + LeastLoss(options, unit + 1, budget - option.bits));
  }
  return least;
}

TEST(BudgetChoiceTest, IsWithinOneStepOfTheBestChoice) {
  std::mt19937 random(1);
  for (int round = 0; round < 200; ++round) {
    Options options(5);
    int64_t least_bits = 0;
    double largest_gain = 0.0;
    for (auto& unit : options) {
      const int count = 1 + static_cast<int>(random() % 5);
      int64_t least = 100;
      double best = 1.0, worst = 0.0;
      for (int i = 0; i < count; ++i) {
        unit.push_back(
            {static_cast<int64_t>(random() % 40), static_cast<double>(random() % 1000) / 1000.0});
        least = std::min(least, unit.back().bits);
        best = std::min(best, unit.back().loss);
        worst = std::max(worst, unit.back().loss);
      }
      least_bits += least;
      largest_gain = std::max(largest_gain, worst - best);
    }
    const int64_t budget = least_bits + static_cast<int64_t>(random() % 80);
    const std::vector<int> chosen = ChooseWithinBudget(options, budget).value();
    int64_t bits = 0;
    double loss = 0.0;
    for (size_t unit = 0; unit < options.size(); ++unit) {
      bits += options[unit][chosen[unit]].bits;
      loss += options[unit][chosen[unit]].loss;
    }
    EXPECT_LE(bits, budget);
    EXPECT_LE(loss, LeastLoss(options, 0, budget) + largest_gain + 1e-9);
  }
}

TEST(BudgetChoiceTest, TakesWhatGainsMostForABit) {
  const Options options = {{{10, 1.0}, {20, 0.5}, {40, 0.4}}, {{10, 2.0}, {15, 1.9}, {20, 0.2}}};
  EXPECT_THAT(ChooseWithinBudget(options, 20).value(), ElementsAre(0, 0));
  EXPECT_THAT(ChooseWithinBudget(options, 30).value(), ElementsAre(0, 2));
  EXPECT_THAT(ChooseWithinBudget(options, 25).value(), ElementsAre(0, 1));  // what still fits
  EXPECT_THAT(ChooseWithinBudget(options, 59).value(), ElementsAre(1, 2));
  EXPECT_THAT(ChooseWithinBudget(options, 60).value(), ElementsAre(2, 2));
}

TEST(BudgetChoiceTest, NamesWhatIsWrong) {
  const auto low = ChooseWithinBudget(Options{{{10, 1.0}}, {{7, 1.0}}}, 16).status();
  EXPECT_THAT(std::string(low.message()), HasSubstr("at least 17 bits, found 16"));
  EXPECT_FALSE(ChooseWithinBudget(Options{{}}, 16).ok());
  const auto bad = ChooseWithinBudget(Options{{{1, 1.0}}, {{1, NAN}}}, 16).status();
  EXPECT_THAT(std::string(bad.message()), HasSubstr("unit 1"));
}

}  // namespace
}  // namespace thinwire
