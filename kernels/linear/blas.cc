#include "kernels/linear/blas.h"

#include <cblas.h>

#include <cmath>
#include <limits>
#include <mutex>
#include <random>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/core/check.h"

// LAPACK's part of the library, which <cblas.h> does not declare. Column-major: its upper triangle
// is our lower one.
extern "C" {
void dpotrf_(const char* uplo, const blasint* n, double* a, const blasint* lda, blasint* info);
void dtrtri_(const char* uplo, const char* diag, const blasint* n, double* a, const blasint* lda,
             blasint* info);
}

namespace thinwire {
namespace {

// The library's thread count is process-wide, so is the flag that it has been set.
void UseOneThread() {
  static std::once_flag once;
  std::call_once(once, [] { openblas_set_num_threads(1); });
}

blasint Dim(int64_t value) {
  TW_CHECK(value >= 0 && value <= std::numeric_limits<blasint>::max());
  return static_cast<blasint>(value);
}

void Sgemm(CBLAS_TRANSPOSE transpose_a, CBLAS_TRANSPOSE transpose_b, int64_t m, int64_t n,
           int64_t k, const float* a, int64_t lda, const float* b, int64_t ldb, float beta,
           float* c, int64_t ldc) {
  if (m == 0 || n == 0) return;
  UseOneThread();
  cblas_sgemm(CblasRowMajor, transpose_a, transpose_b, Dim(m), Dim(n), Dim(k), 1.0f, a, Dim(lda), b,
              Dim(ldb), beta, c, Dim(ldc));
}

void Dgemm(CBLAS_TRANSPOSE transpose_b, int64_t m, int64_t n, int64_t k, const double* a,
           int64_t lda, const double* b, int64_t ldb, double beta, double* c, int64_t ldc) {
  if (m == 0 || n == 0) return;
  UseOneThread();
  cblas_dgemm(CblasRowMajor, CblasNoTrans, transpose_b, Dim(m), Dim(n), Dim(k), 1.0, a, Dim(lda), b,
              Dim(ldb), beta, c, Dim(ldc));
}

struct Shape {
  int64_t m, n, k;
  bool transpose_b;
};

absl::Status CheckShape(const Shape& shape) {
  std::mt19937 random(12345);
  std::uniform_real_distribution<float> uniform(-1.0f, 1.0f);
  std::vector<float> a(static_cast<size_t>(shape.m * shape.k));
  std::vector<float> b_columns(static_cast<size_t>(shape.n * shape.k));  // [n, k]
  std::vector<float> c(static_cast<size_t>(shape.m * shape.n), 1e30f);
  for (float& value : a) value = uniform(random);
  for (float& value : b_columns) value = uniform(random);
  if (shape.transpose_b) {
    SgemmNT(shape.m, shape.n, shape.k, a.data(), shape.k, b_columns.data(), shape.k, 0.0f, c.data(),
            shape.n);
  } else {
    std::vector<float> b(b_columns.size());
    for (int64_t j = 0; j < shape.n; ++j) {
      for (int64_t i = 0; i < shape.k; ++i) b[i * shape.n + j] = b_columns[j * shape.k + i];
    }
    SgemmNN(shape.m, shape.n, shape.k, a.data(), shape.k, b.data(), shape.n, 0.0f, c.data(),
            shape.n);
  }
  // In any order of summation, |error| <= gamma_k sum |a b|, gamma_k = k u / (1 - k u), u = 2^-24.
  const double ku = static_cast<double>(shape.k) * 0x1p-24;
  const double gamma = ku / (1.0 - ku);
  for (int64_t i = 0; i < shape.m; ++i) {
    for (int64_t j = 0; j < shape.n; ++j) {
      double sum = 0.0;
      double sum_abs = 0.0;
      for (int64_t l = 0; l < shape.k; ++l) {
        const double product = static_cast<double>(a[i * shape.k + l]) *
                               static_cast<double>(b_columns[j * shape.k + l]);
        sum += product;
        sum_abs += std::abs(product);
      }
      const double found = static_cast<double>(c[i * shape.n + j]);
      if (!(std::abs(found - sum) <= gamma * sum_abs)) {
        return absl::InternalError(absl::StrCat(
            BlasDescription(), ": wrong product: sgemm of [", shape.m, ", ", shape.k, "] by [",
            shape.k, ", ", shape.n, "]", shape.transpose_b ? " (transposed)" : "", ": element [", i,
            ", ", j, "] is ", found, ", expected ", sum, " within ", gamma * sum_abs));
      }
    }
  }
  return absl::OkStatus();
}

}  // namespace

void SgemmNT(int64_t m, int64_t n, int64_t k, const float* a, int64_t lda, const float* b,
             int64_t ldb, float beta, float* c, int64_t ldc) {
  Sgemm(CblasNoTrans, CblasTrans, m, n, k, a, lda, b, ldb, beta, c, ldc);
}

void SgemmNN(int64_t m, int64_t n, int64_t k, const float* a, int64_t lda, const float* b,
             int64_t ldb, float beta, float* c, int64_t ldc) {
  Sgemm(CblasNoTrans, CblasNoTrans, m, n, k, a, lda, b, ldb, beta, c, ldc);
}

void SgemmTN(int64_t m, int64_t n, int64_t k, const float* a, int64_t lda, const float* b,
             int64_t ldb, float beta, float* c, int64_t ldc) {
  Sgemm(CblasTrans, CblasNoTrans, m, n, k, a, lda, b, ldb, beta, c, ldc);
}

void DgemmNT(int64_t m, int64_t n, int64_t k, const double* a, int64_t lda, const double* b,
             int64_t ldb, double beta, double* c, int64_t ldc) {
  Dgemm(CblasTrans, m, n, k, a, lda, b, ldb, beta, c, ldc);
}

void DgemmNN(int64_t m, int64_t n, int64_t k, const double* a, int64_t lda, const double* b,
             int64_t ldb, double beta, double* c, int64_t ldc) {
  Dgemm(CblasNoTrans, m, n, k, a, lda, b, ldb, beta, c, ldc);
}

int64_t CholeskyFactor(int64_t n, double* a) {
  if (n == 0) return -1;
  UseOneThread();
  const blasint dim = Dim(n);
  blasint info = 0;
  dpotrf_("U", &dim, a, &dim, &info);
  TW_CHECK(info >= 0);
  return int64_t{info} - 1;
}

void InvertLowerTriangle(int64_t n, double* a) {
  if (n == 0) return;
  UseOneThread();
  const blasint dim = Dim(n);
  blasint info = 0;
  dtrtri_("U", "N", &dim, a, &dim, &info);
  TW_CHECK_EQ(info, 0);
}

std::string BlasDescription() {
  return absl::StrCat(openblas_get_config(), " (", openblas_get_corename(), ")");
}

absl::Status BlasSelfTest() {
  // Around the register tiles and cache blocks of its kernels, whole and with remainders.
  const Shape shapes[] = {
      {1, 1, 1, true},      {3, 5, 7, true},       {16, 64, 64, true},    {33, 47, 129, true},
      {64, 256, 320, true}, {509, 514, 513, true}, {512, 48, 512, true},  {17, 1031, 700, true},
      {64, 64, 64, false},  {61, 80, 257, false},  {64, 128, 512, false}, {130, 33, 65, false},
  };
  for (const Shape& shape : shapes) {
    if (absl::Status status = CheckShape(shape); !status.ok()) return status;
  }
  return absl::OkStatus();
}

}  // namespace thinwire
