// The weights of a linear layer as indices into codebooks of vectors (VPTQ, Liu et al., arXiv
// 2409.17066). A vector is v consecutive outputs of one column:
//
//   w[o, order[p]] = scale[p] * (C[i] + R[j])[(o + skip) mod v] + offset[p]
//
// with i and j the indices of vector (o + skip) / v at position p, C the codebook of p's group and
// R its residual codebook, where it has one. Positions are columns in the order in which they are
// stored: the groups of the first part, then those of the next.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kernels/core/device.h"
#include "kernels/core/tensor.h"

namespace thinwire {

inline constexpr int kMaxVptqLength = 16;
inline constexpr int kMaxVptqIndexBits = 16;

// Columns that share codebooks.
struct VptqGroup {
  int64_t num_columns = 0;
  // [2^index_bits, VptqStride(length)] fp32, fp16 or bf16; what is behind a vector is any number.
  Tensor centroids;
  Tensor residual;  // [2^residual_bits, VptqStride(length)] of the same dtype, or empty
  // uint8 [VptqCodeBytes]: a string of bits for each vector row, least significant first and padded
  // to 32-bit words, in which a column's index and above it its residual index follow those of the
  // column before.
  Tensor codes;
};

// Groups whose vectors are equally long and begin at the same outputs.
struct VptqPart {
  int length = 0;         // v, 1 to kMaxVptqLength
  int skip = 0;           // elements of the first vector row that are before output 0, below length
  int index_bits = 0;     // at most kMaxVptqIndexBits
  int residual_bits = 0;  // of groups with a residual
  std::vector<VptqGroup> groups;

  int64_t num_vectors(int64_t out_features) const {
    return (skip + out_features + length - 1) / length;
  }
  int code_bits(const VptqGroup& group) const {
    return index_bits + (group.residual.empty() ? 0 : residual_bits);
  }
  int64_t num_columns() const;
};

// Elements from one centroid to the next: vectors of 3 take 4, of 6 take 8.
int64_t VptqStride(int length);

// Bytes from one vector row's codes to the next, and of all rows: a few more, so that whole words
// may be read.
int64_t VptqRowBytes(int64_t num_columns, int code_bits);
int64_t VptqCodeBytes(int64_t num_vectors, int64_t num_columns, int code_bits);

// What weights on a GPU have beside the parts' tensors. Private to this folder.
struct VptqOnDevice {
  // Whether books are fp16 [.., 8], to be multiplied with book_factor, and codes in the order of
  // the kernels that keep books in shared memory (vptq_linear_cuda.h).
  bool in_tables = false;
  float book_factor = 1.0f;
  // Where both books are byte books (byte_book.h) and kernels have tables for them: codes are in
  // their order instead (vptq_bytes_cuda.h).
  bool in_bytes = false;
  Tensor byte_centroids, byte_residual;  // int8 [.., 8], the second may be empty
  std::array<std::array<float, 8>, 2> byte_scales = {};
  Tensor order, scale, offset;  // as below, or empty
};

// Move-only, in host memory or, by CopyTo, on a GPU.
class VptqWeights {
 public:
  VptqWeights() = default;

  // order: [in_features], a permutation, or empty for position p at column p. scale, offset:
  // [in_features] by position, each may be empty. in_features is what the groups have together.
  // InvalidArgument: shapes or dtypes that do not fit each other; Unimplemented: longer vectors.
  static absl::StatusOr<VptqWeights> Create(int64_t out_features, std::vector<VptqPart> parts,
                                            std::vector<int32_t> order, std::vector<float> scale,
                                            std::vector<float> offset);

  // A copy for kernels on a GPU, ready when it returns: of it, only the sizes may be asked. Takes
  // as much memory as here but for books of 2^12 vectors of at most 8 in one group, whose codes
  // take a bit more each. While it is made, a second copy of one group's codes is on the GPU.
  // usual_tokens: of a call, at most. Byte books get kernels of their own only where that is one,
  // since with more tokens those of other books are faster; results of the two differ by rounding.
  // ResourceExhausted; errors as CheckDeviceUsable; Unimplemented for the CPU.
  absl::StatusOr<VptqWeights> CopyTo(Device device, int64_t usual_tokens = 1) const;

  Device device() const { return device_; }
  int64_t out_features() const { return out_features_; }
  int64_t in_features() const { return in_features_; }
  absl::Span<const VptqPart> parts() const { return parts_; }
  absl::Span<const int32_t> order() const { return order_; }
  absl::Span<const float> scale() const { return scale_; }
  absl::Span<const float> offset() const { return offset_; }
  int64_t size_bytes() const;
  const VptqOnDevice& on_device() const { return on_device_; }

  // w[row, :] by column: sum, product and sum in fp32, each rounded. out: [in_features].
  void DequantizeRow(int64_t row, absl::Span<float> out) const;

 private:
  int64_t out_features_ = 0;
  int64_t in_features_ = 0;
  std::vector<VptqPart> parts_;
  std::vector<int32_t> order_;
  std::vector<float> scale_, offset_;
  Device device_;
  VptqOnDevice on_device_;
};

}  // namespace thinwire
