#include <algorithm>
#include <cmath>
#include <functional>
#include <optional>
#include <random>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "kernels/core/float16.h"
#include "kernels/linear/blas.h"
#include "kernels/quantize/gpu_book.h"
#include "kernels/quantize/gpu_vptq.h"
#include "kernels/quantize/inverse_factor.h"
#include "kernels/quantize/vector_clusters.h"
#include "kernels/testing/gpu_test.h"

namespace thinwire {
namespace {

double SquaredDistance(const float* a, const float* b, int length) {
  double sum = 0.0;
  for (int e = 0; e < length; ++e) sum += (double{a[e]} - b[e]) * (double{a[e]} - b[e]);
  return sum;
}

double Norm(const float* a, int length) {
  double sum = 0.0;
  for (int e = 0; e < length; ++e) sum += double{a[e]} * a[e];
  return std::sqrt(sum);
}

double Radius(const std::vector<float>& book, int length) {
  double radius = 0.0;
  for (size_t c = 0; c < book.size(); c += length) {
    radius = std::max(radius, Norm(book.data() + c, length));
  }
  return radius;
}

// What a vector found may be further away, squared, than the nearest: scores are off by rounding
// the book to fp16 (nothing if it is of such numbers), x to two of them (2^-21), and adding
// 2 length + 1 terms whose sums are truncated (2^-22 each); of two scores, and twice in a distance.
double Slack(double x, double radius, int length, bool halves) {
  const double adding = (2 * length + 3) * 0x1p-22 * (x * radius + radius * radius);
  return 4.0 * (adding + (halves ? 0.0 : 0x1.02p-11 * x * radius));
}

class QuantizeCudaTest : public GpuTest {
 protected:
  std::vector<float> Normals(int64_t size, double deviation = 1.0) {
    std::normal_distribution<float> normal(0.0f, static_cast<float>(deviation));
    std::vector<float> values(static_cast<size_t>(size));
    for (float& value : values) value = normal(random_);
    return values;
  }

  std::vector<float> Halves(int64_t size, double deviation = 1.0) {
    std::vector<float> values = Normals(size, deviation);
    for (float& value : values) value = ToFloat(ToHalf(value));
    return values;
  }

  std::vector<int32_t> NearestOf(const std::vector<float>& vectors, const std::vector<float>& from,
                                 int length) {
    auto book = GpuBook::Allocate(static_cast<int64_t>(vectors.size()) / length, length, stream());
    const auto of_book = DeviceArray<float>::CopyOf(vectors, "book", stream());
    const auto x = DeviceArray<float>::CopyOf(from, "x", stream());
    std::vector<int32_t> nearest(from.size() / length, -1);
    auto indices = DeviceArray<int32_t>::CopyOf(nearest, "indices", stream());
    EXPECT_TRUE(book.ok() && of_book.ok() && x.ok() && indices.ok());
    EXPECT_TRUE(book->Set(of_book->data(), stream()).ok());
    EXPECT_TRUE(NearestOnGpu(*book, x->data(), static_cast<int64_t>(nearest.size()),
                             indices->data(), stream())
                    .ok());
    const absl::Status status = indices->Download(absl::MakeSpan(nearest), stream());
    EXPECT_TRUE(status.ok()) << status;
    return nearest;
  }

  // [n, n] positive definite: of 2 n random rows.
  std::vector<double> Hessian(int64_t n) {
    const std::vector<float> rows = Normals(2 * n * n);
    const std::vector<double> x(rows.begin(), rows.end());
    std::vector<double> h(static_cast<size_t>(n * n), 0.0);
    for (int64_t t = 0; t < 2 * n; ++t) {
      for (int64_t i = 0; i < n; ++i) {
        for (int64_t j = 0; j < n; ++j) h[i * n + j] += x[t * n + i] * x[t * n + j] / (2.0 * n);
      }
    }
    for (int64_t i = 0; i < n; ++i) h[i * n + i] *= 1.01;
    return h;
  }

