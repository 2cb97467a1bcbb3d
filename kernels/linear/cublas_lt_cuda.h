// NVIDIA's cuBLASLt, opened when it is first needed: linked in, its half a gigabyte would cost
// every process 200 MB of memory and the time of as many relocations, also where nothing runs on a
// GPU.
#pragma once

#include <cublasLt.h>

#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace thinwire {

// The functions that we call, under their names in cublasLt.h. The library stays in the process:
// CUDA's register what ends with it.
class CublasLt {
 public:
  // NotFound, with the dynamic linker's words, where the library or a function of it is missing.
  static absl::StatusOr<std::unique_ptr<CublasLt>> Open();
  CublasLt(const CublasLt&) = delete;
  CublasLt& operator=(const CublasLt&) = delete;

  decltype(&cublasLtCreate) Create;
  decltype(&cublasLtDestroy) Destroy;
  decltype(&cublasLtGetStatusString) GetStatusString;
  decltype(&cublasLtMatmul) Matmul;
  decltype(&cublasLtMatmulAlgoGetHeuristic) MatmulAlgoGetHeuristic;
  decltype(&cublasLtMatmulDescCreate) MatmulDescCreate;
  decltype(&cublasLtMatmulDescDestroy) MatmulDescDestroy;
  decltype(&cublasLtMatmulDescSetAttribute) MatmulDescSetAttribute;
  decltype(&cublasLtMatmulPreferenceCreate) MatmulPreferenceCreate;
  decltype(&cublasLtMatmulPreferenceDestroy) MatmulPreferenceDestroy;
  decltype(&cublasLtMatmulPreferenceSetAttribute) MatmulPreferenceSetAttribute;
  decltype(&cublasLtMatrixLayoutCreate) MatrixLayoutCreate;
  decltype(&cublasLtMatrixLayoutDestroy) MatrixLayoutDestroy;

 private:
  explicit CublasLt(void* library) : library_(library) {}

  absl::Status Find();

  void* library_;
};

}  // namespace thinwire
