#include <vector>

#include "kernels/core/cuda_status.h"
#include "kernels/linear/blas_cuda.h"
#include "kernels/quantize/device_array.h"
#include "kernels/quantize/head_losses.h"

namespace thinwire {
namespace {

constexpr int kThreads = 256;
constexpr int kParts = 256;

__global__ void Difference(const float* a, const float* b, int64_t n, float* to) {
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i < n) to[i] = a[i] - b[i];
}

// parts[b]: of a part of the squares, in an order of its own.
__global__ void SquareParts(const float* x, int64_t n, double* parts) {
  __shared__ double sums[kThreads];
  double sum = 0.0;
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < n; i += kParts * kThreads) {
    sum += double{x[i]} * double{x[i]};
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

absl::Status AddHeadLossesOnGpu(const HeadLossArgs& args, Stream& stream) {
  const int64_t num_heads = args.width / args.head_dim;
  TW_CHECK_EQ(static_cast<int64_t>(args.losses.size()), num_heads);
  const int64_t size = args.num_rows * args.width, moved_size = args.num_rows * args.out_features;
  if (size == 0) return absl::OkStatus();
  TW_ASSIGN_OR_RETURN(const auto parts,
                      DeviceArray<double>::Allocate(num_heads * kParts, "losses of heads", stream));
  TW_ASSIGN_OR_RETURN(std::byte* const scratch,
                      stream.Scratch((size + moved_size) * static_cast<int64_t>(sizeof(float))));
  auto* const error = reinterpret_cast<float*>(scratch);
  float* const moved = error + size;
  const cudaStream_t native = CudaStream(stream);
  Difference<<<static_cast<unsigned>((size + kThreads - 1) / kThreads), kThreads, 0, native>>>(
      args.coded, args.exact, size, error);
  TW_RETURN_IF_ERROR(CudaLaunchStatus("errors of heads", stream));
  for (int64_t h = 0; h < num_heads; ++h) {
    TW_RETURN_IF_ERROR(SgemmCuda({.transpose_b = true,
                                  .m = args.num_rows,
                                  .n = args.out_features,
                                  .k = args.head_dim,
                                  .a = error + h * args.head_dim,
                                  .lda = args.width,
                                  .b = args.weight + h * args.head_dim,
                                  .ldb = args.width,
                                  .c = moved,
                                  .ldc = args.out_features},
                                 stream));
    SquareParts<<<kParts, kThreads, 0, native>>>(moved, moved_size, parts.data() + h * kParts);
    TW_RETURN_IF_ERROR(CudaLaunchStatus("losses of heads", stream));
  }
  std::vector<double> found(static_cast<size_t>(num_heads * kParts));
  TW_RETURN_IF_ERROR(parts.Download(absl::MakeSpan(found), stream));
  for (int64_t h = 0; h < num_heads; ++h) {
    double sum = 0.0;
    for (int64_t part = 0; part < kParts; ++part) sum += found[h * kParts + part];
    args.losses[h] += sum;
  }
  return absl::OkStatus();
}

}  // namespace thinwire
