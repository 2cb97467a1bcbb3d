// The scale and zero of a row's group of weights, found by a warp. Private to kernels/quantize.
#pragma once

#include <cuda_fp16.h>

#include <cstdint>

#include "kernels/quantize/gpu_gptq.h"

namespace thinwire {

// w ~= scale * (code - zero).
struct Grid {
  float scale, zero;
};

__device__ __forceinline__ float NearestCode(Grid grid, float w, float max_code) {
  const float position = w / grid.scale + grid.zero;
  return rintf(fminf(max_code, position > 0.0f ? position : 0.0f));
}

__device__ __forceinline__ Grid GridOf(float low, float high, float max_code) {
  Grid grid = {1.0f, 0.0f};
  if (low == high) return grid;
  grid.scale = __half2float(__float2half_rn((high - low) / max_code));
  if (grid.scale == 0.0f) grid.scale = 0x1p-24f;
  grid.zero = fminf(max_code, rintf(-low / grid.scale));
  return grid;
}

__device__ __forceinline__ double WarpSum(double value) {
  for (int step = 16; step > 0; step /= 2) value += __shfl_xor_sync(0xffffffffu, value, step);
  return value;
}

// By a warp: sum_i h_i |w_i - w^_i|^power.
__device__ inline double ErrorOf(Grid grid, const float* w, const float* h, int64_t n,
                                 float max_code, float power) {
  double sum = 0.0;
  for (int64_t i = threadIdx.x % 32; i < n; i += 32) {
    const float difference = w[i] - grid.scale * (NearestCode(grid, w[i], max_code) - grid.zero);
    const float weight = h == nullptr ? 1.0f : h[i];
    sum += power == 2.0f ? double{weight * (difference * difference)}
                         : double{weight} * pow(fabs(double{difference}), double{power});
  }
  return WarpSum(sum);
}

// By a warp: FitWeightGrid of runtime/quant.
__device__ inline Grid FitGrid(const float* w, const float* h, int64_t n, float max_code,
                               const GpuGridOptions& options) {
  constexpr float kLocalChanges[] = {0.0f, -0.1f, -0.05f, 0.05f, 0.1f};
  float low = 0.0f, high = 0.0f;
  for (int64_t i = threadIdx.x % 32; i < n; i += 32) {
    low = fminf(low, w[i]);
    high = fmaxf(high, w[i]);
  }
  for (int step = 16; step > 0; step /= 2) {
    low = fminf(low, __shfl_xor_sync(0xffffffffu, low, step));
    high = fmaxf(high, __shfl_xor_sync(0xffffffffu, high, step));
  }
  Grid best = GridOf(low, high, max_code);
  if (options.shrink_steps == 0 || isinf(best.scale)) return best;
  double least = ErrorOf(best, w, h, n, max_code, options.error_power);
  const auto attempt = [&](float of_low, float of_high) {
    const Grid grid = GridOf(of_low * low, of_high * high, max_code);
    const double error = ErrorOf(grid, w, h, n, max_code, options.error_power);
    if (!(error < least)) return false;
    least = error;
    best = grid;
    return true;
  };
  float factor = 1.0f;
  for (int j = 1; j <= options.shrink_steps; ++j) {
    const float shrunk = 1.0f - static_cast<float>(j) * (1.0f - options.smallest_shrink) /
                                    static_cast<float>(options.shrink_steps);
    if (attempt(shrunk, shrunk)) factor = shrunk;
  }
  if (!options.local_search) return best;
  for (const float below : kLocalChanges) {
    for (const float above : kLocalChanges) {
      attempt(fminf(1.0f, factor + below), fminf(1.0f, factor + above));
    }
  }
  return best;
}

}  // namespace thinwire
