#include "runtime/quant/vptq.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "kernels/core/check.h"
#include "kernels/core/float16.h"
#include "kernels/core/status_macros.h"
#include "kernels/linear/blas.h"
#include "kernels/vptq_linear/nearest_vector.h"
#include "runtime/quant/cholesky.h"
#include "runtime/quant/vector_kmeans.h"

namespace thinwire {
namespace {

// Columns between two products that spread errors to the columns behind, or from all of them.
constexpr int64_t kBlockColumns = 128;
// Outputs that are worked on together, whatever the number of threads.
constexpr int64_t kChunkOutputs = 256;
constexpr int kDampingRetries = 4;
constexpr double kMaxHalf = 65504.0;

float RoundToHalf(double value) { return ToFloat(ToHalf(static_cast<float>(value))); }

void RoundToHalves(std::vector<float>& values) {
  for (float& value : values) value = RoundToHalf(std::clamp<double>(value, -kMaxHalf, kMaxHalf));
}

// Arithmetic of one matrix, columns in the order of processing and scaled. Matrices are in chunks
// of outputs: [num_chunks, in, width], outputs beyond the last are zeros.
class Quantizer {
 public:
  Quantizer(const VptqProblem& problem, const VptqOptions& options, ThreadPool& pool)
      : problem_(problem),
        options_(options),
        pool_(pool),
        in_(problem.in_features),
        out_(problem.out_features),
        length_(options.length),
        rows_(std::max<int64_t>(1, kChunkOutputs / length_)),
        width_(rows_ * length_),
        num_chunks_((out_ + width_ - 1) / width_) {}

  absl::StatusOr<VptqResult> Run() {
    TW_RETURN_IF_ERROR(Scale());
    TW_RETURN_IF_ERROR(Factorize());
    Arrange();
    std::vector<float> column_weights(static_cast<size_t>(in_));
    for (int64_t i = 0; i < in_; ++i) {
      column_weights[i] = static_cast<float>(hessian_[i * in_ + i]);
    }
    Fit(targets_, column_weights, options_.kmeans_iterations, codes_.centroids);
    moved_ = targets_;
    if (options_.residual) FitResidual(column_weights);
    Feedback();
    if (options_.recipe == VptqRecipe::kBest) {
      for (int64_t i = 0; i < in_; ++i) {
        column_weights[i] = static_cast<float>(1.0 / (factor_[i * in_ + i] * factor_[i * in_ + i]));
      }
      for (int refit = 0; refit < options_.refits; ++refit) {
        Refit(column_weights);
        Feedback();
      }
      for (int sweep = 0; sweep < options_.sweeps; ++sweep) Descend();
    }
    VptqResult result;
    result.relative_error = RelativeError();
    Store();
    result.codes = std::move(codes_);
    return result;
  }

 private:
  int64_t chunk_size() const { return in_ * width_; }

  absl::Status Scale() {
    scale_.assign(static_cast<size_t>(in_), 1.0f);
    offset_.assign(static_cast<size_t>(in_), 0.0f);
    const auto weight = [&](int64_t o, int64_t i) {
      return static_cast<double>(problem_.weights[o * in_ + i]);
    };
    for (int64_t i = 0; i < in_; ++i) {
      double sum = 0.0, least = weight(0, i), most = least;
      for (int64_t o = 0; o < out_; ++o) {
        const double w = weight(o, i);
        if (!std::isfinite(w)) {
          return absl::InvalidArgumentError(absl::StrCat("weights: expected finite numbers, found ",
                                                         w, " at output ", o, ", input ", i));
        }
        sum += w;
        least = std::min(least, w);
        most = std::max(most, w);
      }
      if (!options_.norm) continue;
      double offset = sum / static_cast<double>(out_), scale = most - least;
      if (options_.recipe == VptqRecipe::kPublished) {
        offset = least;
      } else {
        double squares = 0.0;
        for (int64_t o = 0; o < out_; ++o) {
          squares += (weight(o, i) - offset) * (weight(o, i) - offset);
        }
        scale = std::sqrt(squares / static_cast<double>(out_));
      }
      if (std::max(scale, std::fabs(offset)) > kMaxHalf) {
        return absl::InvalidArgumentError(
            absl::StrCat("weights: expected columns whose scale fp16 can hold, found mean ", offset,
                         ", deviation ", scale, " at input ", i));
      }
      offset_[i] = RoundToHalf(offset);
      scale_[i] = RoundToHalf(scale);
      if (!(scale_[i] > 0.0f)) scale_[i] = 1.0f;
    }
    return absl::OkStatus();
  }

