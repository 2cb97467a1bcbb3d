// Draws one token from one row of logits with a block of threads, without sorting the row: as
// row_sampler.h, but with masses as whole numbers, so that sums do not depend on the order in which
// threads add.
#pragma once

#include <cstdint>

#include "kernels/core/vectors.cuh"
#include "kernels/sampling/sampling_internal.h"

namespace thinwire {

// How to draw from a row, for the GPU.
struct RowDraw {
  double inverse_temperature = 1.0;
  double uniform = 0.0;
  double top_p = 1.0;
  int32_t top_k = 0;
  bool greedy = true;
};

inline constexpr int kSamplerThreads = 1024;

// The weight of the largest logit. Sums of 2^31 tokens stay below 2^63; of 2^17, a weight counts
// down to 2^-45 of the largest.
__host__ __device__ inline double UnitWeight(int64_t vocab) {
  int bits = 0;
  while ((int64_t{1} << bits) < vocab) ++bits;
  return static_cast<double>(uint64_t{1} << (62 - bits));
}

// Counts and masses of kNumBuckets buckets in shared memory. 32-bit words, whose atomics are fast.
struct Tallies {
  uint32_t count[kNumBuckets];
  uint32_t low[kNumBuckets];
  uint32_t high[kNumBuckets];

  __device__ void Clear() {
    for (int i = threadIdx.x; i < kNumBuckets; i += kSamplerThreads) {
      count[i] = low[i] = high[i] = 0;
    }
    __syncthreads();
  }

  __device__ void Add(int bucket, uint64_t mass) {
    atomicAdd(&count[bucket], 1u);
    const auto added = static_cast<uint32_t>(mass);
    const uint32_t before = atomicAdd(&low[bucket], added);
    const uint32_t carry = before + added < before ? 1 : 0;
    const uint32_t above = static_cast<uint32_t>(mass >> 32) + carry;
    if (above != 0) atomicAdd(&high[bucket], above);
  }

  __device__ uint64_t mass(int bucket) const {
    return static_cast<uint64_t>(high[bucket]) << 32 | low[bucket];
  }
};

// The first tokens in the order of Sample.
struct Prefix {
  uint64_t count = 0;
  uint64_t mass = 0;
};

struct SamplerShared {
  Tallies coarse;  // of all tokens, by depth
  Tallies fine;    // of those in question, by some bits of their key
  Prefix warps[32];
  Prefix before;  // what Find found: the bucket, and all before it
  int bucket;
  int32_t id;
};

// Ascends as logits descend; -0 is +0.
__device__ __forceinline__ uint32_t DescendingKey(float logit) {
  const uint32_t bits = __float_as_uint(logit + 0.0f);
  return ~(bits ^ ((bits & 0x80000000u) != 0 ? 0xffffffffu : 0x80000000u));
}

class BlockSampler {
 public:
  __device__ BlockSampler(const float* logits, int64_t vocab, SamplerShared& shared)
      : logits_(logits), vocab_(vocab), unit_(UnitWeight(vocab)), shared_(shared) {}

  // min, max: of the row, finite max. On all threads.
  __device__ int32_t Draw(float min, float max, const RowDraw& draw) {
    max_ = max;
    inverse_temperature_ = draw.inverse_temperature;
    const double span = fmin(kMaxDepth, (static_cast<double>(max) - min) * inverse_temperature_);
    buckets_per_depth_ = span > 0.0 ? kNumBuckets / span : 0.0;
    shared_.coarse.Clear();
    for (int64_t i = threadIdx.x; i < vocab_; i += kSamplerThreads) {
      shared_.coarse.Add(Bucket(logits_[i]), Weight(logits_[i]));
    }
    __syncthreads();
    constexpr uint64_t kNever = ~uint64_t{0};
    Prefix kept = Find(shared_.coarse, kNever, kNever);
    uint32_t key = 0;
    uint64_t number = 0;  // among the tokens of that key
    if (draw.top_k > 0 && static_cast<uint64_t>(draw.top_k) < kept.count) {
      kept = Walk(draw.top_k, kNever, &key, &number);
    }
    if (draw.top_p < 1.0) {
      const auto nucleus = static_cast<uint64_t>(ceil(draw.top_p * static_cast<double>(kept.mass)));
      kept = Walk(kept.count, min64(nucleus, kept.mass), &key, &number);
    }
    const auto drawn = static_cast<uint64_t>(draw.uniform * static_cast<double>(kept.mass));
    Walk(kept.count, min64(drawn + 1, kept.mass), &key, &number);
    return IdOf(key, number);
  }

 private:
  static __device__ uint64_t min64(uint64_t a, uint64_t b) { return a < b ? a : b; }

  __device__ double Depth(float logit) const {
    return (static_cast<double>(max_) - logit) * inverse_temperature_;
  }

  // A larger logit is never in a later bucket.
  __device__ int Bucket(float logit) const {
    return static_cast<int>(
        fmin(Depth(logit) * buckets_per_depth_, static_cast<double>(kNumBuckets - 1)));
  }

  __device__ uint64_t Weight(float logit) const {
    return __double2ull_rn(exp(-Depth(logit)) * unit_);
  }

