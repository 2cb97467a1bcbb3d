// The BLAS library behind large matrix products (OpenBLAS), as thinwire uses it: one thread per
// call, calls from several threads at a time.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/status.h"

namespace thinwire {

// c[m, n] = beta * c + a[m, k] b[n, k]^T: row-major fp32, `lda` floats from one row of `a` to the
// next and so on. c must not alias a or b. With beta 0, c need not be initialised. Any m, n, k >=
// 0.
//
// Runs on the calling thread only: the first call in the process sets the library's thread count to
// 1, for everyone who shares the library.
void SgemmNT(int64_t m, int64_t n, int64_t k, const float* a, int64_t lda, const float* b,
             int64_t ldb, float beta, float* c, int64_t ldc);

// c[m, n] = beta * c + a[m, k] b[k, n]; the same otherwise.
void SgemmNN(int64_t m, int64_t n, int64_t k, const float* a, int64_t lda, const float* b,
             int64_t ldb, float beta, float* c, int64_t ldc);

// c[m, n] = beta * c + a[k, m]^T b[k, n]; the same otherwise.
void SgemmTN(int64_t m, int64_t n, int64_t k, const float* a, int64_t lda, const float* b,
             int64_t ldb, float beta, float* c, int64_t ldc);

// The same in fp64.
void DgemmNT(int64_t m, int64_t n, int64_t k, const double* a, int64_t lda, const double* b,
             int64_t ldb, double beta, double* c, int64_t ldc);
void DgemmNN(int64_t m, int64_t n, int64_t k, const double* a, int64_t lda, const double* b,
             int64_t ldb, double beta, double* c, int64_t ldc);

// a[n, n] (row-major, symmetric; only the lower triangle is read) becomes L in its lower triangle,
// a = L L^T; the strict upper triangle stays. Returns -1, or the row whose pivot is not positive:
// `a` is not positive definite then and partly overwritten. A NaN may pass unnoticed.
int64_t CholeskyFactor(int64_t n, double* a);

// a[n, n]'s lower triangle, row-major, becomes its inverse; the strict upper triangle stays. No
// diagonal element may be 0.
void InvertLowerTriangle(int64_t n, double* a);

// Library, version, build and the processor core it chose: "OpenBLAS 0.3.21 ... (SkylakeX)".
std::string BlasDescription();

// Compares products of several shapes with sums in double. Internal, naming the library and the
// shape, when one is further off than rounding allows: some builds compute wrong results on
// processors newer than they are. Takes under a second.
absl::Status BlasSelfTest();

}  // namespace thinwire
