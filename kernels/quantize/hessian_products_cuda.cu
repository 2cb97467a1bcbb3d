#include <algorithm>
#include <vector>

#include "kernels/core/cuda_status.h"
#include "kernels/linear/blas_cuda.h"
#include "kernels/quantize/device_array.h"
#include "kernels/quantize/hessian_products.h"

namespace thinwire {
namespace {

constexpr int kThreads = 256;
constexpr int kParts = 512;
// Rows at a time: doubles of them and of their product.
constexpr int64_t kRows = 4096;

unsigned Blocks(int64_t n) { return static_cast<unsigned>((n + kThreads - 1) / kThreads); }

// to = a - b; b null: a.
__global__ void Difference(const float* a, const float* b, int64_t n, double* to) {
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i < n) to[i] = double{a[i]} - (b == nullptr ? 0.0 : double{b[i]});
}

__global__ void AddMoved(const float* w, const double* moved, double strength, int64_t n,
                         float* to) {
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i < n) to[i] = static_cast<float>(double{w[i]} + strength * moved[i]);
}

// parts[b]: of a part of a . b, in an order of its own.
__global__ void DotParts(const double* a, const double* b, int64_t n, double* parts) {
  __shared__ double sums[kThreads];
  double sum = 0.0;
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < n; i += kParts * kThreads) {
    sum += a[i] * b[i];
  }
  sums[threadIdx.x] = sum;
  __syncthreads();
  for (int half = kThreads / 2; half > 0; half /= 2) {
    if (threadIdx.x < half) sums[threadIdx.x] += sums[threadIdx.x + half];
    __syncthreads();
  }
  if (threadIdx.x == 0) parts[blockIdx.x] = sums[0];
}

}  // namespace

absl::Status MovedTargetOnGpu(int64_t out, int64_t in, absl::Span<const float> w,
                              absl::Span<const double> c, absl::Span<const double> u,
                              double strength, absl::Span<float> target, Stream& stream) {
  constexpr absl::string_view kWhat = "target of a matrix";
  TW_ASSIGN_OR_RETURN(const auto factor, DeviceArray<double>::CopyOf(u, kWhat, stream));
  TW_ASSIGN_OR_RETURN(const auto shift, DeviceArray<double>::CopyOf(c, kWhat, stream));
  const int64_t most = std::min(out, kRows) * in;
  TW_ASSIGN_OR_RETURN(const auto a, DeviceArray<double>::Allocate(most, kWhat, stream));
  TW_ASSIGN_OR_RETURN(const auto b, DeviceArray<double>::Allocate(most, kWhat, stream));
  for (int64_t first = 0; first < out; first += kRows) {
    const int64_t rows = std::min(kRows, out - first), size = rows * in;
    TW_ASSIGN_OR_RETURN(auto weights,
                        DeviceArray<float>::CopyOf(w.subspan(first * in, size), kWhat, stream));
    Difference<<<Blocks(size), kThreads, 0, CudaStream(stream)>>>(weights.data(), nullptr, size,
                                                                  a.data());
    TW_RETURN_IF_ERROR(CudaLaunchStatus("weights", stream));
    const auto multiply = [&](const double* x, const double* matrix, bool transposed, double* to) {
      return DgemmCuda({.transpose_b = transposed,
                        .m = rows,
                        .n = in,
                        .k = in,
                        .a = x,
                        .lda = in,
                        .b = matrix,
                        .ldb = in,
                        .c = to,
                        .ldc = in},
                       stream);
    };
    TW_RETURN_IF_ERROR(multiply(a.data(), shift.data(), false, b.data()));
    TW_RETURN_IF_ERROR(multiply(b.data(), factor.data(), true, a.data()));
    TW_RETURN_IF_ERROR(multiply(a.data(), factor.data(), false, b.data()));
    AddMoved<<<Blocks(size), kThreads, 0, CudaStream(stream)>>>(weights.data(), b.data(), strength,
                                                                size, weights.data());
    TW_RETURN_IF_ERROR(CudaLaunchStatus("target of a matrix", stream));
    TW_RETURN_IF_ERROR(weights.Download(target.subspan(first * in, size), stream));
  }
  return absl::OkStatus();
}

absl::StatusOr<double> RelativeErrorOnGpu(int64_t out, int64_t in, absl::Span<const float> w,
                                          absl::Span<const float> coded, absl::Span<const double> h,
                                          Stream& stream) {
  constexpr absl::string_view kWhat = "error of a matrix";
  TW_ASSIGN_OR_RETURN(const auto hessian, DeviceArray<double>::CopyOf(h, kWhat, stream));
  const int64_t most = std::min(out, kRows) * in;
  TW_ASSIGN_OR_RETURN(const auto x, DeviceArray<double>::Allocate(most, kWhat, stream));
  TW_ASSIGN_OR_RETURN(const auto product, DeviceArray<double>::Allocate(most, kWhat, stream));
  TW_ASSIGN_OR_RETURN(const auto parts, DeviceArray<double>::Allocate(kParts, kWhat, stream));
  std::vector<double> found(kParts);
  double sums[2] = {0.0, 0.0};
  for (int64_t first = 0; first < out; first += kRows) {
    const int64_t rows = std::min(kRows, out - first), size = rows * in;
    TW_ASSIGN_OR_RETURN(const auto weights,
                        DeviceArray<float>::CopyOf(w.subspan(first * in, size), kWhat, stream));
    TW_ASSIGN_OR_RETURN(const auto values,
                        DeviceArray<float>::CopyOf(coded.subspan(first * in, size), kWhat, stream));
    for (const bool whole : {false, true}) {
      Difference<<<Blocks(size), kThreads, 0, CudaStream(stream)>>>(
          weights.data(), whole ? nullptr : values.data(), size, x.data());
      TW_RETURN_IF_ERROR(CudaLaunchStatus("errors", stream));
      TW_RETURN_IF_ERROR(DgemmCuda({.m = rows,
                                    .n = in,
                                    .k = in,
                                    .a = x.data(),
                                    .lda = in,
                                    .b = hessian.data(),
                                    .ldb = in,
                                    .c = product.data(),
                                    .ldc = in},
                                   stream));
      DotParts<<<kParts, kThreads, 0, CudaStream(stream)>>>(x.data(), product.data(), size,
                                                            parts.data());
      TW_RETURN_IF_ERROR(CudaLaunchStatus("energy", stream));
      TW_RETURN_IF_ERROR(parts.Download(absl::MakeSpan(found), stream));
      for (const double part : found) sums[whole ? 1 : 0] += part;
    }
  }
  return sums[1] == 0.0 ? 0.0 : sums[0] / sums[1];
}

}  // namespace thinwire
