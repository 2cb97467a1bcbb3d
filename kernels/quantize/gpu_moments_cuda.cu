#include <algorithm>
#include <array>
#include <limits>

#include "absl/strings/str_cat.h"
#include "kernels/core/cuda_status.h"
#include "kernels/linear/blas_cuda.h"
#include "kernels/quantize/gpu_moments.h"

namespace thinwire {
namespace {

// As on the CPU: few enough rows for the rounding of fp32 sums.
constexpr int64_t kBlockRows = 512;
// Rows of the matrix that are multiplied at a time: of what is symmetric, what lies below the
// diagonal of such a panel is for nothing.
constexpr int64_t kPanel = 2048;
constexpr int kThreads = 256;
// Channels of a block of threads, and threads that share a channel's rows.
constexpr int kChannels = 32;
constexpr int kParts = 16;

constexpr char kWhat[] = "moments";
constexpr uint64_t kNoneBad = std::numeric_limits<uint64_t>::max();

unsigned Blocks(int64_t n, int64_t of) { return static_cast<unsigned>((n + of - 1) / of); }

__global__ void Clear(int64_t width, int64_t size, double* sums, float* extrema, uint64_t* bad) {
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i < size) sums[i] = 0.0;
  if (i < 2 * width) extrema[i] = i < width ? INFINITY : -INFINITY;
  if (i == 0) *bad = kNoneBad;
}

struct CentreParams {
  const float* x;
  const float* y;  // null: the rows are x, else y - x
  int64_t x_stride, y_stride;
  int64_t rows, width;
  int64_t first_row;  // of all that were added
  float* values;      // [rows, width] less the shift
  double* shift;      // [width] mean, rounded to fp32
  double* sum;        // [width] of the values
  double* total;      // [width] grows by the sum of the rows
  float* extrema;     // [2, width], of x
  uint64_t* bad;
};

// Columns less their means. Each of kParts threads takes every so-manyth row of a column; what they
// have is added in their order.
__global__ void Centre(const CentreParams p) {
  __shared__ double sums[kParts][kChannels];
  __shared__ float least[kParts][kChannels], most[kParts][kChannels];
  const int64_t c = int64_t{blockIdx.x} * kChannels + threadIdx.x;
  const bool shifted = p.y != nullptr;
  const auto value = [&](int64_t t) {
    const float x = p.x[t * p.x_stride + c];
    return shifted ? p.y[t * p.y_stride + c] - x : x;
  };
  double sum = 0.0;
  float low = INFINITY, high = -INFINITY;
  if (c < p.width) {
    for (int64_t t = threadIdx.y; t < p.rows; t += kParts) {
      const float v = value(t);
      if (!isfinite(shifted ? p.y[t * p.y_stride + c] : v)) {
        const int64_t at = ((p.first_row + t) * p.width + c) * 2 + (shifted ? 1 : 0);
        atomicMin(reinterpret_cast<unsigned long long*>(p.bad),
                  static_cast<unsigned long long>(at));
      }
      sum += double{v};
      low = fminf(low, v);
      high = fmaxf(high, v);
    }
  }
  sums[threadIdx.y][threadIdx.x] = sum;
  least[threadIdx.y][threadIdx.x] = low;
  most[threadIdx.y][threadIdx.x] = high;
  __syncthreads();
  if (threadIdx.y == 0 && c < p.width) {
    for (int part = 1; part < kParts; ++part) {
      sum += sums[part][threadIdx.x];
      low = fminf(low, least[part][threadIdx.x]);
      high = fmaxf(high, most[part][threadIdx.x]);
    }
    const double shift = double{static_cast<float>(sum / static_cast<double>(p.rows))};
    p.total[c] += sum;
    p.shift[c] = shift;
    p.sum[c] = sum - static_cast<double>(p.rows) * shift;
    if (!shifted) {
      p.extrema[c] = fminf(p.extrema[c], low);
      p.extrema[p.width + c] = fmaxf(p.extrema[p.width + c], high);
    }
    sums[0][threadIdx.x] = shift;
  }
  __syncthreads();
  if (c >= p.width) return;
  const auto shift = static_cast<float>(sums[0][threadIdx.x]);
  for (int64_t t = threadIdx.y; t < p.rows; t += kParts) {
    p.values[t * p.width + c] = value(t) - shift;
  }
}

struct PanelParams {
  const float* products;  // [height, breadth] of values less their shifts
  int64_t first;          // row of the matrix that row 0 is
  int64_t first_column;   // likewise
  int64_t breadth, width;
  double rows;
  const double *a_shift, *a_sum, *b_shift, *b_sum;
  bool upper;
  double* to;  // [width, width]
};

// to[i, j] += sum_t a_ti b_tj of the rows before their shifts came off: sum (a + s)(b + r) =
// sum a b + s sum b + r (sum a + n s).
__global__ void AddPanel(const PanelParams p) {
  const int64_t column = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (column >= p.breadth) return;
  const int64_t i = p.first + blockIdx.y, j = p.first_column + column;
  if (p.upper && j < i) return;
  const double shift = p.a_shift[i];
  const double sum = p.a_sum[i] + p.rows * shift;
  p.to[i * p.width + j] += double{p.products[blockIdx.y * p.breadth + column]} +
                           (shift * p.b_sum[j] + p.b_shift[j] * sum);
}

__global__ void AddTo(const double* from, int64_t size, double* to) {
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i < size) to[i] += from[i];
}

