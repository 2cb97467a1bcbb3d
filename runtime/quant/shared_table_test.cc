#include "runtime/quant/shared_table.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <random>
#include <utility>
#include <vector>

#include "gtest/gtest.h"

namespace thinwire {
namespace {

// Channels of one heavy-tailed shape, at different places and scales.
std::vector<std::vector<float>> Channels(int64_t count, int64_t num_samples, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<std::vector<float>> channels(static_cast<size_t>(count));
  for (int64_t c = 0; c < count; ++c) {
    for (int64_t t = 0; t < num_samples; ++t) {
      const float z = normal(random);
      channels[c].push_back(static_cast<float>(c - 2) +
                            std::ldexp(z * std::abs(z), static_cast<int>(c % 5) - 2));
    }
  }
  return channels;
}

struct Problem {
  explicit Problem(std::vector<std::vector<float>> samples) : channels(std::move(samples)) {
    for (const std::vector<float>& x : channels) {
      const GridFit fit = *SearchGrid(x, {}, {.bits = 4});
      grids.push_back(fit.grid);
      uniform_errors.push_back(fit.error);
    }
  }
  SharedTableProblem View() const {
    return {.channels = {channels.begin(), channels.end()}, .grids = grids};
  }
  std::vector<std::vector<float>> channels;
  std::vector<UniformGrid> grids;
  std::vector<double> uniform_errors;
};

double Error(const std::vector<float>& x, const UniformGrid& grid,
             const std::array<uint8_t, 256>& snap) {
  double sum = 0.0;
  for (const float value : x) {
    const float position = std::min(std::max(value / grid.step + grid.zero, 0.0f), 255.0f);
    const auto code = static_cast<size_t>(std::nearbyint(position));
    const float found = grid.step * (static_cast<float>(snap[code]) - grid.zero);
    sum += static_cast<double>((value - found) * (value - found));
  }
  return sum;
}

TEST(SharedTableTest, BeatsUniformLevelsOnHeavyTails) {
  const Problem problem(Channels(12, 2000, 1));
  ThreadPool pool(2);
  const auto found = FitSharedTable(problem.View(), pool);
  ASSERT_TRUE(found.ok());
  ASSERT_EQ(found->table.levels.size(), 16u);
  double uniform = 0.0;
  double sum = 0.0;
  for (size_t c = 0; c < 12; ++c) {
    EXPECT_EQ(found->grids[c].bits, 8);
    // Samples within fp32 rounding of the middle between two fine codes may go either way.
    const double error = Error(problem.channels[c], found->grids[c], found->table.snap);
    EXPECT_NEAR(found->errors[c], error, 1e-3 * error);
    uniform += problem.uniform_errors[c];
    sum += found->errors[c];
  }
  EXPECT_NEAR(found->table.error, sum, 1e-12 * sum);
  EXPECT_LT(sum, 0.6 * uniform);
}

TEST(SharedTableTest, IsNeverWorseThanWhereItBegan) {
  for (const int rounds : {0, 1}) {
    const Problem problem(Channels(5, 50, 2));
    SharedTableProblem view = problem.View();
    view.rounds = rounds;
    ThreadPool pool(1);
    const auto found = FitSharedTable(view, pool);
    ASSERT_TRUE(found.ok());
    for (size_t c = 0; c < 5; ++c) {
      if (rounds == 0) {
        EXPECT_LE(found->errors[c], problem.uniform_errors[c] * (1.0 + 1e-5));
      }
    }
  }
}

TEST(SharedTableTest, WeightsChooseWhoseLevelsTheyAre) {
  std::vector<std::vector<float>> channels = Channels(2, 2000, 3);
  for (float& x : channels[1]) x = std::abs(x);  // another shape
  const Problem problem(std::move(channels));
  ThreadPool pool(2);
  const auto error_of = [&](std::vector<double> weights, size_t channel) {
    SharedTableProblem view = problem.View();
    view.channel_weights = weights;
    return FitSharedTable(view, pool)->errors[channel];
  };
  EXPECT_LT(error_of({1.0, 0.0}, 0), error_of({0.0, 1.0}, 0));
  EXPECT_LT(error_of({0.0, 1.0}, 1), error_of({1.0, 0.0}, 1));
}

TEST(SharedTableTest, ThreadsChangeNoBit) {
  const Problem problem(Channels(9, 300, 4));
  ThreadPool one(1);
  ThreadPool five(5);
  const auto a = FitSharedTable(problem.View(), one);
  const auto b = FitSharedTable(problem.View(), five);
  EXPECT_EQ(a->table.levels, b->table.levels);
  EXPECT_EQ(a->errors, b->errors);
}

TEST(SharedTableTest, ConstantAndEmptyChannelsAreFineAndBadOnesNamed) {
  std::vector<std::vector<float>> channels = Channels(3, 100, 5);
  channels[1].assign(100, 2.5f);
  Problem problem(channels);
  ThreadPool pool(2);
  const auto found = FitSharedTable(problem.View(), pool);
  ASSERT_TRUE(found.ok());
  for (const UniformGrid& grid : found->grids) {
    EXPECT_GT(grid.step, 0.0f);
    EXPECT_TRUE(std::isfinite(1.0f / grid.step));
  }
  EXPECT_TRUE(FitSharedTable({}, pool).ok());
  problem.channels[2][40] = std::numeric_limits<float>::quiet_NaN();
  const absl::Status status = FitSharedTable(problem.View(), pool).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_NE(status.message().find("channel 2: sample 40"), absl::string_view::npos) << status;
}

}  // namespace
}  // namespace thinwire
