// Draws one token from one row of logits without sorting the row.
#pragma once

#include <cstddef>
#include <cstdint>

#include "absl/functional/function_ref.h"
#include "kernels/sampling/sampling_internal.h"

namespace thinwire {

// Tokens are counted and weighed in buckets of similar logits, in one pass. Each of the three cuts
// - the k-th token, the nucleus, the draw - then walks over whole buckets and sorts only the one it
// ends in.
//
// Tokens whose probability is below e^-64 of the largest are left out: even a million of them
// changes no bit of a sum in double that contains the largest, so that no cut and no draw ever ends
// in one.
class RowSampler {
 public:
  static int64_t ScratchBytes(int64_t vocab);

  // Borrows `scratch`, ScratchBytes(vocab) bytes aligned to 8; its contents need no initialisation.
  RowSampler(std::byte* scratch, int64_t vocab);

  // params: valid, temperature > 0. range: of this row, with a finite maximum. uniform: in [0, 1).
  int32_t Draw(const float* logits, const RowRange& range, const SamplingParams& params,
               double uniform);

 private:
  struct Candidate {
    float logit;
    int32_t id;
  };

  // The first tokens in the order of Sample.
  struct Prefix {
    int64_t count = 0;
    double mass = 0.0;
    int32_t last_id = 0;
  };

  struct Tally {
    double mass;
    int64_t count;
  };

  void FillTallies();

  // The tokens of a bucket, sorted, in candidates_.
  void Gather(int32_t bucket);

  // The shortest prefix of `limit` tokens or of a mass that satisfies `reached`. 1 <= limit <= all.
  Prefix Walk(int64_t limit, absl::FunctionRef<bool(double mass)> reached);

  const int64_t vocab_;
  Tally* tallies_;         // [kNumBuckets + 1], the last of tokens in no bucket
  Candidate* candidates_;  // [vocab], those of gathered_bucket_
  int32_t gathered_bucket_ = -1;

  // Of the row at hand.
  const float* logits_ = nullptr;
  BucketScale scale_;
};

}  // namespace thinwire
