// The vectors of a codebook, or of a codebook and a residual's together, nearest to targets.
#pragma once

#include <cstdint>

#include "absl/types/span.h"
#include "kernels/vptq_linear/nearest_vector.h"

namespace thinwire {

// Borrows the books.
class VectorChoice {
 public:
  // centroids: [k, length]; residual: [k_r, length], or empty. `in_turns`: whether the main book's
  // vector is chosen again for what the residual's leaves, and then the residual's.
  VectorChoice(absl::Span<const float> centroids, absl::Span<const float> residual, int length,
               bool in_turns);

  // For n targets [n, length]: indices, residuals (without a residual not looked at) and values [n,
  // length], what they stand for. `again`: indices and residuals are a choice already, which a
  // better one replaces. One thread.
  void Choose(const float* targets, int64_t n, bool again, int32_t* indices, int32_t* residuals,
              float* values) const;

 private:
  bool has_residual() const { return !residual_centroids_.empty(); }
  float Distance(const float* target, int32_t index, int32_t residual) const;
  void ChooseBoth(const float* targets, int64_t n, bool again, int32_t* indices,
                  int32_t* residuals) const;

  absl::Span<const float> centroids_, residual_centroids_;
  const int length_;
  const bool in_turns_;
  VectorBook book_;
  VectorBook residual_book_;  // of no meaning without one
};

}  // namespace thinwire
