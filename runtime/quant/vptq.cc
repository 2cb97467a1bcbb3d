#include "runtime/quant/vptq.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "kernels/core/check.h"
#include "kernels/core/status_macros.h"
#include "kernels/linear/blas.h"
#include "kernels/quantize/vector_clusters.h"
#include "runtime/quant/rounded_book.h"
#include "runtime/quant/vector_choice.h"
#include "runtime/quant/vector_kmeans.h"
#include "runtime/quant/vptq_columns.h"
#include "runtime/quant/vptq_gpu.h"

namespace thinwire {
namespace {

// Columns between two products that spread errors to the columns behind, or from all of them.
constexpr int64_t kBlockColumns = 128;
// Outputs that are worked on together, whatever the number of threads.
constexpr int64_t kChunkOutputs = 256;
// What the format's order of columns can name.
constexpr int64_t kMaxOrdered = 65536;

// Columns that share codebooks.
struct Book {
  int length = 0;
  int index_bits = 0;
  bool has_residual = false;
  int residual_bits = 0;
  std::vector<int64_t> columns;  // places in the order of processing, ascending
  std::vector<float> centroids;
  std::vector<float> residual_centroids;  // empty until there are some
};

// Arithmetic of one matrix, columns in the order of processing and scaled. Matrices are in chunks
// of outputs: [num_chunks, in, width], outputs beyond the last are zeros.
class Quantizer {
 public:
  Quantizer(const VptqProblem& problem, const VptqOptions& options, ThreadPool& pool,
            const VptqColumns* columns, Stream* gpu)
      : problem_(problem),
        options_(options),
        pool_(pool),
        best_(options.recipe == VptqRecipe::kBest),
        scaled_(best_ && options.scaled_hessian),
        in_(problem.in_features),
        out_(problem.out_features),
        step_(options.outlier_percent > 0 ? std::lcm(options.length, options.outlier_length)
                                          : options.length),
        width_(std::max<int64_t>(1, kChunkOutputs / step_) * step_),
        num_chunks_((out_ + width_ - 1) / width_),
        columns_(columns),
        stream_(gpu) {}

  absl::StatusOr<VptqResult> Run() {
    VptqColumns made;
    if (columns_ == nullptr) {
      TW_ASSIGN_OR_RETURN(made, PrepareColumns(problem_, options_, stream_));
      columns_ = &made;
    }
    hessian_floats_.assign(columns_->hessian.begin(), columns_->hessian.end());
    factor_floats_.assign(columns_->factor.begin(), columns_->factor.end());
    TW_RETURN_IF_ERROR(MakeBooks());
    Arrange();
    TW_RETURN_IF_ERROR(OpenGpu());
    std::vector<float> column_weights(static_cast<size_t>(in_));
    for (int64_t i = 0; i < in_; ++i) {
      column_weights[i] = static_cast<float>(columns_->hessian[i * in_ + i]);
    }
    for (Book& book : books_) {
      Fit(targets_, column_weights, options_.kmeans_iterations, book, false);
    }
    TW_RETURN_IF_ERROR(gpu_.status());
    moved_ = targets_;
    if (options_.residual) FitResiduals(column_weights);
    TW_RETURN_IF_ERROR(gpu_.status());
    Feedback();
    if (best_) {
      for (int64_t i = 0; i < in_ && options_.feedback; ++i) {
        column_weights[i] = static_cast<float>(
            1.0 / (columns_->factor[i * in_ + i] * columns_->factor[i * in_ + i]));
      }
      for (int refit = 0; refit < options_.refits; ++refit) {
        for (Book& book : books_) Refit(column_weights, book);
        TW_RETURN_IF_ERROR(gpu_.status());
        Feedback();
      }
      Descend();
    }
    VptqResult result;
    result.relative_error = RelativeError();
    TW_RETURN_IF_ERROR(gpu_.status());
    Store();
    result.codes = std::move(codes_);
    return result;
  }

