// The scale and zero of one output row's group of weights.
#pragma once

#include <algorithm>
#include <cstdint>

namespace thinwire {

// w ~= scale * (code - zero), code in [0, 2^bits - 1]. scale is a positive fp16 value; zero is an
// integer in the codes' range.
struct WeightGrid {
  float scale = 1.0f;
  float zero = 0.0f;
};

struct WeightGridOptions {
  int bits = 4;
  int shrink_steps = 0;
  float smallest_shrink = 0.5f;
  float error_power = 2.0f;
  bool local_search = false;
};

// The grid of w[n] (finite): range [min(0, min w), max(0, max w)], shrunk by the best of the
// options' factors under sum_i h_i |w_i - w^_i|^error_power (see GptqOptions); h null: all 1. Scale
// 1 and zero 0 when all weights are 0; an infinite scale when it is beyond fp16.
WeightGrid FitWeightGrid(const float* w, const float* h, int64_t n,
                         const WeightGridOptions& options);

// The code nearest to w, as a float; 0 for NaN.
inline float NearestCode(const WeightGrid& grid, float w, float max_code) {
  constexpr float kHalfEven = 0x1.8p23f;  // adding it rounds to an integer below 2^22
  const float position = w / grid.scale + grid.zero;
  const float clamped = std::min(max_code, position > 0.0f ? position : 0.0f);
  return (clamped + kHalfEven) - kHalfEven;
}

}  // namespace thinwire
