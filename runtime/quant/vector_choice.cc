#include "runtime/quant/vector_choice.h"

#include <vector>

namespace thinwire {
namespace {

// left [n, length] = x less the vectors of `book` that `indices` say.
void Subtract(absl::Span<const float> book, const int32_t* indices, int64_t n, int length,
              const float* x, float* left) {
  for (int64_t k = 0; k < n; ++k) {
    const float* const from = book.data() + int64_t{indices[k]} * length;
    for (int e = 0; e < length; ++e) left[k * length + e] = x[k * length + e] - from[e];
  }
}

}  // namespace

VectorChoice::VectorChoice(absl::Span<const float> centroids, absl::Span<const float> residual,
                           int length, bool in_turns)
    : centroids_(centroids),
      residual_centroids_(residual),
      length_(length),
      in_turns_(in_turns),
      book_(centroids, length),
      residual_book_(residual.empty() ? centroids : residual, length) {}

float VectorChoice::Distance(const float* target, int32_t index, int32_t residual) const {
  float sum = 0.0f;
  for (int e = 0; e < length_; ++e) {
    const float difference = target[e] - centroids_[int64_t{index} * length_ + e] -
                             residual_centroids_[int64_t{residual} * length_ + e];
    sum += difference * difference;
  }
  return sum;
}

void VectorChoice::ChooseBoth(const float* targets, int64_t n, bool again, int32_t* indices,
                              int32_t* residuals) const {
  std::vector<float> left(static_cast<size_t>(n * length_));
  std::vector<int32_t> tried(static_cast<size_t>(n)), tried_more(tried.size());
  const auto residuals_of = [&](const int32_t* main, int32_t* more) {
    Subtract(centroids_, main, n, length_, targets, left.data());
    residual_book_.Nearest(left.data(), n, more);
  };
  const auto turn = [&](int32_t* main, int32_t* more) {
    Subtract(residual_centroids_, more, n, length_, targets, left.data());
    book_.Nearest(left.data(), n, main);
    residuals_of(main, more);
  };
  book_.Nearest(targets, n, tried.data());
  residuals_of(tried.data(), tried_more.data());
  if (in_turns_) turn(tried.data(), tried_more.data());
  if (again) turn(indices, residuals);
  for (int64_t k = 0; k < n; ++k) {
    const float* const x = targets + k * length_;
    if (again && Distance(x, indices[k], residuals[k]) <= Distance(x, tried[k], tried_more[k])) {
      continue;
    }
    indices[k] = tried[k];
    residuals[k] = tried_more[k];
  }
}

void VectorChoice::Choose(const float* targets, int64_t n, bool again, int32_t* indices,
                          int32_t* residuals, float* values) const {
  if (has_residual()) {
    ChooseBoth(targets, n, again, indices, residuals);
  } else {
    book_.Nearest(targets, n, indices);
  }
  for (int64_t k = 0; k < n; ++k) {
    for (int e = 0; e < length_; ++e) {
      float value = centroids_[int64_t{indices[k]} * length_ + e];
      if (has_residual()) value += residual_centroids_[int64_t{residuals[k]} * length_ + e];
      values[k * length_ + e] = value;
    }
  }
}

}  // namespace thinwire