 private:
  int64_t chunk_size() const { return in_ * width_; }
  // Where the indices of a column of a chunk begin.
  int64_t first_index(int64_t chunk, int64_t i) const { return (chunk * in_ + i) * stride_; }

  // Which columns share codebooks, and their order in the result.
  absl::Status MakeBooks() {
    int64_t outliers = 0;
    if (options_.outlier_percent > 0) {
      outliers = (in_ * options_.outlier_percent + 99) / 100;
      outliers += (in_ - outliers) % options_.num_groups;
    }
    const int64_t rest = in_ - outliers;
    if (rest <= 0 || rest % options_.num_groups != 0) {
      return absl::InvalidArgumentError(absl::StrCat("expected columns that make ",
                                                     options_.num_groups, " equal groups, found ",
                                                     in_, " with ", outliers, " outliers"));
    }
    if (outliers > 0 && in_ > kMaxOrdered) {
      return absl::UnimplementedError(absl::StrCat("outliers: expected at most ", kMaxOrdered,
                                                   " columns, whose order has 16 bits, found ",
                                                   in_));
    }
    books_.assign(static_cast<size_t>(options_.num_groups + (outliers > 0 ? 1 : 0)),
                  {.length = options_.length,
                   .index_bits = options_.index_bits,
                   .has_residual = options_.residual,
                   .residual_bits = options_.residual_bits});
    if (outliers > 0) {
      books_.back() = {.length = options_.outlier_length, .index_bits = options_.outlier_bits};
    }
    for (const Book& book : books_) stride_ = std::max(stride_, width_ / book.length);
    // Places of processing in the order in which they are stored.
    stored_.resize(static_cast<size_t>(in_));
    std::iota(stored_.begin(), stored_.end(), 0);
    if (best_ || options_.num_groups == 1) {
      std::sort(stored_.begin() + outliers, stored_.end(),
                [&](int64_t a, int64_t b) { return columns_->order[a] < columns_->order[b]; });
    }
    book_of_.resize(static_cast<size_t>(in_));
    for (int64_t p = 0; p < in_; ++p) {
      book_of_[stored_[p]] =
          p < outliers ? options_.num_groups : (p - outliers) / (rest / options_.num_groups);
    }
    for (int64_t i = 0; i < in_; ++i) books_[book_of_[i]].columns.push_back(i);
    codes_.outlier_size = outliers;
    return absl::OkStatus();
  }

  void Arrange() {
    targets_.assign(static_cast<size_t>(num_chunks_ * chunk_size()), 0.0f);
    pool_.ParallelForDynamic(num_chunks_, [&](int64_t chunk) {
      float* const to = targets_.data() + chunk * chunk_size();
      const int64_t first = chunk * width_;
      const int64_t count = std::min(width_, out_ - first);
      for (int64_t i = 0; i < in_; ++i) {
        const int64_t column = columns_->order[i];
        for (int64_t o = 0; o < count; ++o) {
          to[i * width_ + o] =
              (problem_.weights[(first + o) * in_ + column] - columns_->offset[column]) /
              columns_->scale[column];
        }
      }
    });
    const auto vectors = static_cast<size_t>(first_index(num_chunks_, 0));
    indices_.assign(vectors, 0);
    if (options_.residual) residuals_.assign(vectors, 0);
    values_.assign(targets_.size(), 0.0f);
  }

  // Puts the matrix on the GPU, if there is one and it can walk along the columns.
  absl::Status OpenGpu() {
    const int length = options_.length;
    if (stream_ == nullptr || books_.size() > 1 || !options_.feedback ||
        length > kMaxGpuVectorLength) {
      return absl::OkStatus();
    }
    return gpu_.Open(
        {.num_chunks = num_chunks_, .in = in_, .rows = width_ / length, .length = length}, targets_,
        factor_floats_, hessian_floats_, *stream_);
  }

