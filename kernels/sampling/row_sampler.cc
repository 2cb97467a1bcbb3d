#include "kernels/sampling/row_sampler.h"

#include <algorithm>
#include <cmath>

namespace thinwire {
namespace {

constexpr int64_t kBlock = 256;

}  // namespace

int64_t RowSampler::ScratchBytes(int64_t vocab) {
  return (kNumBuckets + 1) * static_cast<int64_t>(sizeof(Tally)) +
         (vocab + 7) / 8 * 8 * static_cast<int64_t>(sizeof(Candidate));
}

RowSampler::RowSampler(std::byte* scratch, int64_t vocab)
    : vocab_(vocab),
      tallies_(reinterpret_cast<Tally*>(scratch)),
      candidates_(reinterpret_cast<Candidate*>(tallies_ + kNumBuckets + 1)) {}

void RowSampler::FillTallies() {
  std::fill_n(tallies_, kNumBuckets + 1, Tally{0.0, 0});
  int32_t bucket[kBlock];
  double weight[kBlock];
  for (int64_t begin = 0; begin < vocab_; begin += kBlock) {
    const int64_t n = std::min(kBlock, vocab_ - begin);
    BucketLogits(logits_ + begin, n, scale_, bucket, weight);
    for (int64_t i = 0; i < n; ++i) {
      Tally& tally = tallies_[bucket[i]];
      tally.mass += weight[i];
      ++tally.count;
    }
  }
}

void RowSampler::Gather(int32_t wanted) {
  if (wanted == gathered_bucket_) return;
  gathered_bucket_ = wanted;
  Candidate* end = candidates_;
  int32_t bucket[kBlock];
  for (int64_t begin = 0; begin < vocab_; begin += kBlock) {
    const int64_t n = std::min(kBlock, vocab_ - begin);
    BucketLogits(logits_ + begin, n, scale_, bucket, nullptr);
    for (int64_t i = 0; i < n; ++i) {
      if (bucket[i] == wanted) {
        *end++ = Candidate{logits_[begin + i], static_cast<int32_t>(begin + i)};
      }
    }
  }
  std::sort(candidates_, end, [](const Candidate& a, const Candidate& b) {
    return a.logit != b.logit ? a.logit > b.logit : a.id < b.id;
  });
}

RowSampler::Prefix RowSampler::Walk(int64_t limit, absl::FunctionRef<bool(double mass)> reached) {
  Prefix prefix;
  for (int32_t bucket = 0; bucket < kNumBuckets; ++bucket) {
    const double mass = prefix.mass + tallies_[bucket].mass;
    if (prefix.count + tallies_[bucket].count < limit && !reached(mass)) {
      prefix.count += tallies_[bucket].count;
      prefix.mass = mass;
      continue;
    }
    Gather(bucket);
    for (int64_t i = 0; i < tallies_[bucket].count; ++i) {
      const Candidate& token = candidates_[i];
      ++prefix.count;
      prefix.mass +=
          std::exp((static_cast<double>(token.logit) - scale_.max) * scale_.inverse_temperature);
      prefix.last_id = token.id;
      if (prefix.count == limit || reached(prefix.mass)) return prefix;
    }
    // The bucket's mass was added in another order: here it stayed below by a rounding error.
  }
  return prefix;
}

int32_t RowSampler::Draw(const float* logits, const RowRange& range, const SamplingParams& params,
                         double uniform) {
  logits_ = logits;
  gathered_bucket_ = -1;
  scale_.max = range.max;
  scale_.inverse_temperature = 1.0 / params.temperature;
  const double span = std::min(
      kMaxDepth, (static_cast<double>(range.max) - range.min) * scale_.inverse_temperature);
  scale_.buckets_per_depth = span > 0.0 ? kNumBuckets / span : 0.0;
  FillTallies();
  Prefix kept;
  for (int32_t bucket = 0; bucket < kNumBuckets; ++bucket) {
    kept.count += tallies_[bucket].count;
    kept.mass += tallies_[bucket].mass;
  }
  if (params.top_k > 0 && params.top_k < kept.count) {
    kept = Walk(params.top_k, [](double) { return false; });
  }
  if (params.top_p < 1.0f) {
    const double nucleus = params.top_p * kept.mass;
    kept = Walk(kept.count, [&](double mass) { return mass >= nucleus; });
  }
  const double drawn = uniform * kept.mass;
  return Walk(kept.count, [&](double mass) { return mass > drawn; }).last_id;
}

}  // namespace thinwire
