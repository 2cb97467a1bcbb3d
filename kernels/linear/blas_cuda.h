// The BLAS library on GPUs (cuBLAS) as quantisation uses it: row-major products in fp32 and fp64.
// In builds with CUDA.
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "kernels/core/stream.h"

namespace thinwire {

// c[m, n] = beta * c + alpha * a[m, k] b[k, n], row-major, `lda` elements from one row of `a` to
// the next and so on; transpose_a: a is [k, m]; transpose_b: b is [n, k]. `count` such products,
// whose matrices are `a_step` (0: all the same) and so on apart.
template <typename T>
struct GemmCudaArgs {
  bool transpose_a = false;
  bool transpose_b = false;
  int64_t m = 0, n = 0, k = 0;
  T alpha = 1;
  const T* a = nullptr;
  int64_t lda = 0, a_step = 0;
  const T* b = nullptr;
  int64_t ldb = 0, b_step = 0;
  T beta = 0;
  T* c = nullptr;
  int64_t ldc = 0, c_step = 0;
  int64_t count = 1;
};

// Enqueued on a GPU's stream, all in its memory. fp32 is multiplied as such: not as TF32. The same
// bits on every call on one GPU. ResourceExhausted or Internal with the library's words.
absl::Status SgemmCuda(const GemmCudaArgs<float>& args, Stream& stream);
absl::Status DgemmCuda(const GemmCudaArgs<double>& args, Stream& stream);

// Replaces b[m, n] by l^-1 b, l[m, m]'s lower triangle, both row-major.
absl::Status DtrsmLowerCuda(int64_t m, int64_t n, const double* l, int64_t ldl, double* b,
                            int64_t ldb, Stream& stream);
// Replaces b[m, n] by b l^-T, l[n, n]'s lower triangle.
absl::Status DtrsmRightCuda(int64_t m, int64_t n, const double* l, int64_t ldl, double* b,
                            int64_t ldb, Stream& stream);

}  // namespace thinwire
