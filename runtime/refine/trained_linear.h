// A vector-quantised projection whose codebooks, scales, offsets and bias are fitted; its indices
// stay.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "kernels/core/thread_pool.h"
#include "runtime/checkpoint/vptq_config.h"
#include "runtime/model/decoder_weights.h"
#include "runtime/quantizer/dense_layer.h"
#include "runtime/refine/parameter.h"

namespace thinwire {

// Move-only. A projection that is not quantised keeps its weight; only its bias is fitted.
class TrainedLinear {
 public:
  TrainedLinear() = default;

  // weights: all of projection `name`, as a decoder on one rank has it. config: null if dense.
  // Units: of centroids and biases the root of the mean square of all of them, of a column's scale
  // and offset its scale. byte_books: books stand for what they are as byte books
  // (kernels/vptq_linear/byte_book.h), and derivatives pass that rounding as if it were none.
  TrainedLinear(absl::string_view name, LinearWeights weights, const VptqLayerConfig* config,
                bool byte_books);

  // What the parameters stand for: w = scale (C + R) + offset.
  void Expand(DenseLinear& out, ThreadPool& pool) const;

  // Sets the parameters' gradients from those of the expanded projection. The same bits with any
  // number of threads.
  void Differentiate(const DenseLinear& gradient, ThreadPool& pool);

  // Puts down books as what they stand for.
  void RoundBooks();

  // Those that the projection has.
  std::vector<Parameter*> parameters();

 private:
  struct Books {
    std::vector<float> main, residual, outliers;
  };
  // What the books' parameters stand for.
  Books ShownBooks() const;

  // Calls body(column, first output, number of the first of its centroid in the part's book, that
  // in the residual's or -1) for the vectors of these rows of a part.
  template <typename Body>
  void ForVectors(size_t part, Range rows, const Body& body) const;
  // Calls body(part, rows, which run) for runs of rows that do not depend on the pool, on all
  // threads.
  template <typename Body>
  void ForRuns(ThreadPool& pool, const Body& body) const;
  // Indices are those of the outliers' book.
  bool IsOutliers(size_t part) const { return has_outliers_ && part == 0; }

  LinearWeights weights_;
  bool has_outliers_ = false;  // in the first part
  bool byte_books_ = false;
  Parameter book_, residual_, outlier_book_, scale_, offset_, bias_;
};

}  // namespace thinwire
