#include "kernels/linear/cublas_cuda.h"

#include <dlfcn.h>

#include <string>
#include <type_traits>

#include "absl/strings/str_cat.h"

namespace thinwire {

// The library's name of a function whose name in the header stands for another one.
#define TW_TEXT(name) #name
#define TW_NAME_OF(function) TW_TEXT(function)

absl::StatusOr<std::unique_ptr<Cublas>> Cublas::Open() {
  const std::string name = absl::StrCat("libcublas.so.", CUBLAS_VER_MAJOR);
  void* const library = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) return absl::NotFoundError(absl::StrCat("cannot open ", dlerror()));
  std::unique_ptr<Cublas> opened(new Cublas);
  absl::Status status;
  const auto find = [&](auto& function, const char* symbol) {
    function =
        reinterpret_cast<std::remove_reference_t<decltype(function)>>(dlsym(library, symbol));
    if (function == nullptr && status.ok()) {
      status = absl::NotFoundError(absl::StrCat("cuBLAS: ", dlerror()));
    }
  };
  find(opened->Create, TW_NAME_OF(cublasCreate));
  find(opened->Destroy, TW_NAME_OF(cublasDestroy));
  find(opened->SetStream, TW_NAME_OF(cublasSetStream));
  find(opened->GetStatusString, "cublasGetStatusString");
  find(opened->SgemmStridedBatched, "cublasSgemmStridedBatched_64");
  find(opened->DgemmStridedBatched, "cublasDgemmStridedBatched_64");
  find(opened->Dtrsm, TW_NAME_OF(cublasDtrsm_64));
  if (!status.ok()) return status;
  return opened;
}

}  // namespace thinwire
