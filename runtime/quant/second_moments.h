// First and second moments of a linear layer's input over calibration rows: what GPTQ, range
// selection and bias correction are computed from.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "kernels/core/thread_pool.h"

namespace thinwire {

// Sums over rows x of [n, width] and, where a target stream y is kept, over pairs of rows (x, y):
//   count, sum x, sum x x^T, min x, max x;  sum (y - x), sum (y - x) x^T.
// Products are formed in fp32 on blocks of rows whose means were taken off (so a channel that sits
// at 100 with a deviation of 0.1 keeps its variance) and are added up in double. The sums depend on
// how rows were divided among calls of Add, never on the number of threads. Memory: 8 width^2
// bytes, twice that with a target. Copyable.
class SecondMoments {
 public:
  // width >= 0. with_target: Add takes y and the cross moments are kept.
  SecondMoments(int64_t width, bool with_target);

  // Adds rows x[t * x_stride + c], t < num_rows, c < width; y likewise, null exactly when there is
  // no target. y - x is formed in fp32. num_rows may be 0.
  // InvalidArgument names row and channel of the first NaN or infinity; nothing was added then.
  absl::Status Add(const float* x, int64_t x_stride, const float* y, int64_t y_stride,
                   int64_t num_rows, ThreadPool& pool);

  // Adds another's rows. Same width, same kind. Adding ranks' parts in rank order gives the same
  // bits on every rank.
  void Merge(const SecondMoments& other);

  int64_t width() const { return width_; }
  bool with_target() const { return with_target_; }
  int64_t count() const { return static_cast<int64_t>(sums_[0]); }

  // Whatever adds up, in one block, to send between ranks: [count, sum x [width], sum x x^T
  // [width, width] of which the upper triangle is valid and the rest is zero; with a target: sum
  // (y - x) [width], sum (y - x) x^T [width, width]]. Element-wise addition is Merge.
  absl::Span<const double> sums() const { return sums_; }
  absl::Span<double> mutable_sums() { return absl::MakeSpan(sums_); }

  // Per channel [width]; +infinity and -infinity before the first row. Element-wise minimum and
  // maximum is Merge.
  absl::Span<const float> minima() const { return minima_; }
  absl::Span<const float> maxima() const { return maxima_; }
  absl::Span<float> mutable_minima() { return absl::MakeSpan(minima_); }
  absl::Span<float> mutable_maxima() { return absl::MakeSpan(maxima_); }

  // [width] mean of x, and of y - x. Zero before the first row.
  std::vector<double> Mean() const;
  std::vector<double> TargetShiftMean() const;

  // [width, width], all of it: mean of x x^T, less mean x mean x^T where centred. GPTQ's H up to a
  // constant factor (H = 2 E[x x^T]). Symmetric bit for bit, the diagonal >= 0. Zero before the
  // first row. `pool`: whose threads share the rows, or null; the same bits.
  std::vector<double> Hessian(bool centred, ThreadPool* pool = nullptr) const;

  // [width, width]: mean of (y - x) x^T, less the product of the means where centred.
  std::vector<double> TargetShift(bool centred, ThreadPool* pool = nullptr) const;

  // [width]: mean of x^2, centred or not: the diagonal of Hessian.
  std::vector<double> Variance(bool centred) const;

 private:
  double* Product();  // sum x x^T
  const double* Product() const;
  const double* Shift() const;  // sum (y - x), then sum (y - x) x^T
  std::vector<double> MeanOf(const double* sums) const;

  int64_t width_;
  bool with_target_;
  std::vector<double> sums_;
  std::vector<float> minima_;
  std::vector<float> maxima_;
};

}  // namespace thinwire