  // What it works from and with.
  VptqBooks GpuBooks() const {
    return {books_.front().centroids, books_.front().residual_centroids, best_};
  }
  VptqChoice GpuChoice() {
    const bool residual = !books_.front().residual_centroids.empty();
    return {absl::MakeSpan(values_), absl::MakeSpan(indices_),
            residual ? absl::MakeSpan(residuals_) : absl::Span<int32_t>()};
  }

  // k-means of the book's columns of `vectors`, arranged as the targets, from where its centroids
  // are; without: anew.
  void Fit(const std::vector<float>& vectors, const std::vector<float>& column_weights,
           int iterations, Book& book, bool residual) {
    const auto num_columns = static_cast<int64_t>(book.columns.size());
    const int64_t rows = width_ / book.length;
    const int64_t all_rows = (out_ + book.length - 1) / book.length;
    std::vector<float> weights(static_cast<size_t>(num_chunks_ * num_columns * rows), 0.0f), own;
    const bool all = num_columns == in_;
    if (!all) own.reserve(static_cast<size_t>(num_chunks_ * num_columns * width_));
    for (int64_t chunk = 0; chunk < num_chunks_; ++chunk) {
      const int64_t there = std::min(rows, all_rows - chunk * rows);
      for (int64_t n = 0; n < num_columns; ++n) {
        const int64_t i = book.columns[n];
        std::fill_n(weights.begin() + (chunk * num_columns + n) * rows, there, column_weights[i]);
        const auto from = vectors.begin() + chunk * chunk_size() + i * width_;
        if (!all) own.insert(own.end(), from, from + width_);
      }
    }
    std::vector<float>& centroids = residual ? book.residual_centroids : book.centroids;
    const auto number = static_cast<uint64_t>(&book - books_.data());
    if (!gpu_.status().ok()) return;
    auto fitted =
        VectorKMeans({.vectors = all ? vectors : own,
                      .weights = weights,
                      .length = book.length,
                      .count = int64_t{1} << (residual ? book.residual_bits : book.index_bits),
                      .iterations = iterations,
                      .seed = options_.seed + (residual ? 1 : 0) + (number << 32),
                      .start = centroids,
                      .careful = options_.careful_start},
                     pool_, stream_);
    if (!fitted.ok()) return gpu_.Fail(fitted.status());
    centroids = RoundedBook(*std::move(fitted), book.length, options_.byte_books);
  }

  // The residuals' books: of what the main ones leave of the columns as feedback moves them.
  void FitResiduals(const std::vector<float>& column_weights) {
    Feedback();
    std::vector<float> left(moved_.size());
    for (size_t i = 0; i < left.size(); ++i) left[i] = moved_[i] - values_[i];
    std::vector<float> weights = column_weights;
    if (!best_) std::fill(weights.begin(), weights.end(), 1.0f);
    for (Book& book : books_) {
      if (book.has_residual) Fit(left, weights, options_.kmeans_iterations, book, true);
    }
  }

  // Each book to what the other leaves of the columns as feedback has moved them.
  void Refit(const std::vector<float>& column_weights, Book& book) {
    if (!book.has_residual) {
      Fit(moved_, column_weights, options_.refit_iterations, book, false);
      return;
    }
    const int64_t rows = width_ / book.length;
    for (const bool residual : {false, true}) {
      const std::vector<float>& other = residual ? book.centroids : book.residual_centroids;
      const std::vector<int32_t>& of_other = residual ? indices_ : residuals_;
      std::vector<float> left = moved_;
      for (int64_t chunk = 0; chunk < num_chunks_; ++chunk) {
        for (const int64_t i : book.columns) {
          float* const column = left.data() + chunk * chunk_size() + i * width_;
          for (int64_t r = 0; r < rows; ++r) {
            const float* const vector =
                other.data() + int64_t{of_other[first_index(chunk, i) + r]} * book.length;
            for (int e = 0; e < book.length; ++e) column[r * book.length + e] -= vector[e];
          }
        }
      }
      Fit(left, column_weights, options_.refit_iterations, book, residual);
    }
  }

