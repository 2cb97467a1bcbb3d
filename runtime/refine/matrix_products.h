// Products of large matrices on all threads of a pool, in tiles that do not depend on their number:
// the same bits with any. fp32, row-major; `lda` floats from one row of `a` to the next and so on.
#pragma once

#include <cstdint>

#include "kernels/core/thread_pool.h"

namespace thinwire {

// c[m, n] = beta * c + a[m, k] b[n, k]^T
void ProductNT(int64_t m, int64_t n, int64_t k, const float* a, int64_t lda, const float* b,
               float beta, float* c, int64_t ldc, ThreadPool& pool);

// c[m, n] = beta * c + a[m, k] b[k, n]
void ProductNN(int64_t m, int64_t n, int64_t k, const float* a, int64_t lda, const float* b,
               float beta, float* c, int64_t ldc, ThreadPool& pool);

// c[m, n] = a[k, m]^T b[k, n]
void ProductTN(int64_t m, int64_t n, int64_t k, const float* a, int64_t lda, const float* b,
               float* c, ThreadPool& pool);

// sums[width]: of the columns of x[num_rows, width], rows `ldx` apart.
void ColumnSums(int64_t num_rows, int64_t width, const float* x, int64_t ldx, float* sums,
                ThreadPool& pool);

}  // namespace thinwire
