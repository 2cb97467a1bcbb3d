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
template <int kThreads>
class AddSums {
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

  // All threads of the block: the next `rounds`. store(split, token, output, sum).
  template <typename Store>
  __device__ void operator()(int rounds, const Store& store) {
    const int warp_sums = num_tokens_ * call_.planes * kQuadOutputs;
    const int num_items = min(rounds * call_.items_at_once, end_ - item_);
    for (int i = threadIdx.x; i < num_items * num_tokens_ * kQuadOutputs; i += kThreads) {
      const int element = i % kVptqRow, row = i / kVptqRow % kVptqQuadRows;
      const int at = Quotient(i / kQuadOutputs, per_token_);
      const int token = i / kQuadOutputs - at * num_tokens_;
      int split = split_, quad = quad_ + at;
      while (quad >= call_.num_quads) {
        quad -= call_.num_quads;
        ++split;
      }
      const int64_t o =
          (static_cast<int64_t>(quad) * kVptqQuadRows + row) * call_.length + element - call_.skip;
      if (element >= call_.length || o < 0 || o >= call_.result.out_features) continue;
      const int round = Quotient(at, per_item_);
      const float* from =
          sums_ + round * round_sums_ +
          (at - round * call_.items_at_once) * call_.strips_each * call_.parts_at_once * warp_sums;
      float value = 0.0f;
      for (int part = 0; part < call_.parts_at_once; ++part) {
        const int before = (split * call_.parts_at_once + part) * call_.strips_each;
        const int strips = min(call_.strips_each, call_.num_strips - before);
        float of_part = 0.0f, weight = 1.0f;
        for (int plane = 0; plane < call_.planes; ++plane, weight *= 0x1p-11f) {
          const float* const of_row =
              from + PlaceOfSum(token * call_.planes + plane, i % kQuadOutputs);
          float sum = 0.0f;
#pragma unroll 8
          for (int s = 0; s < strips; ++s) sum += of_row[s * warp_sums];
          of_part += weight * sum;
        }
        value += of_part;
        from += call_.strips_each * warp_sums;
      }
      store(split, token, o, value);
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