// `offset`: of the other's rows among all.
__global__ void MergeExtrema(const float* from, const uint64_t* bad_from, int64_t width,
                             uint64_t offset, float* to, uint64_t* bad) {
  const int64_t c = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (c == 0 && *bad == kNoneBad && *bad_from != kNoneBad) *bad = *bad_from + offset;
  if (c >= width) return;
  to[c] = fminf(to[c], from[c]);
  to[width + c] = fmaxf(to[width + c], from[width + c]);
}

// A block of rows with a shift per channel taken off, and what puts it back.
struct Centred {
  float* values;
  double *shift, *sum;
};

absl::Status AddProducts(int64_t rows, int64_t width, const Centred& a, const Centred& b,
                         bool upper, float* products, double* to, Stream& stream) {
  for (int64_t first = 0; first < width; first += kPanel) {
    const int64_t height = std::min(kPanel, width - first);
    const int64_t first_column = upper ? first : 0, breadth = width - first_column;
    TW_RETURN_IF_ERROR(SgemmCuda({.transpose_a = true,
                                  .m = height,
                                  .n = breadth,
                                  .k = rows,
                                  .a = a.values + first,
                                  .lda = width,
                                  .b = b.values + first_column,
                                  .ldb = width,
                                  .c = products,
                                  .ldc = breadth},
                                 stream));
    AddPanel<<<dim3(Blocks(breadth, kThreads), static_cast<unsigned>(height)), kThreads, 0,
               CudaStream(stream)>>>({.products = products,
                                      .first = first,
                                      .first_column = first_column,
                                      .breadth = breadth,
                                      .width = width,
                                      .rows = static_cast<double>(rows),
                                      .a_shift = a.shift,
                                      .a_sum = a.sum,
                                      .b_shift = b.shift,
                                      .b_sum = b.sum,
                                      .upper = upper,
                                      .to = to});
    TW_RETURN_IF_ERROR(CudaLaunchStatus("products of moments", stream));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<GpuMoments> GpuMoments::Create(int64_t width, bool with_target, Stream& stream) {
  TW_CHECK_GT(width, 0);
  GpuMoments moments;
  moments.width_ = width;
  moments.with_target_ = with_target;
  const int64_t size = 1 + (with_target ? 2 : 1) * (width + width * width);
  TW_ASSIGN_OR_RETURN(moments.sums_, DeviceArray<double>::Allocate(size, kWhat, stream));
  TW_ASSIGN_OR_RETURN(moments.extrema_, DeviceArray<float>::Allocate(2 * width, kWhat, stream));
  TW_ASSIGN_OR_RETURN(moments.bad_, DeviceArray<uint64_t>::Allocate(1, kWhat, stream));
  Clear<<<Blocks(size, kThreads), kThreads, 0, CudaStream(stream)>>>(
      width, size, moments.sums_.data(), moments.extrema_.data(), moments.bad_.data());
  TW_RETURN_IF_ERROR(CudaLaunchStatus("no moments", stream));
  return moments;
}

absl::Status GpuMoments::Add(const float* x, int64_t x_stride, const float* y, int64_t y_stride,
                             int64_t num_rows, Stream& stream) {
  TW_CHECK(num_rows == 0 || (y != nullptr) == with_target_);
  if (num_rows == 0) return absl::OkStatus();
  const int64_t values = std::min(num_rows, kBlockRows) * width_;
  const int64_t products = std::min(kPanel, width_) * width_;
  const int64_t doubles = 4 * width_;
  TW_ASSIGN_OR_RETURN(
      std::byte* const scratch,
      stream.Scratch(doubles * static_cast<int64_t>(sizeof(double)) +
                     (2 * values + products) * static_cast<int64_t>(sizeof(float))));
  auto* const numbers = reinterpret_cast<double*>(scratch);
  auto* const floats = reinterpret_cast<float*>(numbers + doubles);
  const Centred inputs = {floats, numbers, numbers + width_};
  const Centred shifts = {floats + values, numbers + 2 * width_, numbers + 3 * width_};
  double* const product = sums_.data() + 1 + width_;
  double* const shift_sums = product + width_ * width_;
  for (int64_t first = 0; first < num_rows; first += kBlockRows) {
    const int64_t rows = std::min(kBlockRows, num_rows - first);
    const auto centre = [&](const Centred& to, bool shifted, double* total) {
      Centre<<<Blocks(width_, kChannels), dim3(kChannels, kParts), 0, CudaStream(stream)>>>(
          {.x = x + first * x_stride,
           .y = shifted ? y + first * y_stride : nullptr,
           .x_stride = x_stride,
           .y_stride = y_stride,
           .rows = rows,
           .width = width_,
           .first_row = count_,
           .values = to.values,
           .shift = to.shift,
           .sum = to.sum,
           .total = total,
           .extrema = extrema_.data(),
           .bad = bad_.data()});
      return CudaLaunchStatus("means of moments", stream);
    };
    TW_RETURN_IF_ERROR(centre(inputs, false, sums_.data() + 1));
    TW_RETURN_IF_ERROR(
        AddProducts(rows, width_, inputs, inputs, true, floats + 2 * values, product, stream));
    if (with_target_) {
      TW_RETURN_IF_ERROR(centre(shifts, true, shift_sums));
      TW_RETURN_IF_ERROR(AddProducts(rows, width_, shifts, inputs, false, floats + 2 * values,
                                     shift_sums + width_, stream));
    }
    count_ += rows;
  }
  return absl::OkStatus();
}

absl::Status GpuMoments::Merge(const GpuMoments& other, Stream& stream) {
  TW_CHECK_EQ(width_, other.width_);
  TW_CHECK_EQ(with_target_, other.with_target_);
  AddTo<<<Blocks(sums_.size(), kThreads), kThreads, 0, CudaStream(stream)>>>(
      other.sums_.data(), sums_.size(), sums_.data());
  TW_RETURN_IF_ERROR(CudaLaunchStatus("sum of moments", stream));
  MergeExtrema<<<Blocks(width_, kThreads), kThreads, 0, CudaStream(stream)>>>(
      other.extrema_.data(), other.bad_.data(), width_, static_cast<uint64_t>(2 * count_ * width_),
      extrema_.data(), bad_.data());
  TW_RETURN_IF_ERROR(CudaLaunchStatus("extrema of moments", stream));
  count_ += other.count_;
  return absl::OkStatus();
}

absl::Status GpuMoments::Download(absl::Span<double> sums, absl::Span<float> minima,
                                  absl::Span<float> maxima, Stream& stream) const {
  std::array<uint64_t, 1> bad = {};
  TW_RETURN_IF_ERROR(bad_.Download(absl::MakeSpan(bad), stream));
  if (bad[0] != kNoneBad) {
    const auto at = static_cast<int64_t>(bad[0] / 2);
    return absl::InvalidArgumentError(absl::StrCat(bad[0] % 2 == 0 ? "input" : "target", " row ",
                                                   at / width_, ", channel ", at % width_,
                                                   ": NaN or infinity, expected a finite number"));
  }
  TW_RETURN_IF_ERROR(sums_.Download(sums, stream));
  sums[0] = static_cast<double>(count_);
  std::vector<float> extrema(static_cast<size_t>(2 * width_));
  TW_RETURN_IF_ERROR(extrema_.Download(absl::MakeSpan(extrema), stream));
  std::copy_n(extrema.begin(), width_, minima.begin());
  std::copy_n(extrema.begin() + width_, width_, maxima.begin());
  return absl::OkStatus();
}

}  // namespace thinwire
