#include "kernels/linear/blas_cuda.h"

#include <memory>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "kernels/core/cuda_status.h"
#include "kernels/linear/cublas_cuda.h"

namespace thinwire {
namespace {

// The library and its handle of a stream.
class BlasHandle : public StreamState {
 public:
  explicit BlasHandle(Device device) : device_(device) {}
  ~BlasHandle() override {
    if (handle != nullptr) blas->Destroy(handle);
  }

  // Before anything else, and for each call: makes the device this thread's.
  absl::Status Open(Stream& stream) {
    const cudaStream_t native = CudaStream(stream);
    if (handle != nullptr) return absl::OkStatus();
    if (blas == nullptr) {
      TW_ASSIGN_OR_RETURN(blas, Cublas::Open());
    }
    TW_RETURN_IF_ERROR(Check(blas->Create(&handle), "cublasCreate"));
    return Check(blas->SetStream(handle, native), "cublasSetStream");
  }

  absl::Status Check(cublasStatus_t status, absl::string_view call) const {
    if (status == CUBLAS_STATUS_SUCCESS) return absl::OkStatus();
    const std::string message =
        absl::StrCat(call, " on ", DeviceName(device_), ": ", blas->GetStatusString(status));
    if (status == CUBLAS_STATUS_ALLOC_FAILED) return absl::ResourceExhaustedError(message);
    return absl::InternalError(message);
  }

  std::unique_ptr<Cublas> blas;
  cublasHandle_t handle = nullptr;

 private:
  Device device_;
};

// The library's matrices are column after column: c^T = b^T a^T of ours.
template <typename T>
absl::Status Gemm(const GemmCudaArgs<T>& args, const BlasHandle& blas, auto call,
                  absl::string_view name) {
  const auto operation = [](bool transposed) { return transposed ? CUBLAS_OP_T : CUBLAS_OP_N; };
  return blas.Check(
      call(blas.handle, operation(args.transpose_b), operation(args.transpose_a), args.n, args.m,
           args.k, &args.alpha, args.b, args.ldb, args.b_step, args.a, args.lda, args.a_step,
           &args.beta, args.c, args.ldc, args.c_step, args.count),
      name);
}

}  // namespace

absl::Status SgemmCuda(const GemmCudaArgs<float>& args, Stream& stream) {
  BlasHandle& blas = stream.State<BlasHandle>();
  TW_RETURN_IF_ERROR(blas.Open(stream));
  return Gemm(args, blas, blas.blas->SgemmStridedBatched, "cublasSgemmStridedBatched");
}

absl::Status DgemmCuda(const GemmCudaArgs<double>& args, Stream& stream) {
  BlasHandle& blas = stream.State<BlasHandle>();
  TW_RETURN_IF_ERROR(blas.Open(stream));
  return Gemm(args, blas, blas.blas->DgemmStridedBatched, "cublasDgemmStridedBatched");
}

absl::Status DtrsmLowerCuda(int64_t m, int64_t n, const double* l, int64_t ldl, double* b,
                            int64_t ldb, Stream& stream) {
  BlasHandle& blas = stream.State<BlasHandle>();
  TW_RETURN_IF_ERROR(blas.Open(stream));
  const double one = 1.0;
  // As the library sees it: b^T l^-T, l^T its upper triangle.
  return blas.Check(blas.blas->Dtrsm(blas.handle, CUBLAS_SIDE_RIGHT, CUBLAS_FILL_MODE_UPPER,
                                     CUBLAS_OP_N, CUBLAS_DIAG_NON_UNIT, n, m, &one, l, ldl, b, ldb),
                    "cublasDtrsm");
}

absl::Status DtrsmRightCuda(int64_t m, int64_t n, const double* l, int64_t ldl, double* b,
                            int64_t ldb, Stream& stream) {
  BlasHandle& blas = stream.State<BlasHandle>();
  TW_RETURN_IF_ERROR(blas.Open(stream));
  const double one = 1.0;
  // As the library sees it: l^-1 b^T, l^T its upper triangle.
  return blas.Check(blas.blas->Dtrsm(blas.handle, CUBLAS_SIDE_LEFT, CUBLAS_FILL_MODE_UPPER,
                                     CUBLAS_OP_T, CUBLAS_DIAG_NON_UNIT, n, m, &one, l, ldl, b, ldb),
                    "cublasDtrsm");
}

}  // namespace thinwire