  // The Hessian of the scaled columns, D H D, in the order of its diagonal, and its factor.
  absl::Status Factorize() {
    const bool scaled = options_.recipe == VptqRecipe::kBest;
    const auto entry = [&](int64_t i, int64_t j) {
      const double h = problem_.hessian[i * in_ + j];
      return scaled ? h * double{scale_[i]} * double{scale_[j]} : h;
    };
    order_.resize(static_cast<size_t>(in_));
    std::iota(order_.begin(), order_.end(), 0);
    std::stable_sort(order_.begin(), order_.end(),
                     [&](int64_t a, int64_t b) { return entry(a, a) > entry(b, b); });
    hessian_.resize(static_cast<size_t>(in_ * in_));
    double mean = 0.0;
    for (int64_t i = 0; i < in_; ++i) mean += entry(i, i) / static_cast<double>(in_);
    if (!(mean > 0.0)) mean = 1.0;
    for (int64_t i = 0; i < in_; ++i) {
      for (int64_t j = 0; j < in_; ++j) hessian_[i * in_ + j] = entry(order_[i], order_[j]) / mean;
    }
    const auto damping = scaled ? Damping::kRelative : Damping::kMeanDiagonal;
    double damp = options_.damping;
    for (int attempt = 0;; ++attempt, damp *= 10.0) {
      factor_ = hessian_;
      DampHessian(damping, damp, in_, absl::MakeSpan(factor_));
      const absl::Status status = UpperFactorOfInverse(in_, absl::MakeSpan(factor_));
      if (status.ok()) break;
      if (attempt == kDampingRetries) return status;
    }
    DampHessian(Damping::kRelative, 0.0, in_, absl::MakeSpan(hessian_));  // dead columns
    factor_floats_.assign(factor_.begin(), factor_.end());
    hessian_floats_.assign(hessian_.begin(), hessian_.end());
    return absl::OkStatus();
  }

  void Arrange() {
    targets_.assign(static_cast<size_t>(num_chunks_ * chunk_size()), 0.0f);
    pool_.ParallelForDynamic(num_chunks_, [&](int64_t chunk) {
      float* const to = targets_.data() + chunk * chunk_size();
      const int64_t first = chunk * width_;
      const int64_t count = std::min(width_, out_ - first);
      for (int64_t i = 0; i < in_; ++i) {
        const int64_t column = order_[i];
        for (int64_t o = 0; o < count; ++o) {
          to[i * width_ + o] =
              (problem_.weights[(first + o) * in_ + column] - offset_[column]) / scale_[column];
        }
      }
    });
    const size_t vectors = static_cast<size_t>(num_chunks_ * in_ * rows_);
    indices_.assign(vectors, 0);
    if (options_.residual) residuals_.assign(vectors, 0);
    values_.assign(targets_.size(), 0.0f);
  }

  // k-means of `vectors`, arranged as the targets, from where `centroids` are; empty: anew.
  void Fit(const std::vector<float>& vectors, const std::vector<float>& column_weights,
           int iterations, std::vector<float>& centroids, bool residual = false) {
    std::vector<float> weights(indices_.size(), 0.0f);
    const int64_t all_rows = (out_ + length_ - 1) / length_;
    for (int64_t chunk = 0; chunk < num_chunks_; ++chunk) {
      for (int64_t i = 0; i < in_; ++i) {
        const int64_t there = std::min(rows_, all_rows - chunk * rows_);
        std::fill_n(weights.begin() + (chunk * in_ + i) * rows_, there, column_weights[i]);
      }
    }
    centroids = VectorKMeans(
        {.vectors = vectors,
         .weights = weights,
         .length = length_,
         .count = int64_t{1} << (residual ? options_.residual_bits : options_.index_bits),
         .iterations = iterations,
         .seed = options_.seed + (residual ? 1 : 0),
         .start = centroids},
        pool_);
    RoundToHalves(centroids);
  }

