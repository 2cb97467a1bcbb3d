// What the files of kernels/sampling share: the backends, and the CPU's loops over one row of
// logits.
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "kernels/core/stream.h"
#include "kernels/sampling/sampling.h"

namespace thinwire {

// Checked arguments in host memory, CPU stream. Internal names the first row with a NaN or without
// a finite maximum.
absl::Status SampleCpu(const SampleArgs& args, Stream& stream);
absl::Status LogProbsCpu(const LogProbArgs& args, Stream& stream);

// The same on a GPU, in builds with CUDA. Masses are whole numbers there, so that a draw within
// 2^-40 of the boundary between two tokens may take the other one.
absl::Status SampleCuda(const SampleArgs& args, Stream& stream);
absl::Status SampleThereCuda(const SampleThereArgs& args, Stream& stream);
absl::Status LogProbsCuda(const LogProbArgs& args, Stream& stream);

// The error of a row with a NaN or without a finite maximum.
absl::Status NoSoftmax(absl::string_view op, int64_t row, const ConstTensorView& logits);

// Smallest and largest of x[0, n), n >= 1; unspecified where has_nan.
struct RowRange {
  float min = 0.0f;
  float max = 0.0f;
  bool has_nan = false;

  // Whether a softmax of the row exists.
  bool HasFiniteMax() const;
};
RowRange RangeOf(const float* x, int64_t n);

// The first index at which x is `value`, which occurs.
int32_t FirstIndexOf(const float* x, int64_t n, float value);

// The sum of exp(x[i] - max), in double.
double SumOfExps(const float* x, int64_t n, float max);

// Buckets of similar logits. Few enough that their tallies stay in the first-level cache, enough
// that one of a 128k vocabulary has some hundred tokens.
inline constexpr int32_t kNumBuckets = 2048;

// The depth of a token is -log(its probability / the largest). From kMaxDepth on, tokens are in no
// bucket.
inline constexpr double kMaxDepth = 64.0;

struct BucketScale {
  float max = 0.0f;  // of the logits
  double inverse_temperature = 1.0;
  double buckets_per_depth = 0.0;
};

// bucket[i] for x[i], i in [0, n): buckets are numbered from the largest logits on, and a larger
// logit is never in a later bucket. kNumBuckets stands for none. weight[i] = exp(-depth), in
// double; may be null.
void BucketLogits(const float* x, int64_t n, const BucketScale& scale, int32_t* bucket,
                  double* weight);

}  // namespace thinwire
