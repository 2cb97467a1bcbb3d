// NVIDIA's cuBLAS, opened when it is first needed, as cuBLASLt is (cublas_lt_cuda.h) and for its
// reasons: only quantisation on GPUs needs it.
#pragma once

#include <cublas_v2.h>

#include <memory>

#include "absl/status/statusor.h"

namespace thinwire {

// The functions that we call, under their names in cublas_v2.h. The library stays in the process.
class Cublas {
 public:
  // NotFound, with the dynamic linker's words, where the library or a function of it is missing.
  static absl::StatusOr<std::unique_ptr<Cublas>> Open();
  Cublas(const Cublas&) = delete;
  Cublas& operator=(const Cublas&) = delete;

  decltype(&cublasCreate) Create;
  decltype(&cublasDestroy) Destroy;
  decltype(&cublasSetStream) SetStream;
  decltype(&cublasGetStatusString) GetStatusString;
  decltype(&cublasSgemmStridedBatched_64) SgemmStridedBatched;
  decltype(&cublasDgemmStridedBatched_64) DgemmStridedBatched;
  decltype(&cublasDtrsm_64) Dtrsm;

 private:
  Cublas() = default;
};

}  // namespace thinwire