  std::vector<VectorChoice> Choices() const {
    std::vector<VectorChoice> choices;
    for (const Book& book : books_) {
      choices.emplace_back(book.centroids, book.residual_centroids, book.length, best_);
    }
    return choices;
  }

  // Chooses the vectors of a column of one chunk nearest to `target` [width] and puts down what
  // they are. `again`: in place of those there are, if they are nearer.
  void Choose(const std::vector<VectorChoice>& choices, int64_t chunk, int64_t i,
              const float* target, bool again, float* values) {
    const int64_t first = first_index(chunk, i);
    choices[book_of_[i]].Choose(target, width_ / books_[book_of_[i]].length, again,
                                indices_.data() + first,
                                residuals_.empty() ? nullptr : residuals_.data() + first, values);
  }

  // Column after column, errors fed to those behind: as GPTQ. Leaves in moved_ the columns as they
  // were when they were chosen for.
  void Feedback() {
    if (gpu_.is_open()) {
      moved_.resize(targets_.size());
      return gpu_.Feedback(GpuBooks(), absl::MakeSpan(moved_), GpuChoice());
    }
    moved_ = targets_;
    const std::vector<VectorChoice> choices = Choices();
    pool_.ParallelForDynamic(num_chunks_, [&](int64_t chunk) {
      float* const columns = moved_.data() + chunk * chunk_size();
      float* const values = values_.data() + chunk * chunk_size();
      std::vector<float> errors(static_cast<size_t>(kBlockColumns * width_));
      for (int64_t begin = 0; begin < in_; begin += kBlockColumns) {
        const int64_t end = std::min(in_, begin + kBlockColumns);
        for (int64_t i = begin; i < end; ++i) {
          const float* const column = columns + i * width_;
          Choose(choices, chunk, i, column, false, values + i * width_);
          if (!options_.feedback) continue;
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
        if (end == in_ || !options_.feedback) continue;
        SgemmTN(in_ - end, width_, end - begin, factor_floats_.data() + begin * in_ + end, in_,
                errors.data(), width_, 1.0f, columns + end * width_, width_);
      }
    });
  }

  void Descend() {
    if (gpu_.is_open()) return gpu_.Descend(GpuBooks(), options_.sweeps, GpuChoice());
    for (int sweep = 0; sweep < options_.sweeps; ++sweep) DescendOnce();
  }

  void DescendOnce() {
    const std::vector<VectorChoice> choices = Choices();
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
          Choose(choices, chunk, i, target.data(), true, value);
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
    if (gpu_.is_open()) {
      std::vector<float> shift(static_cast<size_t>(in_), 0.0f), multiplier(shift.size(), 1.0f);
      for (int64_t i = 0; i < in_; ++i) {
        const int64_t column = columns_->order[i];
        if (!of_errors) shift[i] = columns_->offset[column] / columns_->scale[column];
        if (!scaled_) multiplier[i] = columns_->scale[column];
      }
      return gpu_.Energy(of_errors ? values_ : std::vector<float>(), shift, multiplier, out_);
    }
    std::vector<double> sums(static_cast<size_t>(num_chunks_));
    pool_.ParallelForDynamic(num_chunks_, [&](int64_t chunk) {
      const float* const targets = targets_.data() + chunk * chunk_size();
      const float* const values = values_.data() + chunk * chunk_size();
      std::vector<float> x(static_cast<size_t>(chunk_size())), product(x.size());
      for (int64_t i = 0; i < in_; ++i) {
        // What the column's offset is beside its scaled weights.
        const int64_t column = columns_->order[i];
        const float shift = of_errors ? 0.0f : columns_->offset[column] / columns_->scale[column];
        const int64_t count = std::min(width_, out_ - chunk * width_);
        for (int64_t o = 0; o < count; ++o) {
          const int64_t at = i * width_ + o;
          x[at] = of_errors ? values[at] - targets[at] : targets[at] + shift;
        }
      }
      if (!scaled_) {  // the Hessian is not that of scaled columns
        for (int64_t i = 0; i < in_; ++i) {
          for (int64_t o = 0; o < width_; ++o)
            x[i * width_ + o] *= columns_->scale[columns_->order[i]];
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
    codes_.length = options_.length;
    codes_.index_bits = options_.index_bits;
    codes_.has_residual = options_.residual;
    codes_.residual_bits = options_.residual ? options_.residual_bits : 0;
    codes_.num_groups = options_.num_groups;
    codes_.byte_books = options_.byte_books;
    const int64_t outliers = codes_.outlier_size;
    const int64_t rest = in_ - outliers;
    codes_.indices.resize(static_cast<size_t>(codes_.num_rows() * rest));
    if (options_.residual) codes_.residuals.resize(codes_.indices.size());
    if (outliers > 0) {
      codes_.outlier_length = options_.outlier_length;
      codes_.outlier_bits = options_.outlier_bits;
      codes_.outlier_indices.resize(static_cast<size_t>(codes_.num_outlier_rows() * outliers));
    }
    bool moved = false;
    for (int64_t p = 0; p < in_; ++p) {
      const int64_t i = stored_[p];
      const bool outlier = p < outliers;
      moved = moved || columns_->order[i] != p;
      const int64_t rows = width_ / books_[book_of_[i]].length;
      const int64_t all_rows = outlier ? codes_.num_outlier_rows() : codes_.num_rows();
      for (int64_t row = 0; row < all_rows; ++row) {
        const int64_t from = first_index(row / rows, i) + row % rows;
        if (outlier) {
          codes_.outlier_indices[row * outliers + p] = indices_[from];
          continue;
        }
        codes_.indices[row * rest + p - outliers] = indices_[from];
        if (options_.residual) codes_.residuals[row * rest + p - outliers] = residuals_[from];
      }
    }
    for (int64_t p = 0; p < in_ && moved; ++p) {
      codes_.order.push_back(static_cast<int32_t>(columns_->order[stored_[p]]));
    }
    const auto append = [](const std::vector<float>& book, std::vector<float>& to) {
      to.insert(to.end(), book.begin(), book.end());
    };
    for (int g = 0; g < options_.num_groups; ++g) {
      append(books_[g].centroids, codes_.centroids);
      append(books_[g].residual_centroids, codes_.residual_centroids);
    }
    if (outliers > 0) codes_.outlier_centroids = books_.back().centroids;
    if (!options_.norm) return;
    codes_.scale = columns_->scale;
    codes_.offset = columns_->offset;
  }

  const VptqProblem& problem_;
  const VptqOptions& options_;
  ThreadPool& pool_;
  const bool best_, scaled_;
  const int64_t in_, out_;
  const int64_t step_;   // whole vectors of each book
  const int64_t width_;  // outputs of a chunk
  const int64_t num_chunks_;
  int64_t stride_ = 0;  // indices of a chunk's column
  const VptqColumns* columns_;
  Stream* const stream_;          // of a GPU, or null
  VptqColumnsOnGpu gpu_;          // open where it walks along the columns
  std::vector<int64_t> stored_;   // place of a stored position
  std::vector<Book> books_;       // of groups, then of outliers
  std::vector<int64_t> book_of_;  // by place
  std::vector<float> hessian_floats_, factor_floats_;
  std::vector<float> targets_, moved_, values_;
  std::vector<int32_t> indices_, residuals_;  // [num_chunks, in, stride]
  VptqCodes codes_;
};

}  // namespace

absl::StatusOr<VptqResult> Vptq(const VptqProblem& problem, const VptqOptions& options,
                                ThreadPool& pool, const VptqColumns* columns, Stream* gpu) {
  TW_CHECK(problem.out_features > 0 && problem.in_features > 0 && options.length > 0);
  TW_CHECK_EQ(static_cast<int64_t>(problem.weights.size()),
              problem.out_features * problem.in_features);
  TW_CHECK_EQ(static_cast<int64_t>(problem.hessian.size()),
              problem.in_features * problem.in_features);
  return Quantizer(problem, options, pool, columns, gpu).Run();
}

}  // namespace thinwire
