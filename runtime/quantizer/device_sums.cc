#include "runtime/quantizer/device_sums.h"

#include "absl/strings/str_cat.h"
#include "kernels/core/check.h"
#include "kernels/core/copy.h"
#include "kernels/core/has_cuda.h"
#include "kernels/core/status_macros.h"

namespace thinwire {
namespace {

absl::Status NoCuda(const Stream& stream) {
  return absl::UnimplementedError(
      absl::StrCat("calibration on ", DeviceName(stream.device()), ": this build has no CUDA"));
}

bool OnGpu(const Stream& stream) { return stream.device() != Device::Cpu(); }

}  // namespace

absl::StatusOr<DeviceStats> DeviceStats::Create(int64_t width, int64_t sample_stride,
                                                Stream& stream) {
  DeviceStats stats(width, sample_stride, &stream);
  if (!OnGpu(stream)) return stats;
  if constexpr (kHasCuda) {
    TW_ASSIGN_OR_RETURN(stats.there_, GpuChannelStats::Create(width, stream));
    return stats;
  }
  return NoCuda(stream);
}

absl::Status DeviceStats::Add(ConstTensorView x, int64_t first) {
  if (!OnGpu(*stream_)) return here_.Add(x, first);
  TW_CHECK_EQ(x.dim(1), here_.width());
  const int64_t num_rows = x.dim(0) - first;
  if (num_rows <= 0) return absl::OkStatus();
  if (sample_stride_ > 0) {
    const int64_t next = (sample_stride_ - count_ % sample_stride_) % sample_stride_;
    const int64_t kept = (num_rows - next + sample_stride_ - 1) / sample_stride_;
    if (kept > 0) {
      const size_t size = samples_.size();
      samples_.resize(size + static_cast<size_t>(kept * x.dim(1)));
      const float* const from = x.data<float>() + (first + next) * x.row_stride();
      TW_RETURN_IF_ERROR(Copy(
          ConstTensorView(from, DType::kF32, {kept, sample_stride_ * x.row_stride()}, x.device())
              .Columns(0, x.dim(1)),
          TensorView(samples_.data() + size, DType::kF32, {kept, x.dim(1)}), *stream_));
      // Memory of the host that grows must not be written any more.
      TW_RETURN_IF_ERROR(stream_->Synchronize());
    }
  }
  count_ += num_rows;
  if constexpr (kHasCuda) {
    return there_->Add(x.data<float>() + first * x.row_stride(), x.row_stride(), num_rows,
                       *stream_);
  }
  return NoCuda(*stream_);
}

absl::StatusOr<ChannelStats> DeviceStats::Take() {
  if constexpr (kHasCuda) {
    if (there_.has_value()) {
      TW_ASSIGN_OR_RETURN(GpuChannelStats::Sums sums, there_->Download(*stream_));
      return ChannelStats(std::move(sums), std::move(samples_));
    }
  }
  return std::move(here_);
}

absl::StatusOr<DeviceMoments> DeviceMoments::Create(int64_t width, bool with_target,
                                                    Stream& stream) {
  DeviceMoments moments(width, with_target, &stream);
  if (!OnGpu(stream)) {
    moments.here_.emplace(width, with_target);
    return moments;
  }
  if constexpr (kHasCuda) {
    TW_ASSIGN_OR_RETURN(moments.there_, GpuMoments::Create(width, with_target, stream));
    return moments;
  }
  return NoCuda(stream);
}

absl::Status DeviceMoments::Add(ConstTensorView x, ConstTensorView y) {
  TW_CHECK_EQ(x.dim(1), width_);
  TW_CHECK_EQ(y.empty(), !with_target_);
  const float* const target = y.empty() ? nullptr : y.data<float>();
  const int64_t target_stride = y.empty() ? 0 : y.row_stride();
  if (here_.has_value()) {
    return here_->Add(x.data<float>(), x.row_stride(), target, target_stride, x.dim(0),
                      stream_->pool());
  }
  if constexpr (kHasCuda) {
    return there_->Add(x.data<float>(), x.row_stride(), target, target_stride, x.dim(0), *stream_);
  }
  return NoCuda(*stream_);
}

void DeviceMoments::Merge(const DeviceMoments& other) {
  if (status_.ok()) status_ = other.status_;
  if (!status_.ok()) return;
  if (here_.has_value()) {
    here_->Merge(*other.here_);
    return;
  }
  if constexpr (kHasCuda) status_ = there_->Merge(*other.there_, *stream_);
}

absl::StatusOr<SecondMoments> DeviceMoments::Take() {
  TW_RETURN_IF_ERROR(status_);
  if constexpr (kHasCuda) {
    if (there_.has_value()) {
      SecondMoments moments(width_, with_target_);
      TW_RETURN_IF_ERROR(there_->Download(moments.mutable_sums(), moments.mutable_minima(),
                                          moments.mutable_maxima(), *stream_));
      return moments;
    }
  }
  return *std::move(here_);
}

}  // namespace thinwire
