// A matrix as indices into codebooks of short vectors (VPTQ: Liu et al., arXiv 2409.17066).
#pragma once

#include <cstdint>
#include <vector>

namespace thinwire {

// Position p of `order` holds column n = order[p]; the first outlier_size positions are outliers,
// the others num_groups equal runs. With u the vectors' element of output o,
// w[o, n] = scale[n] * u + offset[n],
// u = (C_g[index] + R_g[residual index])[o mod length] of vector row o / length and p's group g, or
// of an outlier outlier_centroids[index][o mod outlier_length] of row o / outlier_length.
struct VptqCodes {
  int64_t out_features = 0;
  int64_t in_features = 0;
  int length = 0;
  int index_bits = 0;
  bool has_residual = false;
  int residual_bits = 0;
  int num_groups = 1;
  int64_t outlier_size = 0;
  int outlier_length = 0;
  int outlier_bits = 0;
  bool byte_books = false;               // all books are byte books
  std::vector<int32_t> order;            // [in], or empty: each column at its own place
  std::vector<int32_t> indices;          // [num_rows, in - outlier_size]
  std::vector<int32_t> residuals;        // the same, or empty
  std::vector<int32_t> outlier_indices;  // [num_outlier_rows, outlier_size]
  std::vector<float> centroids;          // [num_groups, 2^index_bits, length], fp16 values
  std::vector<float> residual_centroids;
  std::vector<float> outlier_centroids;
  std::vector<float> scale, offset;  // [in] by column, fp16 values; empty without norm

  int64_t num_rows() const { return (out_features + length - 1) / length; }
  int64_t num_outlier_rows() const {
    return outlier_size == 0 ? 0 : (out_features + outlier_length - 1) / outlier_length;
  }
  int64_t group_size() const { return (in_features - outlier_size) / num_groups; }
  int64_t column(int64_t position) const { return order.empty() ? position : order[position]; }
};

// The codes' values, [out, in] by column: each operation rounded to fp32.
std::vector<float> Dequantize(const VptqCodes& codes);

}  // namespace thinwire
