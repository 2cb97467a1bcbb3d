#include "kernels/linear/cublas_lt_cuda.h"

#include <dlfcn.h>

#include <string>
#include <type_traits>

#include "absl/strings/str_cat.h"
#include "kernels/core/status_macros.h"

namespace thinwire {

absl::StatusOr<std::unique_ptr<CublasLt>> CublasLt::Open() {
  const std::string name = absl::StrCat("libcublasLt.so.", CUBLAS_VER_MAJOR);
  void* const library = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) return absl::NotFoundError(absl::StrCat("cannot open ", dlerror()));
  std::unique_ptr<CublasLt> opened(new CublasLt(library));
  TW_RETURN_IF_ERROR(opened->Find());
  return opened;
}

absl::Status CublasLt::Find() {
  absl::Status status;
  const auto find = [&](auto& function, const char* name) {
    function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(dlsym(library_, name));
    if (function == nullptr && status.ok()) {
      status = absl::NotFoundError(absl::StrCat("cuBLASLt: ", dlerror()));
    }
  };
  find(Create, "cublasLtCreate");
  find(Destroy, "cublasLtDestroy");
  find(GetStatusString, "cublasLtGetStatusString");
  find(Matmul, "cublasLtMatmul");
  find(MatmulAlgoGetHeuristic, "cublasLtMatmulAlgoGetHeuristic");
  find(MatmulDescCreate, "cublasLtMatmulDescCreate");
  find(MatmulDescDestroy, "cublasLtMatmulDescDestroy");
  find(MatmulDescSetAttribute, "cublasLtMatmulDescSetAttribute");
  find(MatmulPreferenceCreate, "cublasLtMatmulPreferenceCreate");
  find(MatmulPreferenceDestroy, "cublasLtMatmulPreferenceDestroy");
  find(MatmulPreferenceSetAttribute, "cublasLtMatmulPreferenceSetAttribute");
  find(MatrixLayoutCreate, "cublasLtMatrixLayoutCreate");
  find(MatrixLayoutDestroy, "cublasLtMatrixLayoutDestroy");
  return status;
}

}  // namespace thinwire
