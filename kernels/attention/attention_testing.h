// For tests of attention over pages of floats and of codes: what both check alike.
#pragma once

#include <cstdint>
#include <cstring>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/convert/convert.h"
#include "kernels/core/dtype.h"

namespace thinwire {

inline std::vector<uint8_t> Elements(DType dtype, const std::vector<float>& values) {
  const auto n = static_cast<int64_t>(values.size());
  std::vector<uint8_t> elements(static_cast<size_t>(DTypeBytes(dtype, n)));
  ConvertFromFloat(values.data(), elements.data(), dtype, n);
  return elements;
}

inline std::vector<float> Floats(DType dtype, const std::vector<uint8_t>& elements) {
  std::vector<float> values(elements.size() * 8 / static_cast<size_t>(DTypeBits(dtype)));
  ConvertToFloat(elements.data(), dtype, values.data(), static_cast<int64_t>(values.size()));
  return values;
}

// One sequence with one KV head: attend(args) on all of `whole`, then on one query head of one
// token of `split` at a time, as decoding with another cut of the heads would. Both are the same
// call with results of their own; batch_invariant is set here.
template <typename Args, typename Attend>
void RunWholeAndSplit(Args whole, const Args& split, int64_t page_size, Attend attend) {
  whole.batch_invariant = true;
  ASSERT_TRUE(attend(whole).ok());
  const auto tokens = static_cast<int32_t>(whole.q.dim(0));
  const int32_t context = whole.context_lens[0];
  const int64_t head_dim = whole.q.dim(1) / whole.num_heads;
  for (int32_t t = 0; t < tokens; ++t) {
    for (int64_t head = 0; head < whole.num_heads; ++head) {
      Args args = split;
      args.batch_invariant = true;
      args.q = args.q.Rows(t, 1).Columns(head * head_dim, head_dim);
      args.out = args.out.Rows(t, 1).Columns(head * head_dim, head_dim);
      args.num_heads = 1;
      const int32_t token_offsets[] = {0, 1};
      const int32_t context_lens[] = {context - tokens + t + 1};
      const int32_t page_offsets[] = {
          0, static_cast<int32_t>((context_lens[0] + page_size - 1) / page_size)};
      args.token_offsets = token_offsets;
      args.context_lens = context_lens;
      args.page_offsets = page_offsets;
      args.page_ids = args.page_ids.subspan(0, page_offsets[1]);
      ASSERT_TRUE(attend(args).ok());
    }
  }
}

// In fp32 on the CPU: both have the same bits.
template <typename Args, typename Attend>
void ExpectTheBitsOfAnySplit(const Args& whole, const Args& split, int64_t page_size,
                             Attend attend) {
  RunWholeAndSplit(whole, split, page_size, attend);
  const int64_t head_dim = whole.q.dim(1) / whole.num_heads;
  for (int64_t t = 0; t < whole.q.dim(0); ++t) {
    EXPECT_EQ(std::memcmp(whole.out.Rows(t, 1).raw(), split.out.Rows(t, 1).raw(),
                          whole.num_heads * head_dim * sizeof(float)),
              0)
        << "token " << t;
  }
}

}  // namespace thinwire
