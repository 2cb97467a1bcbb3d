#include "kernels/linear/linear_cuda.h"

#include <algorithm>
#include <memory>
#include <tuple>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/str_cat.h"
#include "kernels/convert/convert.h"
#include "kernels/core/cuda_status.h"
#include "kernels/linear/cublas_lt_cuda.h"

namespace thinwire {
namespace {

// As the library's makers advise for Hopper; smaller GPUs take less of it.
constexpr int64_t kWorkspaceBytes = int64_t{32} << 20;

absl::Status BlasStatus(const CublasLt& lt, cublasStatus_t status, absl::string_view call,
                        Device device) {
  if (status == CUBLAS_STATUS_SUCCESS) return absl::OkStatus();
  const std::string message =
      absl::StrCat(call, " on ", DeviceName(device), ": ", lt.GetStatusString(status));
  if (status == CUBLAS_STATUS_ALLOC_FAILED) return absl::ResourceExhaustedError(message);
  if (status == CUBLAS_STATUS_NOT_SUPPORTED) return absl::UnimplementedError(message);
  return absl::InternalError(message);
}

// In members of Blas.
#define RETURN_IF_BLAS_ERROR(expr)                         \
  do {                                                     \
    const cublasStatus_t tw_status_ = (expr);              \
    if (tw_status_ != CUBLAS_STATUS_SUCCESS) [[unlikely]]  \
      return BlasStatus(*lt_, tw_status_, #expr, device_); \
  } while (false)

cudaDataType_t CudaType(DType dtype) {
  return dtype == DType::kF32 ? CUDA_R_32F : dtype == DType::kF16 ? CUDA_R_16F : CUDA_R_16BF;
}

// The largest power of two, at most 256, that divides the start and the rows' distance of a view.
uint32_t Alignment(const ConstTensorView& view) {
  auto bits = reinterpret_cast<uintptr_t>(view.raw()) | 256;
  if (view.dim(0) > 1) {
    bits |= static_cast<uintptr_t>(DTypeBytes(view.dtype(), view.row_stride()));
  }
  return static_cast<uint32_t>(bits & -bits);
}

// Descriptors of one product, owned.
class Product {
 public:
  explicit Product(const CublasLt& library) : lt(library) {}
  Product(const Product&) = delete;
  Product& operator=(const Product&) = delete;
  ~Product() {
    if (operation != nullptr) lt.MatmulDescDestroy(operation);
    for (cublasLtMatrixLayout_t layout : {weight, x, y}) {
      if (layout != nullptr) lt.MatrixLayoutDestroy(layout);
    }
    if (preference != nullptr) lt.MatmulPreferenceDestroy(preference);
  }

  const CublasLt& lt;
  cublasLtMatmulDesc_t operation = nullptr;
  cublasLtMatrixLayout_t weight = nullptr, x = nullptr, y = nullptr;
  cublasLtMatmulPreference_t preference = nullptr;
};

// The handle and the plans of a stream.
class Blas : public StreamState {
 public:
  explicit Blas(Device device) : device_(device) {}
  ~Blas() override {
    if (handle_ != nullptr) lt_->Destroy(handle_);
  }

  // y = x weight^T, without bias, summed in fp32. weight and x of one dtype; y of that or fp32.
  // Unimplemented where the library has no way for these shapes and alignments.
  absl::Status Multiply(const ConstTensorView& x, const ConstTensorView& weight,
                        const TensorView& y, std::byte* workspace, Stream& stream) {
    if (lt_ == nullptr) {
      TW_ASSIGN_OR_RETURN(lt_, CublasLt::Open());
    }
    if (handle_ == nullptr) RETURN_IF_BLAS_ERROR(lt_->Create(&handle_));
    Product product(*lt_);
    TW_RETURN_IF_ERROR(Describe(x, weight, y, product));
    const Shape shape(x.dim(0), weight.dim(0), x.dim(1), x.row_stride(), y.row_stride(), x.dtype(),
                      y.dtype(), Alignment(x), Alignment(weight), Alignment(y));
    auto plan = plans_.find(shape);
    if (plan == plans_.end()) {
      TW_ASSIGN_OR_RETURN(const cublasLtMatmulAlgo_t algorithm, Choose(x, weight, y, product));
      plan = plans_.emplace(shape, algorithm).first;
    }
    const float one = 1.0f;
    const float zero = 0.0f;
    return BlasStatus(
        *lt_,
        lt_->Matmul(handle_, product.operation, &one, weight.raw(), product.weight, x.raw(),
                    product.x, &zero, y.raw(), product.y, y.mutable_raw(), product.y, &plan->second,
                    workspace, static_cast<size_t>(kWorkspaceBytes), CudaStream(stream)),
        "cublasLtMatmul", device_);
  }

 private:
  // num_tokens, out_features, in_features, distances of rows, dtypes, alignments.
  using Shape = std::tuple<int64_t, int64_t, int64_t, int64_t, int64_t, DType, DType, uint32_t,
                           uint32_t, uint32_t>;

  // The library's matrices are column after column: y^T = weight x^T of ours, with the transpose of
  // weight^T as it sees it.
  absl::Status Describe(const ConstTensorView& x, const ConstTensorView& weight,
                        const TensorView& y, Product& product) {
    // Fp32 is multiplied as such: not as TF32.
    RETURN_IF_BLAS_ERROR(lt_->MatmulDescCreate(&product.operation, CUBLAS_COMPUTE_32F, CUDA_R_32F));
    const cublasOperation_t transposed = CUBLAS_OP_T;
    RETURN_IF_BLAS_ERROR(lt_->MatmulDescSetAttribute(product.operation, CUBLASLT_MATMUL_DESC_TRANSA,
                                                     &transposed, sizeof(transposed)));
    const auto create = [&](cublasLtMatrixLayout_t* layout, const ConstTensorView& view) {
      const int64_t columns = view.dim(1);
      const int64_t stride = view.dim(0) > 1 ? view.row_stride() : columns;
      return lt_->MatrixLayoutCreate(layout, CudaType(view.dtype()), static_cast<uint64_t>(columns),
                                     static_cast<uint64_t>(view.dim(0)), stride);
    };
    RETURN_IF_BLAS_ERROR(create(&product.weight, weight));
    RETURN_IF_BLAS_ERROR(create(&product.x, x));
    RETURN_IF_BLAS_ERROR(create(&product.y, y));
    return absl::OkStatus();
  }

  absl::StatusOr<cublasLtMatmulAlgo_t> Choose(const ConstTensorView& x,
                                              const ConstTensorView& weight, const TensorView& y,
                                              Product& product) {
    RETURN_IF_BLAS_ERROR(lt_->MatmulPreferenceCreate(&product.preference));
    const auto prefer = [&](cublasLtMatmulPreferenceAttributes_t attribute, auto value) {
      return lt_->MatmulPreferenceSetAttribute(product.preference, attribute, &value,
                                               sizeof(value));
    };
    RETURN_IF_BLAS_ERROR(
        prefer(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, static_cast<uint64_t>(kWorkspaceBytes)));
    // Parts of a sum stay fp32 until they are added.
    RETURN_IF_BLAS_ERROR(prefer(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
                                static_cast<uint32_t>(CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE)));
    RETURN_IF_BLAS_ERROR(prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, Alignment(weight)));
    RETURN_IF_BLAS_ERROR(prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, Alignment(x)));
    RETURN_IF_BLAS_ERROR(prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, Alignment(y)));
    RETURN_IF_BLAS_ERROR(prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, Alignment(y)));
    cublasLtMatmulHeuristicResult_t best = {};
    int found = 0;
    RETURN_IF_BLAS_ERROR(lt_->MatmulAlgoGetHeuristic(handle_, product.operation, product.weight,
                                                     product.x, product.y, product.y,
                                                     product.preference, 1, &best, &found));
    if (found == 0) {
      return absl::UnimplementedError(absl::StrCat("linear: cuBLASLt has no algorithm for x ",
                                                   x.DebugString(), " and weight ",
                                                   weight.DebugString()));
    }
    return best.algo;
  }

  Device device_;
  std::unique_ptr<CublasLt> lt_;  // opened by the first product
  cublasLtHandle_t handle_ = nullptr;
  absl::flat_hash_map<Shape, cublasLtMatmulAlgo_t> plans_;
};