  // The residual's book: of what the main one leaves of the columns as feedback moves them.
  void FitResidual(const std::vector<float>& column_weights) {
    const bool residual = std::exchange(with_residual_, false);
    Feedback();
    with_residual_ = residual;
    std::vector<float> left(moved_.size());
    for (size_t i = 0; i < left.size(); ++i) left[i] = moved_[i] - values_[i];
    std::vector<float> weights = column_weights;
    if (options_.recipe == VptqRecipe::kPublished) std::fill(weights.begin(), weights.end(), 1.0f);
    Fit(left, weights, options_.kmeans_iterations, codes_.residual_centroids, true);
    with_residual_ = true;
  }

  // Each book to what the other leaves of the columns as feedback has moved them.
  void Refit(const std::vector<float>& column_weights) {
    if (!with_residual_) {
      Fit(moved_, column_weights, options_.refit_iterations, codes_.centroids);
      return;
    }
    for (const bool residual : {false, true}) {
      const std::vector<float>& other = residual ? codes_.centroids : codes_.residual_centroids;
      const std::vector<int32_t>& of_other = residual ? indices_ : residuals_;
      std::vector<float> left = moved_;
      for (size_t n = 0; n < of_other.size(); ++n) {
        for (int e = 0; e < length_; ++e) left[n * length_ + e] -= other[of_other[n] * length_ + e];
      }
      Fit(left, column_weights, options_.refit_iterations,
          residual ? codes_.residual_centroids : codes_.centroids, residual);
    }
  }

  // What chunks need to choose vectors.
  struct Books {
    VectorBook main;
    VectorBook residual;  // of no meaning without one
  };
  Books MakeBooks() const {
    return {VectorBook(codes_.centroids, length_),
            VectorBook(with_residual_ ? codes_.residual_centroids : codes_.centroids, length_)};
  }

  // Subtracts from x [n, length] the vectors of `book` that `indices` say.
  void Subtract(const std::vector<float>& book, const int32_t* indices, int64_t n, const float* x,
                float* left) const {
    for (int64_t k = 0; k < n; ++k) {
      const float* const from = book.data() + int64_t{indices[k]} * length_;
      for (int e = 0; e < length_; ++e) left[k * length_ + e] = x[k * length_ + e] - from[e];
    }
  }

  float Distance(const float* target, int32_t index, int32_t residual) const {
    float sum = 0.0f;
    for (int e = 0; e < length_; ++e) {
      const float difference = target[e] - codes_.centroids[int64_t{index} * length_ + e] -
                               codes_.residual_centroids[int64_t{residual} * length_ + e];
      sum += difference * difference;
    }
    return sum;
  }

  // Chooses the vectors of a column of one chunk nearest to `target` [rows, length] and puts down
  // what they are. With a residual: in turns, from the nearest of the main book and, if `again`,
  // from what was chosen before; the better one.
  void Choose(const Books& books, const float* target, bool again, int32_t* indices,
              int32_t* residuals, float* values) const {
    if (!with_residual_) {
      books.main.Nearest(target, rows_, indices);
    } else {
      std::vector<float> left(static_cast<size_t>(width_));
      std::vector<int32_t> tried(static_cast<size_t>(rows_)), tried_more(tried.size());
      const auto turn = [&](int32_t* main, int32_t* more) {
        Subtract(codes_.residual_centroids, more, rows_, target, left.data());
        books.main.Nearest(left.data(), rows_, main);
        Subtract(codes_.centroids, main, rows_, target, left.data());
        books.residual.Nearest(left.data(), rows_, more);
      };
      books.main.Nearest(target, rows_, tried.data());
      Subtract(codes_.centroids, tried.data(), rows_, target, left.data());
      books.residual.Nearest(left.data(), rows_, tried_more.data());
      if (options_.recipe == VptqRecipe::kBest) turn(tried.data(), tried_more.data());
      if (again) turn(indices, residuals);
      for (int64_t k = 0; k < rows_; ++k) {
        const float* const x = target + k * length_;
        if (again &&
            Distance(x, indices[k], residuals[k]) <= Distance(x, tried[k], tried_more[k])) {
          continue;
        }
        indices[k] = tried[k];
        residuals[k] = tried_more[k];
      }
    }
    for (int64_t k = 0; k < rows_; ++k) {
      for (int e = 0; e < length_; ++e) {
        float value = codes_.centroids[int64_t{indices[k]} * length_ + e];
        if (with_residual_) {
          value += codes_.residual_centroids[int64_t{residuals[k]} * length_ + e];
        }
        values[k * length_ + e] = value;
      }
    }
  }