  std::mt19937 random_{std::random_device{}()};
};

TEST_F(QuantizeCudaTest, TheNearestVectorIsFoundUpToRounding) {
  for (const int length : {1, 2, 3, 4, 6, 8, 9, 13, 16}) {
    for (const int64_t count : {1, 5, 64, 100, 257, 4096}) {
      for (const bool halves : {true, false}) {
        SCOPED_TRACE(absl::StrCat(count, " of ", length, ", halves ", halves));
        const int64_t n = count % 2 == 0 ? 700 : 37;
        const double deviation = count == 100 ? 1e-3 : 1.0;
        const std::vector<float> book =
            halves ? Halves(count * length, deviation) : Normals(count * length, deviation);
        std::vector<float> from = Normals(n * length, deviation);
        // Some far outside.
        for (int e = 0; e < length; ++e) from[3 * length + e] *= 30.0f;
        const std::vector<int32_t> found = NearestOf(book, from, length);
        const double radius = Radius(book, length);
        for (int64_t i = 0; i < n; ++i) {
          ASSERT_TRUE(found[i] >= 0 && found[i] < count) << found[i];
          const float* const x = from.data() + i * length;
          double best = 1e300;
          for (int64_t c = 0; c < count; ++c) {
            best = std::min(best, SquaredDistance(x, book.data() + c * length, length));
          }
          // A deviation of 1e-3 makes halves that are not normal numbers of the format.
          ASSERT_LE(SquaredDistance(x, book.data() + found[i] * length, length),
                    best + Slack(Norm(x, length), radius, length, halves))
              << i;
        }
      }
    }
  }
}

TEST_F(QuantizeCudaTest, OfEqualVectorsTheFirstIsFound) {
  const std::vector<float> book(300 * 2, 1.5f);
  EXPECT_EQ(NearestOf(book, {1.0f, 2.0f, -3.0f, 0.5f, 0.0f, 0.0f}, 2),
            (std::vector<int32_t>{0, 0, 0}));
}

TEST_F(QuantizeCudaTest, CentroidsMoveToTheMeansOfWhatIsNearestToThem) {
  for (const int length : {1, 4, 6, 8, 16}) {
    for (const int64_t count : {1, 7, 256, 1000}) {
      SCOPED_TRACE(absl::StrCat(count, " of ", length));
      const int64_t n = 20011;
      const std::vector<float> vectors = Normals(n * length);
      std::vector<float> weights = Normals(n);
      for (float& weight : weights) weight = weight < -1.0f ? 0.0f : weight * weight;
      std::vector<float> start(vectors.begin(), vectors.begin() + count * length);
      const std::vector<int32_t> nearest = NearestOf(start, vectors, length);
      std::vector<double> sums(static_cast<size_t>(count * (length + 1)), 0.0);
      for (int64_t i = 0; i < n; ++i) {
        double* const sum = sums.data() + nearest[i] * (length + 1);
        for (int e = 0; e < length; ++e) sum[e] += double{weights[i]} * vectors[i * length + e];
        sum[length] += weights[i];
      }
      std::vector<float> moved[2] = {start, start};
      for (std::vector<float>& centroids : moved) {
        const absl::Status status = ClusterOnGpu({.vectors = vectors,
                                                  .weights = weights,
                                                  .length = length,
                                                  .count = count,
                                                  .iterations = 1,
                                                  .centroids = absl::MakeSpan(centroids)},
                                                 stream());
        ASSERT_TRUE(status.ok()) << status;
      }
      ASSERT_EQ(moved[0], moved[1]);
      for (int64_t c = 0; c < count; ++c) {
        const double* const sum = sums.data() + c * (length + 1);
        for (int e = 0; e < length; ++e) {
          const double expected = sum[length] > 0.0 ? sum[e] / sum[length] : start[c * length + e];
          // Sums in double: the rounding to float, and next to nothing besides.
          ASSERT_NEAR(moved[0][c * length + e], expected, 0x1.01p-24 * std::fabs(expected) + 1e-12);
        }
      }
    }
  }
}

TEST_F(QuantizeCudaTest, TheFactorIsThatOfTheInverse) {
  for (const int64_t n : {1, 5, 95, 96, 97, 130, 300}) {
    SCOPED_TRACE(absl::StrCat(n, " channels"));
    const std::vector<double> h = Hessian(n);
    std::vector<double> u = h;
    const absl::Status status = UpperFactorOfInverseOnGpu(n, absl::MakeSpan(u), stream());
    ASSERT_TRUE(status.ok()) << status;
    // U H U^T = I; the matrix' condition is below 1e4.
    std::vector<double> uh(u.size()), product(u.size());
    DgemmNN(n, n, n, u.data(), n, h.data(), n, 0.0, uh.data(), n);
    DgemmNT(n, n, n, uh.data(), n, u.data(), n, 0.0, product.data(), n);
    for (int64_t i = 0; i < n; ++i) {
      for (int64_t j = 0; j < n; ++j) {
        if (j < i) {
          ASSERT_EQ(u[i * n + j], 0.0);
        }
        ASSERT_NEAR(product[i * n + j], i == j ? 1.0 : 0.0, 1e-10) << i << ", " << j;
      }
    }
  }
  std::vector<double> indefinite = {1.0, 0.0, 0.0, 0.0, -2.0, 0.0, 0.0, 0.0, 1.0};
  const absl::Status status = UpperFactorOfInverseOnGpu(3, absl::MakeSpan(indefinite), stream());
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_NE(status.message().find("channel 1: pivot -2"), absl::string_view::npos) << status;
}

// A small matrix, what was chosen for it, and whether it was well chosen.
class GpuVptqTest : public QuantizeCudaTest {
 protected:
  void Make(const VptqMatrixShape& shape, int64_t main_count, int64_t residual_count) {
    shape_ = shape;
    targets_ = Normals(shape.size());
    main_ = Halves(main_count * shape.length);
    residual_ = Halves(residual_count * shape.length, 0.3);
    hessian_ = Hessian(shape.in);
    factor_ = hessian_;
    ASSERT_TRUE(UpperFactorOfInverseOnGpu(shape.in, absl::MakeSpan(factor_), stream()).ok());
    const std::vector<float> factor(factor_.begin(), factor_.end());
    const std::vector<float> hessian(hessian_.begin(), hessian_.end());
    auto made = GpuVptq::Create(shape, targets_, factor, hessian, stream());
    ASSERT_TRUE(made.ok()) << made.status();
    gpu_.emplace(*std::move(made));
    values_.assign(targets_.size(), NAN);
    moved_.assign(targets_.size(), NAN);
    indices_.assign(static_cast<size_t>(shape.num_vectors()), -1);
    residuals_.assign(residual_.empty() ? 0 : indices_.size(), -1);
  }

