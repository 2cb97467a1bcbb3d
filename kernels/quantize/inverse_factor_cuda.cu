#include <algorithm>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/core/cuda_status.h"
#include "kernels/linear/blas_cuda.h"
#include "kernels/quantize/device_array.h"
#include "kernels/quantize/inverse_factor.h"

namespace thinwire {
namespace {

// Columns of a panel, whose diagonal block one block of threads factorises.
constexpr int kPanel = 96;
constexpr int kThreads = 256;
constexpr int kFactorThreads = 512;

struct Failure {
  int64_t row = -1;  // none
  double pivot = 0.0;
};

// to = from, both ends exchanged: the last element first.
__global__ void Reverse(const double* from, int64_t size, double* to) {
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i < size) to[size - 1 - i] = from[i];
}

// Row-major [width, width]: the identity.
__global__ void Identity(int64_t width, double* to) {
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i < width * width) to[i] = i / width == i % width ? 1.0 : 0.0;
}

// `to` gets `from` with both ends exchanged and zeros below the diagonal.
__global__ void ReverseUpper(const double* from, int64_t width, double* to) {
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= width * width) return;
  to[i] = i / width <= i % width ? from[width * width - 1 - i] : 0.0;
}

// The lower triangle of a block at the diagonal, in place: a = l l^T. Puts down the first pivot
// that is no positive number, rows counted from `first`.
__global__ void FactorBlock(double* a, int64_t stride, int size, int64_t first, Failure* failure) {
  extern __shared__ double block[];
  for (int k = threadIdx.x; k < size * size; k += kFactorThreads) {
    block[k] = a[k / size * stride + k % size];
  }
  __syncthreads();
  for (int j = 0; j < size; ++j) {
    const double pivot = block[j * size + j];
    if (threadIdx.x == 0 && !(pivot > 0.0 && pivot < 1.7e308) && failure->row < 0) {
      failure->row = first + j;
      failure->pivot = pivot;
    }
    const double root = sqrt(pivot);
    __syncthreads();
    for (int i = j + threadIdx.x; i < size; i += kFactorThreads) {
      block[i * size + j] = i == j ? root : block[i * size + j] / root;
    }
    __syncthreads();
    const int left = size - j - 1;
    for (int k = threadIdx.x; k < left * left; k += kFactorThreads) {
      const int row = j + 1 + k / left, column = j + 1 + k % left;
      if (column <= row) {
        block[row * size + column] -= block[row * size + j] * block[column * size + j];
      }
    }
    __syncthreads();
  }
  for (int k = threadIdx.x; k < size * size; k += kFactorThreads) {
    if (k % size <= k / size) a[k / size * stride + k % size] = block[k];
  }
}

unsigned Blocks(int64_t n) { return static_cast<unsigned>((n + kThreads - 1) / kThreads); }

// The lower triangle of a[width, width], in place: a = l l^T.
absl::Status Factor(int64_t width, double* a, Failure* failure, Stream& stream) {
  constexpr int kBytes = kPanel * kPanel * static_cast<int>(sizeof(double));
  TW_RETURN_IF_CUDA_ERROR(
      cudaFuncSetAttribute(FactorBlock, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes),
      stream.device());
  for (int64_t begin = 0; begin < width; begin += kPanel) {
    const int64_t end = std::min(width, begin + kPanel);
    double* const diagonal = a + begin * width + begin;
    FactorBlock<<<1, kFactorThreads, kBytes, CudaStream(stream)>>>(
        diagonal, width, static_cast<int>(end - begin), begin, failure);
    TW_RETURN_IF_ERROR(CudaLaunchStatus("factor of a block", stream));
    if (end == width) break;
    double* const below = a + end * width + begin;
    TW_RETURN_IF_ERROR(
        DtrsmRightCuda(width - end, end - begin, diagonal, width, below, width, stream));
    TW_RETURN_IF_ERROR(DgemmCuda({.transpose_b = true,
                                  .m = width - end,
                                  .n = width - end,
                                  .k = end - begin,
                                  .alpha = -1.0,
                                  .a = below,
                                  .lda = width,
                                  .b = below,
                                  .ldb = width,
                                  .beta = 1.0,
                                  .c = a + end * width + end,
                                  .ldc = width},
                                 stream));
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status UpperFactorOfInverseOnGpu(int64_t width, absl::Span<double> matrix, Stream& stream) {
  TW_CHECK_EQ(static_cast<int64_t>(matrix.size()), width * width);
  if (width == 0) return absl::OkStatus();
  const std::string what = absl::StrCat("factor of a Hessian of ", width, " channels");
  const int64_t size = width * width;
  TW_ASSIGN_OR_RETURN(auto first, DeviceArray<double>::CopyOf(matrix, what, stream));
  TW_ASSIGN_OR_RETURN(auto second, DeviceArray<double>::Allocate(size, what, stream));
  std::vector<Failure> failure(1);
  TW_ASSIGN_OR_RETURN(const auto found, DeviceArray<Failure>::CopyOf(failure, what, stream));
  const cudaStream_t native = CudaStream(stream);
  // With the order of channels reversed, J H J = L L^T; so H = R R^T with R = J L J upper
  // triangular, and U = R^-1 = J L^-1 J. Reversing rows and columns reverses the memory.
  Reverse<<<Blocks(size), kThreads, 0, native>>>(first.data(), size, second.data());
  TW_RETURN_IF_ERROR(CudaLaunchStatus("reverse", stream));
  TW_RETURN_IF_ERROR(Factor(width, second.data(), found.data(), stream));
  TW_RETURN_IF_ERROR(found.Download(absl::MakeSpan(failure), stream));
  if (failure[0].row >= 0) {
    return absl::FailedPreconditionError(absl::StrCat(
        "Hessian of channel ", width - 1 - failure[0].row, ": pivot ", failure[0].pivot,
        ", expected a positive finite one: not positive definite, damp it more"));
  }
  Identity<<<Blocks(size), kThreads, 0, native>>>(width, first.data());
  TW_RETURN_IF_ERROR(CudaLaunchStatus("identity", stream));
  TW_RETURN_IF_ERROR(
      DtrsmLowerCuda(width, width, second.data(), width, first.data(), width, stream));
  ReverseUpper<<<Blocks(size), kThreads, 0, native>>>(first.data(), width, second.data());
  TW_RETURN_IF_ERROR(CudaLaunchStatus("reverse", stream));
  return second.Download(matrix, stream);
}

}  // namespace thinwire
