// The weights of a linear layer as 3-, 4- or 8-bit codes, in groups of consecutive columns:
//
//   w[o, i] = scale[o, g] * (code[o, i] - zero[o, g]),  group_offsets[g] <= i < group_offsets[g +
//   1]
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kernels/core/buffer.h"
#include "kernels/core/device.h"
#include "kernels/core/tensor_view.h"

namespace thinwire {

// Move-only. Rows are zeros until they are set. How they lie in memory is the business of this
// folder (coded_layout.h).
class CodedWeights {
 public:
  CodedWeights() = default;

  // group_offsets: [num_groups + 1] columns, ascending from 0 to in_features; groups of any sizes
  // >= 1, multiples of 16 are fast. bits: 3, 4 or 8. InvalidArgument names what does not fit;
  // Unimplemented on a GPU, where weights come by CopyTo; ResourceExhausted.
  static absl::StatusOr<CodedWeights> Allocate(int64_t out_features, int64_t in_features, int bits,
                                               std::vector<int32_t> group_offsets, Device device);

  CodedWeights(CodedWeights&& other) noexcept = default;
  CodedWeights& operator=(CodedWeights&& other) noexcept = default;

  // The rows of all parts, one part after the other, in host memory as they are. At least one part;
  // InvalidArgument where bits or groups differ or a part but the last has rows that fill no block
  // of 16; ResourceExhausted.
  static absl::StatusOr<CodedWeights> Stack(absl::Span<const CodedWeights* const> parts);

  // A copy for kernels on a GPU, ready when it returns: of it, only the sizes may be asked.
  // ResourceExhausted; errors as CheckDeviceUsable.
  absl::StatusOr<CodedWeights> CopyTo(Device device) const;

  // Sets rows [first, first + n). codes: uint8 [n, in_features], below 2^bits. scales: fp32
  // [n, num_groups], kept as fp16. zeros: uint8 [n, num_groups]. All in host memory, rows may be
  // strided. InvalidArgument when shapes or dtypes do not fit, a code is too large, or a scale is
  // not finite as fp16; rows before the wrong one are set then.
  //
  // Several threads may set different rows at a time if no block of 16 rows (16 k to 16 k + 15)
  // belongs to two of them.
  absl::Status SetRows(int64_t first, ConstTensorView codes, ConstTensorView scales,
                       ConstTensorView zeros);

  // w[row, :], exact in fp32. out: [in_features].
  void DequantizeRow(int64_t row, absl::Span<float> out) const;

  // y = W x in double, for folding zero points at load. x: [in_features], y: [out_features].
  absl::Status Multiply(absl::Span<const double> x, absl::Span<double> y) const;

  int64_t out_features() const { return out_features_; }
  int64_t in_features() const { return in_features_; }
  int bits() const { return bits_; }
  int64_t num_groups() const { return static_cast<int64_t>(group_offsets_.size()) - 1; }
  absl::Span<const int32_t> group_offsets() const { return group_offsets_; }
  Device device() const { return buffer_.device(); }

  // At most bits / 8 a weight and 3 a row and group, with rows padded to a multiple of 16 and
  // groups to one of 8 (3-bit: 16; 8-bit: 4) columns.
  int64_t size_bytes() const { return buffer_.size_bytes(); }

  // For the kernels of this folder; coded_layout.h says how the bytes lie.
  const uint8_t* panel_codes(int64_t panel) const;
  const Half* panel_scales(int64_t panel) const;
  const uint8_t* panel_zeros(int64_t panel) const;
  // [num_groups + 1]: the first block of each group.
  absl::Span<const int32_t> block_offsets() const { return block_offsets_; }
  // Of all rows.
  int max_zero() const;
  // On a GPU: how kernels go through the groups.
  const std::byte* device_steps() const { return steps_.data(); }

 private:
  uint8_t* bytes() const { return reinterpret_cast<uint8_t*>(buffer_.data()); }

  Buffer buffer_;
  Buffer steps_;
  int64_t out_features_ = 0;
  int64_t in_features_ = 0;
  int bits_ = 0;
  std::vector<int32_t> group_offsets_ = {0};
  std::vector<int32_t> block_offsets_ = {0};
  std::vector<uint8_t> panel_max_zero_;
};

}  // namespace thinwire