  VptqBooks books() const { return {.main = main_, .residual = residual_, .turns = true}; }
  VptqChoice choice() {
    return {absl::MakeSpan(values_), absl::MakeSpan(indices_), absl::MakeSpan(residuals_)};
  }

  // Checks that vector `n` is what its indices say, and about as near to x as choosing first from
  // the main book, then from the residual's, would come.
  void CheckVector(int64_t n, const double* x, double error_of_x) {
    const int length = shape_.length;
    std::vector<float> target(x, x + length);
    const double slack =
        Slack(Norm(target.data(), length) + 1.0, Radius(main_, length) + 1.0, length, true);
    // Of the books' vectors that may pass for the nearest to `from`, the one that leaves the most.
    const std::function<double(const float*, const std::vector<float>&, bool)> most_left =
        [&](const float* from, const std::vector<float>& book, bool last) {
          double best = 1e300, most = 0.0;
          for (size_t c = 0; c < book.size(); c += length) {
            best = std::min(best, SquaredDistance(from, book.data() + c, length));
          }
          // What the column itself is off by moves a distance by twice that times the distance.
          best += slack + 4.0 * error_of_x * (std::sqrt(best) + 1.0);
          for (size_t c = 0; c < book.size(); c += length) {
            const double distance = SquaredDistance(from, book.data() + c, length);
            if (distance > best) continue;
            std::vector<float> left(from, from + length);
            for (int e = 0; e < length; ++e) left[e] -= book[c + e];
            most = std::max(most, last ? best : most_left(left.data(), residual_, true));
          }
          return most;
        };
    const double greedy = most_left(target.data(), main_, residual_.empty());
    std::vector<float> expected(main_.begin() + indices_[n] * length,
                                main_.begin() + (indices_[n] + 1) * length);
    if (!residual_.empty()) {
      for (int e = 0; e < length; ++e) expected[e] += residual_[residuals_[n] * length + e];
    }
    const std::vector<float> found(values_.begin() + n * length,
                                   values_.begin() + (n + 1) * length);
    ASSERT_EQ(found, expected) << n;
    ASSERT_LE(SquaredDistance(found.data(), target.data(), length), greedy + slack) << n;
  }

