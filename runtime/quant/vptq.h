// Weights as indices into codebooks of vectors, with error feedback: VPTQ (Liu et al., arXiv
// 2409.17066), with what measurements say pays besides.
#pragma once

#include <cstdint>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kernels/core/stream.h"
#include "kernels/core/thread_pool.h"
#include "runtime/quant/vptq_codes.h"

namespace thinwire {

enum class VptqRecipe {
  kBest,
  // What the published tool does since January 2025, for comparison: columns less their minimum
  // over their range, feedback, order and weights of the k-means by the Hessian as it is (not of
  // the columns so scaled), no refit and no second thoughts; the residual's k-means unweighted.
  kPublished,
};

struct VptqOptions {
  int length = 8;
  int index_bits = 8;
  bool residual = false;
  int residual_bits = 0;
  // Runs of columns with codebooks of their own: in the matrix' order, so that tensor-parallel
  // blocks need only their groups' (kPublished: in order of importance).
  int num_groups = 1;
  // Columns that matter most, by the diagonal of the Hessian of scaled columns, with vectors of
  // outlier_length from a codebook of their own: ceil(percent of all), and as many more as make
  // the others equal groups.
  int outlier_percent = 0;
  int outlier_length = 0;
  int outlier_bits = 0;
  // Centroids of 8 bits (kernels/vptq_linear/byte_book.h): every book is rounded when it has been
  // fitted, so that what is fitted or chosen behind it makes up for it.
  bool byte_books = false;
  bool norm = true;  // each column less its mean, over its deviation; else as it is
  VptqRecipe recipe = VptqRecipe::kBest;
  // What kBest is without: whether the Hessian is that of scaled columns, and whether errors of a
  // column are made up for by those behind it. For comparison.
  bool scaled_hessian = true;
  bool feedback = true;
  int kmeans_iterations = 25;
  bool careful_start = true;  // see VectorKMeansArgs
  // Books fitted again to the columns as error feedback has moved them, each weighted by what is
  // left of its Hessian when later columns make up.
  int refits = 1;
  int refit_iterations = 10;
  // Sweeps of coordinate descent over the indices: column n moves to the vectors nearest to q_n -
  // (E H)_n / H_nn, E = Q - W. Up to rounding they never raise tr(E H E^T).
  int sweeps = 6;
  double damping = 0.01;  // of each H_nn
  uint64_t seed = 0;
};

struct VptqProblem {
  int64_t out_features = 0;
  int64_t in_features = 0;
  absl::Span<const float> weights;   // [out, in]
  absl::Span<const double> hessian;  // [in, in], symmetric; its scale does not matter
};

struct VptqColumns;

struct VptqResult {
  VptqCodes codes;
  double relative_error = 0.0;  // tr(E H E^T) / tr(W H W^T)
};

// The same bits for a seed with any number of threads. InvalidArgument: NaN or infinity in the
// weights, or columns that fp16 cannot scale (row or column named). FailedPrecondition: a Hessian
// that no damping makes positive definite.
// `columns`: PrepareColumns' of the same problem and options, where they are known already.
// `gpu`: a GPU's stream, which does k-means, feedback, descent and the factor then, in fp32 sums of
// another order: of two vectors as near up to rounding it may choose the other, and what is fed on
// moves with it. On the pool stay what it cannot do: vectors longer than kMaxGpuVectorLength, and,
// of groups or outlier columns or without feedback, feedback and descent. ResourceExhausted names
// what asked for memory there.
absl::StatusOr<VptqResult> Vptq(const VptqProblem& problem, const VptqOptions& options,
                                ThreadPool& pool, const VptqColumns* columns = nullptr,
                                Stream* gpu = nullptr);

}  // namespace thinwire
