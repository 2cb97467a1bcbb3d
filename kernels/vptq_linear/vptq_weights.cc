#include "kernels/vptq_linear/vptq_weights.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/convert/element.h"
#include "kernels/core/has_cuda.h"
#include "kernels/core/status_macros.h"
#include "kernels/vptq_linear/vptq_codes.h"
#include "kernels/vptq_linear/vptq_device.h"

namespace thinwire {
namespace {

absl::Status CheckBook(absl::string_view what, const ConstTensorView& book, int bits, int length) {
  if (bits >= 0 && bits <= kMaxVptqIndexBits && book.rank() == 2 && IsFloat(book.dtype()) &&
      book.dim(0) == int64_t{1} << bits && book.dim(1) == VptqStride(length) && book.contiguous()) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(absl::StrCat(
      "VPTQ weights: expected ", what, " of 2^", bits, " vectors, at most 2^", kMaxVptqIndexBits,
      ", ", VptqStride(length), " floats each, found ", book.DebugString()));
}

absl::Status CheckPart(const VptqPart& part, int64_t out_features) {
  if (part.length < 1 || part.skip < 0 || part.skip >= part.length) {
    return absl::InvalidArgumentError(
        absl::StrCat("VPTQ weights: expected vectors of at least 1, of which a part is skipped, "
                     "found length ",
                     part.length, ", skip ", part.skip));
  }
  if (part.length > kMaxVptqLength) {
    return absl::UnimplementedError(absl::StrCat("VPTQ weights: vectors of at most ",
                                                 kMaxVptqLength, " are supported, found ",
                                                 part.length));
  }
  const DType dtype = part.groups.empty() ? DType::kF32 : part.groups[0].centroids.view().dtype();
  for (const VptqGroup& group : part.groups) {
    TW_RETURN_IF_ERROR(
        CheckBook("centroids", group.centroids.view(), part.index_bits, part.length));
    if (!group.residual.empty()) {
      TW_RETURN_IF_ERROR(
          CheckBook("residual centroids", group.residual.view(), part.residual_bits, part.length));
    }
    const bool same = group.centroids.view().dtype() == dtype &&
                      (group.residual.empty() || group.residual.view().dtype() == dtype) &&
                      group.residual.empty() == part.groups[0].residual.empty();
    if (!same) {
      return absl::InvalidArgumentError(
          "VPTQ weights: expected groups of one part alike in dtype and residual, found others");
    }
    const int64_t bytes =
        VptqCodeBytes(part.num_vectors(out_features), group.num_columns, part.code_bits(group));
    const ConstTensorView codes = group.codes.view();
    if (codes.rank() != 1 || codes.dtype() != DType::kU8 || codes.dim(0) != bytes) {
      return absl::InvalidArgumentError(absl::StrCat("VPTQ weights: expected codes uint8[", bytes,
                                                     "], found ", codes.DebugString()));
    }
  }
  return absl::OkStatus();
}

}  // namespace

int64_t VptqPart::num_columns() const {
  int64_t columns = 0;
  for (const VptqGroup& group : groups) columns += group.num_columns;
  return columns;
}

int64_t VptqStride(int length) {
  int64_t stride = 4;
  while (stride < length) stride *= 2;
  return stride;
}

int64_t VptqRowBytes(int64_t num_columns, int code_bits) {
  return (num_columns * code_bits + 31) / 32 * 4;
}

int64_t VptqCodeBytes(int64_t num_vectors, int64_t num_columns, int code_bits) {
  return num_vectors * VptqRowBytes(num_columns, code_bits) + kVptqCodeSlack;
}

absl::StatusOr<VptqWeights> VptqWeights::Create(int64_t out_features, std::vector<VptqPart> parts,
                                                std::vector<int32_t> order,
                                                std::vector<float> scale,
                                                std::vector<float> offset) {
  VptqWeights weights;
  weights.out_features_ = out_features;
  for (const VptqPart& part : parts) {
    TW_RETURN_IF_ERROR(CheckPart(part, out_features));
    weights.in_features_ += part.num_columns();
  }
  const auto in = static_cast<size_t>(weights.in_features_);
  for (const size_t size : {order.size(), scale.size(), offset.size()}) {
    if (size == 0 || size == in) continue;
    return absl::InvalidArgumentError(absl::StrCat(
        "VPTQ weights: expected order, scale and offset of ", in, " columns, found ", size));
  }
  std::vector<bool> seen(in, false);
  for (const int32_t column : order) {
    if (column < 0 || column >= weights.in_features_ || seen[column]) {
      return absl::InvalidArgumentError(
          absl::StrCat("VPTQ weights: expected an order of ", in, " columns, found ", column,
                       column >= 0 && column < weights.in_features_ ? " twice" : ""));
    }
    seen[column] = true;
  }
  if (std::is_sorted(order.begin(), order.end())) order = {};
  weights.parts_ = std::move(parts);
  weights.order_ = std::move(order);
  weights.scale_ = std::move(scale);
  weights.offset_ = std::move(offset);
  return weights;
}

absl::StatusOr<VptqWeights> VptqWeights::CopyTo(Device device, int64_t usual_tokens) const {
  TW_RETURN_IF_ERROR(CheckDeviceUsable(device));
  TW_CHECK(device_.kind == DeviceKind::kCpu);
  if constexpr (kHasCuda) {
    if (device.kind == DeviceKind::kCuda) {
      VptqWeights copy;
      copy.out_features_ = out_features_;
      copy.in_features_ = in_features_;
      copy.device_ = device;
      TW_RETURN_IF_ERROR(
          CopyVptqToDevice(*this, device, usual_tokens, copy.parts_, copy.on_device_));
      return copy;
    }
  }
  return absl::UnimplementedError(
      absl::StrCat("VPTQ weights: copies on ", DeviceName(device), " are not supported"));
}

int64_t VptqWeights::size_bytes() const {
  int64_t bytes = static_cast<int64_t>(4 * (order_.size() + scale_.size() + offset_.size())) +
                  on_device_.order.size_bytes() + on_device_.scale.size_bytes() +
                  on_device_.offset.size_bytes() + on_device_.byte_centroids.size_bytes() +
                  on_device_.byte_residual.size_bytes();
  for (const VptqPart& part : parts_) {
    for (const VptqGroup& group : part.groups) {
      bytes +=
          group.centroids.size_bytes() + group.residual.size_bytes() + group.codes.size_bytes();
    }
  }
  return bytes;
}

void VptqWeights::DequantizeRow(int64_t row, absl::Span<float> out) const {
  TW_CHECK_EQ(static_cast<int64_t>(out.size()), in_features_);
  int64_t position = 0;
  for (const VptqPart& part : parts_) {
    const int64_t vector = (row + part.skip) / part.length;
    const int64_t element = (row + part.skip) % part.length;
    const auto at = [element](const Tensor& book, int64_t index) {
      const ConstTensorView view = book.view();
      return static_cast<float>(LoadElement(view, index * view.row_stride() + element));
    };
    for (const VptqGroup& group : part.groups) {
      const int bits = part.code_bits(group);
      const uint8_t* codes =
          group.codes.view().data<uint8_t>() + vector * VptqRowBytes(group.num_columns, bits);
      for (int64_t c = 0; c < group.num_columns; ++c, ++position) {
        const uint64_t code = VptqCodeAt(codes, c * bits);
        float value = at(group.centroids, VptqField(code, 0, part.index_bits));
        if (!group.residual.empty()) {
          value += at(group.residual, VptqField(code, part.index_bits, part.residual_bits));
        }
        if (!scale_.empty()) value *= scale_[position];
        if (!offset_.empty()) value += offset_[position];
        out[order_.empty() ? position : order_[position]] = value;
      }
    }
  }
}

}  // namespace thinwire