  int32_t* residuals_at(int64_t vector) {
    return residuals_.empty() ? nullptr : residuals_.data() + vector;
  }

  // Column after column, errors fed to those behind: as GPTQ. Leaves in moved_ the columns as they
  // were when they were chosen for.
  void Feedback() {
    moved_ = targets_;
    const Books books = MakeBooks();
    pool_.ParallelForDynamic(num_chunks_, [&](int64_t chunk) {
      float* const columns = moved_.data() + chunk * chunk_size();
      float* const values = values_.data() + chunk * chunk_size();
      std::vector<float> errors(static_cast<size_t>(kBlockColumns * width_));
      for (int64_t begin = 0; begin < in_; begin += kBlockColumns) {
        const int64_t end = std::min(in_, begin + kBlockColumns);
        for (int64_t i = begin; i < end; ++i) {
          const int64_t vector = (chunk * in_ + i) * rows_;
          const float* const column = columns + i * width_;
          Choose(books, column, false, indices_.data() + vector, residuals_at(vector),
                 values + i * width_);
          const float* const factor = factor_floats_.data() + i * in_;
          float* const error = errors.data() + (i - begin) * width_;
          for (int64_t o = 0; o < width_; ++o) {
            error[o] = (values[i * width_ + o] - column[o]) / factor[i];
          }
          for (int64_t j = i + 1; j < end; ++j) {
            float* const later = columns + j * width_;
            for (int64_t o = 0; o < width_; ++o) later[o] += factor[j] * error[o];
          }
        }
        if (end == in_) break;
        SgemmTN(in_ - end, width_, end - begin, factor_floats_.data() + begin * in_ + end, in_,
                errors.data(), width_, 1.0f, columns + end * width_, width_);
      }
    });
  }

  void Descend() {
    const Books books = MakeBooks();
    pool_.ParallelForDynamic(num_chunks_, [&](int64_t chunk) {
      const float* const targets = targets_.data() + chunk * chunk_size();
      float* const values = values_.data() + chunk * chunk_size();
      std::vector<float> errors(static_cast<size_t>(chunk_size()));
      for (int64_t k = 0; k < chunk_size(); ++k) errors[k] = values[k] - targets[k];
      std::vector<float> slopes(static_cast<size_t>(kBlockColumns * width_));
      std::vector<float> target(static_cast<size_t>(width_)), before(target.size());
      for (int64_t begin = 0; begin < in_; begin += kBlockColumns) {
        const int64_t end = std::min(in_, begin + kBlockColumns);
        SgemmNN(end - begin, width_, in_, hessian_floats_.data() + begin * in_, in_, errors.data(),
                width_, 0.0f, slopes.data(), width_);
        for (int64_t i = begin; i < end; ++i) {
          const float* const hessian = hessian_floats_.data() + i * in_;
          const float* const slope = slopes.data() + (i - begin) * width_;
          float* const value = values + i * width_;
          for (int64_t o = 0; o < width_; ++o) {
            before[o] = value[o];
            target[o] = value[o] - slope[o] / hessian[i];
          }
          const int64_t vector = (chunk * in_ + i) * rows_;
          Choose(books, target.data(), true, indices_.data() + vector, residuals_at(vector), value);
          for (int64_t o = 0; o < width_; ++o) {
            before[o] = value[o] - before[o];
            errors[i * width_ + o] += before[o];
          }
          for (int64_t j = i + 1; j < end; ++j) {
            float* const later = slopes.data() + (j - begin) * width_;
            for (int64_t o = 0; o < width_; ++o) later[o] += hessian[j] * before[o];
          }
        }
      }
    });
  }

