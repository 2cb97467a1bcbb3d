#include "runtime/model/rope_frequencies.h"

#include <cmath>
#include <utility>
#include <vector>

#include "gtest/gtest.h"

namespace thinwire {
namespace {

// RopeFrequencies computes in double and rounds once.
void ExpectRounded(float found, double expected) {
  EXPECT_NEAR(found, expected, expected * 0x1p-23);
}

TEST(RopeFrequenciesTest, AreAGeometricSequenceWithoutScaling) {
  const std::vector<float> frequencies = RopeFrequencies({.theta = 10000.0}, 8);
  ASSERT_EQ(frequencies.size(), 4u);
  double expected = 1.0;
  for (const float frequency : frequencies) {
    ExpectRounded(frequency, expected);
    expected /= 10.0;
  }
}

TEST(RopeFrequenciesTest, ThetaIsTheBase) {
  const std::vector<float> frequencies = RopeFrequencies({.theta = 256.0}, 4);
  ASSERT_EQ(frequencies.size(), 2u);
  EXPECT_EQ(frequencies[0], 1.0f);
  EXPECT_EQ(frequencies[1], 0.0625f);
}

TEST(RopeFrequenciesTest, LinearScalingDividesAll) {
  const RopeConfig rope = {.theta = 10000.0, .scaling = RopeScalingKind::kLinear, .factor = 4.0};
  const std::vector<float> frequencies = RopeFrequencies(rope, 8);
  ASSERT_EQ(frequencies.size(), 4u);
  double expected = 0.25;
  for (const float frequency : frequencies) {
    ExpectRounded(frequency, expected);
    expected /= 10.0;
  }
}

// The numbers of LLaMA 3.1, whose head dim is 128. Expected values are
// transformers.modeling_rope_utils' formula in double precision: 0 to 28 are short waves, 29 to 34
// in between, 35 to 63 long.
TEST(RopeFrequenciesTest, Llama3ScalesLongWavesAndBlendsTheMiddle) {
  const RopeConfig rope = {.theta = 500000.0,
                           .scaling = RopeScalingKind::kLlama3,
                           .factor = 8.0,
                           .low_freq_factor = 1.0,
                           .high_freq_factor = 4.0,
                           .original_max_positions = 8192};
  const std::vector<float> frequencies = RopeFrequencies(rope, 128);
  ASSERT_EQ(frequencies.size(), 64u);
  const std::vector<std::pair<int, double>> expected = {
      {0, 1.0},
      {1, 0.8146172338565447},
      {28, 0.003211445994752591},
      {29, 0.002166570763503359},
      {30, 0.0013718935677611381},
      {31, 0.0008567514129196321},
      {34, 0.0001785078127679964},
      {35, 9.556212353964683e-05},
      {36, 7.78465527393245e-05},
      {63, 3.068925988914511e-07},
  };
  for (const auto& [i, value] : expected) {
    SCOPED_TRACE(i);
    ExpectRounded(frequencies[i], value);
  }
}

TEST(RopeFrequenciesTest, Llama3IsContinuousAtItsBounds) {
  // theta and original_max_positions such that wavelengths straddle both bounds closely.
  const RopeConfig plain = {.theta = 3.0};
  RopeConfig rope = plain;
  rope.scaling = RopeScalingKind::kLlama3;
  rope.factor = 8.0;
  rope.original_max_positions = 32;
  const std::vector<float> kept = RopeFrequencies(plain, 4096);
  const std::vector<float> scaled = RopeFrequencies(rope, 4096);
  double previous = 1.0;
  for (size_t i = 0; i < kept.size(); ++i) {
    const double ratio = static_cast<double>(scaled[i]) / static_cast<double>(kept[i]);
    EXPECT_LE(ratio, previous + 0x1p-22) << i;
    EXPECT_LT(previous - ratio, 0.002) << i;
    previous = ratio;
  }
}

}  // namespace
}  // namespace thinwire