int64_t Rounded(int64_t bytes) { return (bytes + 255) / 256 * 256; }

// Places in the stream's scratch, one after another.
struct Scratch {
  std::byte* next;

  TensorView Take(int64_t rows, int64_t columns, Device device) {
    const TensorView view(next, DType::kF32, {rows, columns}, device);
    next += Rounded(view.size_bytes());
    return view;
  }
};

// By fp32 copies of what is not fp32, and dense.
absl::Status MultiplyCopies(const LinearArgs& args, Stream& stream) {
  const Device device = stream.device();
  const int64_t tokens = args.x.dim(0), out = args.weight.dim(0), in = args.x.dim(1);
  TW_ASSIGN_OR_RETURN(std::byte* const workspace,
                      stream.Scratch(kWorkspaceBytes + Rounded(4 * tokens * in) +
                                     Rounded(4 * out * in) + Rounded(4 * tokens * out)));
  Scratch scratch{workspace + kWorkspaceBytes};
  const TensorView x = scratch.Take(tokens, in, device);
  const TensorView sums = scratch.Take(tokens, out, device);
  TW_RETURN_IF_ERROR(Convert(args.x, x, stream));
  ConstTensorView weight = args.weight;
  if (weight.dtype() != DType::kF32) {
    const TensorView copy = scratch.Take(out, in, device);
    TW_RETURN_IF_ERROR(Convert(weight, copy, stream));
    weight = copy;
  }
  TW_RETURN_IF_ERROR(stream.State<Blas>().Multiply(x, weight, sums, workspace, stream));
  return AddBiasCuda(sums, args.bias, args.y, stream);
}

}  // namespace

absl::Status LinearCuda(const LinearArgs& args, Stream& stream) {
  (void)CudaStream(stream);  // makes the device this thread's
  if (args.batch_invariant) return OrderedLinearCuda(args, stream);
  if (MixedFewTokensFit(args)) return MixedFewTokensCuda(args, stream);
  if (args.x.dtype() != args.weight.dtype()) return MultiplyCopies(args, stream);
  const int64_t tokens = args.x.dim(0), out = args.weight.dim(0);
  // A bias of fp32 is added before the one rounding, which the library cannot do.
  const bool separate_sums =
      !args.bias.empty() && (args.y.dtype() != DType::kF32 || !args.y.contiguous());
  TW_ASSIGN_OR_RETURN(
      std::byte* const workspace,
      stream.Scratch(kWorkspaceBytes + (separate_sums ? Rounded(4 * tokens * out) : 0)));
  const TensorView sums = separate_sums ? TensorView(workspace + kWorkspaceBytes, DType::kF32,
                                                     {tokens, out}, stream.device())
                                        : args.y;
  const absl::Status status =
      stream.State<Blas>().Multiply(args.x, args.weight, sums, workspace, stream);
  if (absl::IsUnimplemented(status)) return MultiplyCopies(args, stream);
  TW_RETURN_IF_ERROR(status);
  return args.bias.empty() ? absl::OkStatus() : AddBiasCuda(sums, args.bias, args.y, stream);
}

}  // namespace thinwire