  // Leaves in shared_.bucket the first bucket that makes the prefix `limit` tokens or `target` of
  // mass, in shared_.before what comes before it. Returns all of the tallies.
  __device__ Prefix Find(const Tallies& tallies, uint64_t limit, uint64_t target) {
    constexpr int kPerThread = kNumBuckets / kSamplerThreads;
    const int first = threadIdx.x * kPerThread;
    Prefix own;
#pragma unroll
    for (int i = 0; i < kPerThread; ++i) {
      own.count += tallies.count[first + i];
      own.mass += tallies.mass(first + i);
    }
    const unsigned lane = threadIdx.x % 32;
    Prefix sum = own;  // up to and with this thread, within the warp
#pragma unroll
    for (int distance = 1; distance < 32; distance *= 2) {
      const uint64_t count = __shfl_up_sync(0xffffffffu, sum.count, distance);
      const uint64_t mass = __shfl_up_sync(0xffffffffu, sum.mass, distance);
      if (lane >= distance) {
        sum.count += count;
        sum.mass += mass;
      }
    }
    if (lane == 31) shared_.warps[threadIdx.x / 32] = sum;
    __syncthreads();
    Prefix all;
    Prefix before;
    for (int warp = 0; warp < kSamplerThreads / 32; ++warp) {
      if (warp == static_cast<int>(threadIdx.x / 32)) before = all;
      all.count += shared_.warps[warp].count;
      all.mass += shared_.warps[warp].mass;
    }
    before.count += sum.count - own.count;
    before.mass += sum.mass - own.mass;
#pragma unroll
    for (int i = 0; i < kPerThread; ++i) {
      const Prefix after = {before.count + tallies.count[first + i],
                            before.mass + tallies.mass(first + i)};
      const bool reached_before = before.count >= limit || before.mass >= target;
      if (!reached_before && (after.count >= limit || after.mass >= target)) {
        shared_.bucket = first + i;
        shared_.before = before;
      }
      before = after;
    }
    __syncthreads();
    return all;
  }

  // The shortest prefix of `limit` tokens, at most all, or a mass of `target`, above 0 and at most
  // that of all; its last token is number *number of those with *key.
  __device__ Prefix Walk(uint64_t limit, uint64_t target, uint32_t* key, uint64_t* number) {
    Find(shared_.coarse, limit, target);
    const int bucket = shared_.bucket;
    Prefix before = shared_.before;
    uint32_t prefix = 0;  // the bits of the key that are known
    // Bits 21 to 31, then 10 to 20, then 0 to 9.
    for (int shift = 21, known = 32; known > 0; known = shift, shift = shift == 21 ? 10 : 0) {
      __syncthreads();
      shared_.fine.Clear();
      const uint32_t mask = (1u << (known - shift)) - 1;
      for (int64_t i = threadIdx.x; i < vocab_; i += kSamplerThreads) {
        const float logit = logits_[i];
        const uint32_t candidate = DescendingKey(logit);
        if (known < 32 && candidate >> known != prefix) continue;
        if (Bucket(logit) != bucket) continue;
        shared_.fine.Add(static_cast<int>(candidate >> shift & mask), Weight(logit));
      }
      __syncthreads();
      Find(shared_.fine, limit - before.count, target - before.mass);
      before.count += shared_.before.count;
      before.mass += shared_.before.mass;
      prefix = (known < 32 ? prefix << (known - shift) : 0) | static_cast<uint32_t>(shared_.bucket);
    }
    *key = prefix;
    const uint64_t equals = shared_.fine.count[shared_.bucket];
    const uint64_t weight = shared_.fine.mass(shared_.bucket) / equals;
    uint64_t taken = min64(limit - before.count, equals);
    if (weight > 0) {
      const uint64_t wanted = target - before.mass;
      taken = min64(taken, wanted / weight + (wanted % weight != 0 ? 1 : 0));
    }
    *number = taken - 1;
    __syncthreads();
    return {before.count + taken, before.mass + taken * weight};
  }

  // The token with the number-th smallest id, from 0 on, of those with `key`.
  __device__ int32_t IdOf(uint32_t key, uint64_t number) {
    uint64_t before = 0;
    for (int64_t begin = 0; begin < vocab_; begin += kSamplerThreads) {
      const int64_t i = begin + threadIdx.x;
      const bool found = i < vocab_ && DescendingKey(logits_[i]) == key;
      const int here = __syncthreads_count(found);
      if (before + here <= number) {
        before += here;
        continue;
      }
      // Ranks of the matches in this tile, one warp after another.
      const unsigned matches = __ballot_sync(0xffffffffu, found);
      if (threadIdx.x % 32 == 0) shared_.warps[threadIdx.x / 32].count = __popc(matches);
      __syncthreads();
      uint64_t rank = before + __popc(matches & ((1u << (threadIdx.x % 32)) - 1));
      for (unsigned warp = 0; warp < threadIdx.x / 32; ++warp) rank += shared_.warps[warp].count;
      if (found && rank == number) shared_.id = static_cast<int32_t>(i);
      break;
    }
    __syncthreads();
    return shared_.id;
  }

  const float* logits_;
  int64_t vocab_;
  double unit_;
  SamplerShared& shared_;
  float max_ = 0.0f;
  double inverse_temperature_ = 1.0;
  double buckets_per_depth_ = 0.0;
};

}  // namespace thinwire