  VptqMatrixShape shape_;
  std::vector<float> targets_, main_, residual_, values_, moved_;
  std::vector<double> hessian_, factor_;
  std::vector<int32_t> indices_, residuals_;
  std::optional<GpuVptq> gpu_;
};

struct VptqCase {
  VptqMatrixShape shape;
  int64_t main_count, residual_count;
};

constexpr VptqCase kCases[] = {
    {{.num_chunks = 1, .in = 1, .rows = 1, .length = 8}, 16, 0},
    {{.num_chunks = 2, .in = 130, .rows = 32, .length = 8}, 300, 0},
    {{.num_chunks = 3, .in = 61, .rows = 42, .length = 6}, 1000, 64},
    {{.num_chunks = 1, .in = 257, .rows = 17, .length = 4}, 64, 0},
    {{.num_chunks = 2, .in = 40, .rows = 16, .length = 16}, 77, 20},
    {{.num_chunks = 1, .in = 129, .rows = 33, .length = 3}, 4096, 256},
};

TEST_F(GpuVptqTest, FeedbackMovesColumnsAndChoosesTheNearest) {
  for (const VptqCase& c : kCases) {
    SCOPED_TRACE(absl::StrCat(c.shape.in, " columns, ", c.main_count, " of ", c.shape.length));
    Make(c.shape, c.main_count, c.residual_count);
    if (HasFatalFailure()) return;
    const absl::Status status = gpu_->Feedback(books(), absl::MakeSpan(moved_), choice());
    ASSERT_TRUE(status.ok()) << status;
    const int64_t width = shape_.width();
    for (int64_t chunk = 0; chunk < shape_.num_chunks; ++chunk) {
      const int64_t at = chunk * shape_.chunk_size();
      for (int64_t i = 0; i < shape_.in; ++i) {
        double worst = 0.0;
        for (int64_t o = 0; o < width; ++o) {
          double expected = targets_[at + i * width + o], magnitude = std::fabs(expected);
          for (int64_t j = 0; j < i; ++j) {
            const int64_t k = at + j * width + o;
            const double term = factor_[j * shape_.in + i] / factor_[j * (shape_.in + 1)] *
                                (double{values_[k]} - double{moved_[k]});
            expected += term;
            magnitude += std::fabs(term);
          }
          // Each term is rounded four times and added once.
          const double bound = static_cast<double>(i + 5) * 0x1p-24 * magnitude;
          ASSERT_NEAR(moved_[at + i * width + o], expected, bound + 1e-12) << i << ", " << o;
          worst = std::max(worst, bound);
        }
        for (int64_t r = 0; r < shape_.rows; ++r) {
          const int64_t n = (chunk * shape_.in + i) * shape_.rows + r;
          const std::vector<double> x(moved_.begin() + n * shape_.length,
                                      moved_.begin() + (n + 1) * shape_.length);
          CheckVector(n, x.data(), 0.0);
          if (HasFatalFailure()) return;
        }
      }
    }
  }
}

TEST_F(GpuVptqTest, DescentNeverRaisesTheErrorAndTwoRunsAgree) {
  for (const VptqCase& c : kCases) {
    SCOPED_TRACE(absl::StrCat(c.shape.in, " columns, ", c.main_count, " of ", c.shape.length));
    Make(c.shape, c.main_count, c.residual_count);
    if (HasFatalFailure()) return;
    ASSERT_TRUE(gpu_->Feedback(books(), absl::MakeSpan(moved_), choice()).ok());
    const std::vector<float> before = values_;
    const auto first_indices = indices_, first_residuals = residuals_;
    const absl::Status status = gpu_->Descend(books(), 1, choice());
    ASSERT_TRUE(status.ok()) << status;
    const int64_t width = shape_.width(), in = shape_.in;
    double old_error = 0.0, new_error = 0.0;
    for (int64_t chunk = 0; chunk < shape_.num_chunks; ++chunk) {
      const int64_t at = chunk * shape_.chunk_size();
      std::vector<double> errors(static_cast<size_t>(shape_.chunk_size()));
      for (size_t k = 0; k < errors.size(); ++k)
        errors[k] = double{before[at + k]} - targets_[at + k];
      const auto energy = [&] {
        double sum = 0.0;
        for (int64_t i = 0; i < in; ++i) {
          for (int64_t j = 0; j < in; ++j) {
            for (int64_t o = 0; o < width; ++o) {
              sum += hessian_[i * in + j] * errors[i * width + o] * errors[j * width + o];
            }
          }
        }
        return sum;
      };
      old_error += energy();
      for (int64_t i = 0; i < in; ++i) {
        std::vector<double> target(static_cast<size_t>(width));
        double worst = 0.0;
        for (int64_t o = 0; o < width; ++o) {
          double slope = 0.0, magnitude = 0.0;
          for (int64_t j = 0; j < in; ++j) {
            const double term =
                hessian_[i * in + j] / hessian_[i * (in + 1)] * errors[j * width + o];
            slope += term;
            magnitude += std::fabs(term);
          }
          target[o] = before[at + i * width + o] - slope;
          worst = std::max(worst, static_cast<double>(in + 5) * 0x1p-23 * (magnitude + 1.0));
        }
        for (int64_t r = 0; r < shape_.rows; ++r) {
          const int64_t n = (chunk * in + i) * shape_.rows + r;
          CheckVector(n, target.data() + r * shape_.length, worst * std::sqrt(shape_.length));
          if (HasFatalFailure()) return;
        }
        for (int64_t o = 0; o < width; ++o) {
          errors[i * width + o] =
              double{values_[at + i * width + o]} - targets_[at + i * width + o];
        }
      }
      new_error += energy();
    }
    EXPECT_LE(new_error, old_error * (1.0 + 1e-5));
    const std::vector<float> ones(static_cast<size_t>(in), 1.0f), zeros(ones.size(), 0.0f);
    const auto measured = gpu_->Energy(values_, zeros, ones, shape_.num_chunks * width);
    ASSERT_TRUE(measured.ok()) << measured.status();
    EXPECT_NEAR(*measured, new_error, 1e-4 * new_error + 1e-9);
    const auto values = values_;
    values_ = before;
    indices_ = first_indices;
    residuals_ = first_residuals;
    ASSERT_TRUE(gpu_->Descend(books(), 1, choice()).ok());
    EXPECT_EQ(values_, values);
  }
}

}  // namespace
}  // namespace thinwire
