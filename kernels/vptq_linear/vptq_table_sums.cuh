// Sums of tables' strips in shared memory, added to parts and splits. Private to
// kernels/vptq_linear.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/vptq_linear/vptq_linear_cuda.h"
#include "kernels/vptq_linear/vptq_tables_block.h"

namespace thinwire::vptq {

// Where a warp's sum of a row of x and one of its outputs is: so that a warp writes without
// conflicts.
__device__ inline int PlaceOfSum(int row, int output) {
  return row * kQuadOutputs + (output ^ row / 2 % 4 * 8);
}

// a / b of whole numbers below 2^20, given 1 / b.
__device__ inline int Quotient(int a, float inverse) {
  return static_cast<int>((static_cast<float>(a) + 0.5f) * inverse);
}

// Adds what a block's warps have left of items [begin, end), some rounds at a time. Places are
// counted on, and divided by multiplying: whole divisions would take longer than the sums.
// A thread takes kEach outputs at a time, 1 or 4.
template <int kThreads, int kEach>
class AddSums {
  static_assert(kEach == 1 || kEach == 4);

 public:
  // sums: of rounds, `round_sums` floats each, [warps, rows of x, kQuadOutputs] at PlaceOfSum.
  __device__ AddSums(const VptqTablesCall& call, const float* sums, int num_tokens, int round_sums,
                     int begin, int end)
      : call_(call),
        sums_(sums),
        num_tokens_(num_tokens),
        round_sums_(round_sums),
        per_token_(1.0f / static_cast<float>(num_tokens)),
        per_item_(1.0f / static_cast<float>(call.items_at_once)),
        item_(begin),
        end_(end),
        split_(begin / call.num_quads),
        quad_(begin - split_ * call.num_quads) {}

  // Adds of the next `rounds` what falls to `thread` of the block's, perhaps nothing. Calls wait()
  // before it reads. store(split, token, output, sum).
  template <typename Wait, typename Store>
  __device__ void operator()(int thread, int rounds, const Wait& wait, const Store& store) {
    constexpr int kGroups = kQuadOutputs / kEach;
    const int warp_sums = num_tokens_ * call_.planes * kQuadOutputs;
    const int num_items = min(rounds * call_.items_at_once, end_ - item_);
    const int count = num_items * num_tokens_ * kGroups;
    if (thread < count) wait();
    for (int i = thread; i < count; i += kThreads) {
      const int output = i % kGroups * kEach;
      const int at = Quotient(i / kGroups, per_token_);
      const int token = i / kGroups - at * num_tokens_;
      int split = split_, quad = quad_ + at;
      while (quad >= call_.num_quads) {
        quad -= call_.num_quads;
        ++split;
      }
      const int round = Quotient(at, per_item_);
      const float* from =
          sums_ + round * round_sums_ +
          (at - round * call_.items_at_once) * call_.strips_each * call_.parts_at_once * warp_sums;
      float value[kEach] = {};
      for (int part = 0; part < call_.parts_at_once; ++part) {
        const int before = (split * call_.parts_at_once + part) * call_.strips_each;
        const int strips = min(call_.strips_each, call_.num_strips - before);
        float of_part[kEach] = {}, weight = 1.0f;
        for (int plane = 0; plane < call_.planes; ++plane, weight *= 0x1p-11f) {
          const float* const of_row = from + PlaceOfSum(token * call_.planes + plane, output);
          float sum[kEach] = {};
#pragma unroll kEach == 1 ? 8 : 4
          for (int s = 0; s < strips; ++s) {
            if constexpr (kEach == 4) {
              const float4 v = *reinterpret_cast<const float4*>(of_row + s * warp_sums);
              sum[0] += v.x;
              sum[1] += v.y;
              sum[2] += v.z;
              sum[3] += v.w;
            } else {
              sum[0] += of_row[s * warp_sums];
            }
          }
#pragma unroll
          for (int e = 0; e < kEach; ++e) of_part[e] += weight * sum[e];
        }
#pragma unroll
        for (int e = 0; e < kEach; ++e) value[e] += of_part[e];
        from += call_.strips_each * warp_sums;
      }
      const int64_t row = static_cast<int64_t>(quad) * kVptqQuadRows + output / kVptqRow;
#pragma unroll
      for (int e = 0; e < kEach; ++e) {
        const int element = output % kVptqRow + e;
        const int64_t o = row * call_.length + element - call_.skip;
        if (element >= call_.length || o < 0 || o >= call_.result.out_features) continue;
        store(split, token, o, value[e]);
      }
    }
    item_ += rounds * call_.items_at_once;
    quad_ += rounds * call_.items_at_once;
    while (quad_ >= call_.num_quads) {
      quad_ -= call_.num_quads;
      ++split_;
    }
  }

 private:
  const VptqTablesCall& call_;
  const float* sums_;
  int num_tokens_, round_sums_;
  float per_token_, per_item_;
  // Of the first item that has not been added.
  int item_, end_, split_, quad_;
};

}  // namespace thinwire::vptq
