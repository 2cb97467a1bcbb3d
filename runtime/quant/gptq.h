// Weights as integer codes with error feedback: GPTQ (Frantar et al., arXiv 2210.17323).
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kernels/core/stream.h"
#include "kernels/core/thread_pool.h"
#include "runtime/quant/gptq_codes.h"

namespace thinwire {

// What the error of a column counts in the search for a scale.
enum class SearchWeights {
  kEqual,
  kHessianDiagonal,  // H_ii of the problem's hessian
  kConditional,      // 1 / U_ii^2 of its factor: what is left of H_ii when later columns make up
};

struct GptqOptions {
  int bits = 4;  // [1, 8]

  // Scales and zeros from the weights as given, instead of from the columns as error feedback has
  // moved them by the group's begin.
  bool static_groups = false;

  // The range of a (row, group) is [min(0, min w), max(0, max w)], shrunk at both ends by the
  // factor f = 1 - j (1 - smallest_shrink) / shrink_steps, j = 0 .. shrink_steps, that minimises
  // sum_i h_i |w_i - w^_i|^error_power; the first of equals. 0 steps: min-max.
  int shrink_steps = 0;
  float smallest_shrink = 0.5f;
  float error_power = 2.0f;

  // Then the two ends apart: each factor by -0.1, -0.05, 0, 0.05, 0.1 more, up to 1.
  bool local_search = false;

  // h_i above. Without a factor, kConditional is kEqual.
  SearchWeights search_weights = SearchWeights::kEqual;

  // Sweeps of coordinate descent over the codes afterwards, scales and zeros fixed: column n in
  // order moves to the code nearest to q_n - (E H)_n / H_nn, E = Q - W. Up to rounding, it never
  // raises tr(E H E^T).
  int sweeps = 0;

  // So often then: the scales of each row that minimise its part of tr(E H E^T) with zeros and
  // codes fixed (RefitScales), and as many sweeps again.
  int refits = 0;

  // Report relative_error: about the cost of the rest.
  bool measure_error = true;
};

// What one call works on; everything borrowed for its duration.
struct GptqProblem {
  int64_t out_features = 0;
  int64_t in_features = 0;

  // [out, in] fp32, columns in the order they are quantised in (which the caller chooses; hessian
  // and factor are in it too).
  absl::Span<const float> weights;

  // [in, in] symmetric: for kHessianDiagonal, sweeps, refits and the reported error. Damped like
  // the factor's, or not; its scale does not matter. May be empty when none of them is asked for.
  absl::Span<const double> hessian;

  // [in, in] upper triangular, of the damped Hessian: UpperFactorOfInverse. Empty: no error
  // feedback (round to nearest).
  absl::Span<const double> factor;

  absl::Span<const int32_t> group_offsets;
};

struct GptqResult {
  GptqCodes codes;
  // tr(E H E^T) / tr(W H W^T) with the problem's hessian, E = Q - W (RelativeError); 0 when there
  // is none, none was asked for, or the denominator is 0.
  double relative_error = 0.0;
};

// Rows are independent of each other, and codes, scales and zeros do not depend on the number of
// threads. Whole blocks of 64 rows give bit for bit the same alone as among others.
//
// A group of zeros gets scale 1, zero 0 and codes 0. Scales are rounded to fp16 before codes are
// chosen; one that rounds to 0 becomes 2^-24.
// InvalidArgument: NaN or infinity in the weights or a scale beyond fp16 (row and column named).
//
// `gpu`: a GPU's stream, where matrices are worked on then (GpuGptq); null: all on the pool. A GPU
// adds up in another order, so that of two codes that are as near up to rounding it may choose the
// other, and what is fed on moves with it; the error stays what it was to about its rounding. Then
// also ResourceExhausted, which names what asked for memory.
absl::StatusOr<GptqResult> Gptq(const GptqProblem& problem, const GptqOptions& options,
                                ThreadPool& pool, Stream* gpu = nullptr);

}  // namespace thinwire