  // tr(X H X^T) of the chunks' columns less `from`'s, if it is given.
  double Energy(bool of_errors) {
    std::vector<double> sums(static_cast<size_t>(num_chunks_));
    pool_.ParallelForDynamic(num_chunks_, [&](int64_t chunk) {
      const float* const targets = targets_.data() + chunk * chunk_size();
      const float* const values = values_.data() + chunk * chunk_size();
      std::vector<float> x(static_cast<size_t>(chunk_size())), product(x.size());
      for (int64_t i = 0; i < in_; ++i) {
        // What the column's offset is beside its scaled weights.
        const int64_t column = order_[i];
        const float shift = of_errors ? 0.0f : offset_[column] / scale_[column];
        const int64_t count = std::min(width_, out_ - chunk * width_);
        for (int64_t o = 0; o < count; ++o) {
          const int64_t at = i * width_ + o;
          x[at] = of_errors ? values[at] - targets[at] : targets[at] + shift;
        }
      }
      if (options_.recipe == VptqRecipe::kPublished) {  // its Hessian is not that of scaled columns
        for (int64_t i = 0; i < in_; ++i) {
          for (int64_t o = 0; o < width_; ++o) x[i * width_ + o] *= scale_[order_[i]];
        }
      }
      SgemmNN(in_, width_, in_, hessian_floats_.data(), in_, x.data(), width_, 0.0f, product.data(),
              width_);
      for (size_t k = 0; k < x.size(); ++k) sums[chunk] += double{x[k]} * double{product[k]};
    });
    return std::accumulate(sums.begin(), sums.end(), 0.0);
  }

  double RelativeError() {
    const double whole = Energy(false);
    return whole > 0.0 ? Energy(true) / whole : 0.0;
  }

  void Store() {
    codes_.out_features = out_;
    codes_.in_features = in_;
    codes_.length = length_;
    codes_.index_bits = options_.index_bits;
    codes_.has_residual = options_.residual;
    codes_.residual_bits = options_.residual ? options_.residual_bits : 0;
    const int64_t all_rows = codes_.num_rows();
    codes_.indices.resize(static_cast<size_t>(all_rows * in_));
    if (options_.residual) codes_.residuals.resize(codes_.indices.size());
    for (int64_t row = 0; row < all_rows; ++row) {
      for (int64_t i = 0; i < in_; ++i) {
        const int64_t from = (row / rows_ * in_ + i) * rows_ + row % rows_;
        codes_.indices[row * in_ + order_[i]] = indices_[from];
        if (options_.residual) codes_.residuals[row * in_ + order_[i]] = residuals_[from];
      }
    }
    if (!options_.norm) return;
    codes_.scale = scale_;
    codes_.offset = offset_;
  }

  const VptqProblem& problem_;
  const VptqOptions& options_;
  ThreadPool& pool_;
  const int64_t in_, out_;
  const int length_;
  const int64_t rows_;   // vectors of a chunk's column
  const int64_t width_;  // outputs of a chunk
  const int64_t num_chunks_;
  bool with_residual_ = false;
  std::vector<float> scale_, offset_;  // by column
  std::vector<int64_t> order_;         // column of a position
  std::vector<double> hessian_, factor_;
  std::vector<float> hessian_floats_, factor_floats_;
  std::vector<float> targets_, moved_, values_;
  std::vector<int32_t> indices_, residuals_;  // [num_chunks, in, rows]
  VptqCodes codes_;
};

}  // namespace

std::vector<float> Dequantize(const VptqCodes& codes) {
  const int64_t in = codes.in_features;
  std::vector<float> weights(static_cast<size_t>(codes.out_features * in));
  for (int64_t o = 0; o < codes.out_features; ++o) {
    const int64_t row = o / codes.length * in;
    const int64_t element = o % codes.length;
    for (int64_t i = 0; i < in; ++i) {
      float value = codes.centroids[int64_t{codes.indices[row + i]} * codes.length + element];
      if (codes.has_residual) {
        value +=
            codes.residual_centroids[int64_t{codes.residuals[row + i]} * codes.length + element];
      }
      if (!codes.scale.empty()) value = value * codes.scale[i];
      if (!codes.offset.empty()) value = value + codes.offset[i];
      weights[o * in + i] = value;
    }
  }
  return weights;
}

absl::StatusOr<VptqResult> Vptq(const VptqProblem& problem, const VptqOptions& options,
                                ThreadPool& pool) {
  TW_CHECK(problem.out_features > 0 && problem.in_features > 0 && options.length > 0);
  TW_CHECK_EQ(static_cast<int64_t>(problem.weights.size()),
              problem.out_features * problem.in_features);
  TW_CHECK_EQ(static_cast<int64_t>(problem.hessian.size()),
              problem.in_features * problem.in_features);
  return Quantizer(problem, options, pool).Run();
}

}  // namespace thinwire
