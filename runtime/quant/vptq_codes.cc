#include "runtime/quant/vptq_codes.h"

#include <cstddef>

namespace thinwire {

std::vector<float> Dequantize(const VptqCodes& codes) {
  const int64_t in = codes.in_features;
  const int64_t outliers = codes.outlier_size;
  const int64_t rest = in - outliers;
  std::vector<float> weights(static_cast<size_t>(codes.out_features * in));
  for (int64_t o = 0; o < codes.out_features; ++o) {
    for (int64_t p = 0; p < in; ++p) {
      float value;
      if (p < outliers) {
        const int length = codes.outlier_length;
        const int64_t index = codes.outlier_indices[o / length * outliers + p];
        value = codes.outlier_centroids[index * length + o % length];
      } else {
        const int length = codes.length;
        const int64_t at = o / length * rest + p - outliers;
        const int64_t group = (p - outliers) / codes.group_size();
        const int64_t vector = (group << codes.index_bits) + codes.indices[at];
        value = codes.centroids[vector * length + o % length];
        if (codes.has_residual) {
          const int64_t residual = (group << codes.residual_bits) + codes.residuals[at];
          value += codes.residual_centroids[residual * length + o % length];
        }
      }
      const int64_t column = codes.column(p);
      if (!codes.scale.empty()) value = value * codes.scale[column];
      if (!codes.offset.empty()) value = value + codes.offset[column];
      weights[o * in + column] = value;
    }
  }
  return weights;
}

}  // namespace thinwire
