#include "kernels/coded_linear/coded_weights.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/coded_linear/coded_layout.h"
#include "kernels/coded_linear/coded_linear_device.h"
#include "kernels/core/check.h"
#include "kernels/core/has_cuda.h"
#include "kernels/core/status_macros.h"

namespace thinwire {
namespace {

int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

absl::Status CheckShape(int64_t out_features, int64_t in_features, int bits,
                        absl::Span<const int32_t> group_offsets) {
  if (bits != 3 && bits != 4 && bits != 8) {
    return absl::InvalidArgumentError(
        absl::StrCat("coded weights: expected 3, 4 or 8 bits, found ", bits));
  }
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max() - 16;
  if (out_features < 0 || in_features < 1 || out_features > kMost || in_features > kMost) {
    return absl::InvalidArgumentError(absl::StrCat("coded weights: expected a matrix, found [",
                                                   out_features, ", ", in_features, "]"));
  }
  if (group_offsets.size() < 2 || group_offsets.front() != 0 ||
      group_offsets.back() != in_features) {
    return absl::InvalidArgumentError(absl::StrCat(
        "coded weights: expected offsets of groups from 0 to in_features, ", in_features,
        ", found ", group_offsets.size(), " offsets",
        group_offsets.empty()
            ? ""
            : absl::StrCat(" from ", group_offsets.front(), " to ", group_offsets.back())));
  }
  for (size_t g = 1; g < group_offsets.size(); ++g) {
    if (group_offsets[g - 1] >= group_offsets[g]) {
      return absl::InvalidArgumentError(
          absl::StrCat("coded weights: expected ascending offsets of groups, found ",
                       group_offsets[g - 1], " before ", group_offsets[g]));
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<CodedWeights> CodedWeights::Allocate(int64_t out_features, int64_t in_features,
                                                    int bits, std::vector<int32_t> group_offsets,
                                                    Device device) {
  TW_RETURN_IF_ERROR(CheckShape(out_features, in_features, bits, group_offsets));
  if (device.kind != DeviceKind::kCpu) {
    return absl::UnimplementedError(
        absl::StrCat("coded weights: rows are set on the cpu, not on ", DeviceName(device)));
  }
  CodedWeights weights;
  weights.out_features_ = out_features;
  weights.in_features_ = in_features;
  weights.bits_ = bits;
  weights.group_offsets_ = std::move(group_offsets);
  weights.block_offsets_.clear();
  int64_t num_blocks = 0;
  for (int64_t g = 0; g < weights.num_groups(); ++g) {
    weights.block_offsets_.push_back(static_cast<int32_t>(num_blocks));
    num_blocks +=
        CeilDiv(weights.group_offsets_[g + 1] - weights.group_offsets_[g], BlockColumns(bits));
  }
  weights.block_offsets_.push_back(static_cast<int32_t>(num_blocks));
  const int64_t num_panels = CeilDiv(out_features, kPanelRows);
  weights.panel_max_zero_.assign(static_cast<size_t>(num_panels), 0);
  const int64_t panel_bytes = num_blocks * BlockBytes(bits) + weights.num_groups() * kPanelRows * 3;
  TW_ASSIGN_OR_RETURN(weights.buffer_, Buffer::Allocate(num_panels * panel_bytes, device));
  if (num_panels > 0) {
    std::memset(weights.buffer_.data(), 0, static_cast<size_t>(num_panels * panel_bytes));
  }
  return weights;
}

absl::StatusOr<CodedWeights> CodedWeights::Stack(absl::Span<const CodedWeights* const> parts) {
  TW_CHECK(!parts.empty());
  const CodedWeights& first = *parts.front();
  int64_t rows = 0;
  for (const CodedWeights* part : parts) {
    TW_CHECK(part->device().kind == DeviceKind::kCpu);
    if (part->bits_ != first.bits_ || part->group_offsets_ != first.group_offsets_ ||
        rows % kPanelRows != 0) {
      return absl::InvalidArgumentError(absl::StrCat(
          "coded weights: expected parts of equal bits and groups and multiples of ", kPanelRows,
          " rows, found ", first.bits_, " bits and ", first.num_groups(), " groups, then ",
          part->bits_, " and ", part->num_groups(), " behind row ", rows));
    }
    rows += part->out_features_;
  }
  TW_ASSIGN_OR_RETURN(CodedWeights stacked, Allocate(rows, first.in_features_, first.bits_,
                                                     first.group_offsets_, Device::Cpu()));
  const auto copy = [](const void* from, const void* to, int64_t bytes) {
    if (bytes > 0) std::memcpy(const_cast<void*>(to), from, static_cast<size_t>(bytes));
  };
  int64_t panel = 0;
  for (const CodedWeights* part : parts) {
    const auto panels = static_cast<int64_t>(part->panel_max_zero_.size());
    const int64_t group_rows = panels * first.num_groups() * kPanelRows;
    copy(part->panel_codes(0), stacked.panel_codes(panel),
         panels * first.block_offsets_.back() * BlockBytes(first.bits_));
    copy(part->panel_scales(0), stacked.panel_scales(panel),
         group_rows * static_cast<int64_t>(sizeof(Half)));
    copy(part->panel_zeros(0), stacked.panel_zeros(panel), group_rows);
    std::copy(part->panel_max_zero_.begin(), part->panel_max_zero_.end(),
              stacked.panel_max_zero_.begin() + panel);
    panel += panels;
  }
  return stacked;
}

absl::StatusOr<CodedWeights> CodedWeights::CopyTo(Device device) const {
  TW_RETURN_IF_ERROR(CheckDeviceUsable(device));
  TW_CHECK(this->device().kind == DeviceKind::kCpu);
  CodedWeights copy;
  copy.out_features_ = out_features_;
  copy.in_features_ = in_features_;
  copy.bits_ = bits_;
  copy.group_offsets_ = group_offsets_;
  copy.block_offsets_ = block_offsets_;
  copy.panel_max_zero_ = panel_max_zero_;
  if constexpr (kHasCuda) {
    if (device.kind == DeviceKind::kCuda) {
      TW_ASSIGN_OR_RETURN(DeviceWeights made,
                          WeightsOnDevice(*this, buffer_.data(), buffer_.size_bytes(), device));
      copy.buffer_ = std::move(made.bytes);
      copy.steps_ = std::move(made.steps);
      return copy;
    }
  }
  TW_ASSIGN_OR_RETURN(copy.buffer_, Buffer::Allocate(buffer_.size_bytes(), device));
  if (buffer_.size_bytes() > 0) {
    std::memcpy(copy.buffer_.data(), buffer_.data(), static_cast<size_t>(buffer_.size_bytes()));
  }
  return copy;
}

const uint8_t* CodedWeights::panel_codes(int64_t panel) const {
  return bytes() + panel * block_offsets_.back() * BlockBytes(bits_);
}

const Half* CodedWeights::panel_scales(int64_t panel) const {
  const auto num_panels = static_cast<int64_t>(panel_max_zero_.size());
  return reinterpret_cast<const Half*>(panel_codes(num_panels)) + panel * num_groups() * kPanelRows;
}

const uint8_t* CodedWeights::panel_zeros(int64_t panel) const {
  const auto num_panels = static_cast<int64_t>(panel_max_zero_.size());
  return reinterpret_cast<const uint8_t*>(panel_scales(num_panels)) +
         panel * num_groups() * kPanelRows;
}

int CodedWeights::max_zero() const {
  return panel_max_zero_.empty()
             ? 0
             : *std::max_element(panel_max_zero_.begin(), panel_max_zero_.end());
}

absl::Status CodedWeights::SetRows(int64_t first, ConstTensorView codes, ConstTensorView scales,
                                   ConstTensorView zeros) {
  TW_CHECK(device().kind == DeviceKind::kCpu);
  const auto invalid = [](const auto&... what) {
    return absl::InvalidArgumentError(absl::StrCat("coded weights: ", what...));
  };
  const int64_t n = codes.rank() == 2 ? codes.dim(0) : 0;
  const auto fits = [&](const ConstTensorView& view, DType dtype, int64_t columns) {
    return view.rank() == 2 && view.dtype() == dtype && view.dim(0) == n &&
           view.dim(1) == columns && view.device() == Device::Cpu();
  };
  if (!fits(codes, DType::kU8, in_features_) || !fits(scales, DType::kF32, num_groups()) ||
      !fits(zeros, DType::kU8, num_groups())) {
    return invalid("expected codes uint8[n, ", in_features_, "], scales fp32[n, ", num_groups(),
                   "] and zeros uint8[n, ", num_groups(), "] on the cpu, found codes ",
                   codes.DebugString(), ", scales ", scales.DebugString(), " and zeros ",
                   zeros.DebugString());
  }
  if (first < 0 || first + n > out_features_) {
    return invalid("rows [", first, ", ", first + n, ") of ", out_features_);
  }
  for (int64_t i = 0; i < n; ++i) {
    const uint8_t* row_codes = codes.data<uint8_t>() + i * codes.row_stride();
    const float* row_scales = scales.data<float>() + i * scales.row_stride();
    const uint8_t* row_zeros = zeros.data<uint8_t>() + i * zeros.row_stride();
    const uint8_t* const end = row_codes + in_features_;
    const auto* too_large =
        std::find_if(row_codes, end, [&](uint8_t code) { return code >> bits_ != 0; });
    if (too_large != end) {
      return invalid("expected codes of ", bits_, " bits, found ", int{*too_large}, " in row ",
                     first + i, ", column ", too_large - row_codes);
    }
    for (int64_t g = 0; g < num_groups(); ++g) {
      if (!std::isfinite(ToFloat(ToHalf(row_scales[g])))) {
        return invalid("expected scales within fp16, found ", row_scales[g], " in row ", first + i,
                       ", group ", g);
      }
    }
    const int64_t panel = (first + i) / kPanelRows;
    const int64_t row = (first + i) % kPanelRows;
    auto* const panel_begin = const_cast<uint8_t*>(panel_codes(panel));
    auto* const to_scales = const_cast<Half*>(panel_scales(panel)) + row;
    auto* const to_zeros = const_cast<uint8_t*>(panel_zeros(panel)) + row;
    for (int64_t g = 0; g < num_groups(); ++g) {
      to_scales[g * kPanelRows] = ToHalf(row_scales[g]);
      to_zeros[g * kPanelRows] = row_zeros[g];
      panel_max_zero_[panel] = std::max(panel_max_zero_[panel], row_zeros[g]);
      uint8_t* block = panel_begin + block_offsets_[g] * BlockBytes(bits_);
      for (int64_t c = group_offsets_[g]; c < group_offsets_[g + 1];) {
        const int64_t stop = std::min<int64_t>(c + BlockColumns(bits_), group_offsets_[g + 1]);
        for (int64_t column = 0; c < stop; ++c, ++column) {
          SetCode(block, bits_, row, column, row_codes[c]);
        }
        block += BlockBytes(bits_);
      }
    }
  }
  return absl::OkStatus();
}

void CodedWeights::DequantizeRow(int64_t row, absl::Span<float> out) const {
  TW_CHECK(device().kind == DeviceKind::kCpu);
  TW_CHECK(row >= 0 && row < out_features_);
  TW_CHECK_EQ(static_cast<int64_t>(out.size()), in_features_);
  const int64_t panel = row / kPanelRows;
  const int64_t in_panel = row % kPanelRows;
  for (int64_t g = 0; g < num_groups(); ++g) {
    // 11 bits by 9: the product is exact.
    const float scale = ToFloat(panel_scales(panel)[g * kPanelRows + in_panel]);
    const int zero = panel_zeros(panel)[g * kPanelRows + in_panel];
    const uint8_t* const blocks = panel_codes(panel) + block_offsets_[g] * BlockBytes(bits_);
    for (int64_t c = group_offsets_[g]; c < group_offsets_[g + 1]; ++c) {
      const int64_t column = c - group_offsets_[g];
      const int code = GetCode(blocks + column / BlockColumns(bits_) * BlockBytes(bits_), bits_,
                               in_panel, column % BlockColumns(bits_));
      out[c] = scale * static_cast<float>(code - zero);
    }
  }
}

absl::Status CodedWeights::Multiply(absl::Span<const double> x, absl::Span<double> y) const {
  if (static_cast<int64_t>(x.size()) != in_features_ ||
      static_cast<int64_t>(y.size()) != out_features_) {
    return absl::InvalidArgumentError(absl::StrCat("coded weights: expected x [", in_features_,
                                                   "] and y [", out_features_, "], found [",
                                                   x.size(), "] and [", y.size(), "]"));
  }
  std::vector<float> row(static_cast<size_t>(in_features_));
  for (int64_t o = 0; o < out_features_; ++o) {
    DequantizeRow(o, absl::MakeSpan(row));
    double sum = 0.0;
    for (size_t i = 0; i < row.size(); ++i) sum += x[i] * static_cast<double>(row[i]);
    y[static_cast<size_t>(o)] = sum;
  }
  return absl::OkStatus();
}

}  // namespace thinwire
