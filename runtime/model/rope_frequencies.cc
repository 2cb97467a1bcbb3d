#include "runtime/model/rope_frequencies.h"

#include <cmath>
#include <numbers>

namespace thinwire {
namespace {

double ScaleLlama3(double frequency, const RopeConfig& rope) {
  const double wavelength = 2.0 * std::numbers::pi / frequency;
  const auto original = static_cast<double>(rope.original_max_positions);
  if (wavelength > original / rope.low_freq_factor) return frequency / rope.factor;
  if (wavelength < original / rope.high_freq_factor) return frequency;
  const double smooth = (original / wavelength - rope.low_freq_factor) /
                        (rope.high_freq_factor - rope.low_freq_factor);
  return (1.0 - smooth) * frequency / rope.factor + smooth * frequency;
}

}  // namespace

std::vector<float> RopeFrequencies(const RopeConfig& rope, int64_t head_dim) {
  std::vector<float> frequencies(head_dim / 2);
  for (int64_t i = 0; i < head_dim / 2; ++i) {
    double frequency = std::pow(rope.theta, -2.0 * static_cast<double>(i) / head_dim);
    if (rope.scaling == RopeScalingKind::kLinear) frequency /= rope.factor;
    if (rope.scaling == RopeScalingKind::kLlama3) frequency = ScaleLlama3(frequency, rope);
    frequencies[i] = static_cast<float>(frequency);
  }
  return frequencies;
}

}  // namespace thinwire
