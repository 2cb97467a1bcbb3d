#include "runtime/refine/matrix_products.h"

#include <algorithm>
#include <vector>

#include "kernels/linear/blas.h"

namespace thinwire {
namespace {

// Rows of a product's tile. Each tile packs the other operand once: more rows, less of that.
constexpr int64_t kTileRows = 256;
// Of a weight's gradient, which has fewer rows than there are tokens.
constexpr int64_t kGradientRows = 128;
constexpr int64_t kSumColumns = 64;

template <typename Body>
void ForTiles(int64_t rows, int64_t tile, ThreadPool& pool, const Body& body) {
  pool.ParallelForDynamic((rows + tile - 1) / tile, [&](int64_t item) {
    const int64_t first = item * tile;
    body(first, std::min(tile, rows - first));
  });
}

}  // namespace

void ProductNT(int64_t m, int64_t n, int64_t k, const float* a, int64_t lda, const float* b,
               float beta, float* c, int64_t ldc, ThreadPool& pool) {
  ForTiles(m, kTileRows, pool, [&](int64_t first, int64_t count) {
    SgemmNT(count, n, k, a + first * lda, lda, b, k, beta, c + first * ldc, ldc);
  });
}

void ProductNN(int64_t m, int64_t n, int64_t k, const float* a, int64_t lda, const float* b,
               float beta, float* c, int64_t ldc, ThreadPool& pool) {
  ForTiles(m, kTileRows, pool, [&](int64_t first, int64_t count) {
    SgemmNN(count, n, k, a + first * lda, lda, b, n, beta, c + first * ldc, ldc);
  });
}

void ProductTN(int64_t m, int64_t n, int64_t k, const float* a, int64_t lda, const float* b,
               float* c, ThreadPool& pool) {
  ForTiles(m, kGradientRows, pool, [&](int64_t first, int64_t count) {
    SgemmTN(count, n, k, a + first, lda, b, n, 0.0f, c + first * n, n);
  });
}

void ColumnSums(int64_t num_rows, int64_t width, const float* x, int64_t ldx, float* sums,
                ThreadPool& pool) {
  ForTiles(width, kSumColumns, pool, [&](int64_t first, int64_t count) {
    double totals[kSumColumns] = {};
    for (int64_t row = 0; row < num_rows; ++row) {
      const float* const from = x + row * ldx + first;
      for (int64_t c = 0; c < count; ++c) totals[c] += from[c];
    }
    for (int64_t c = 0; c < count; ++c) sums[first + c] = static_cast<float>(totals[c]);
  });
}

}  // namespace thinwire
