#include "kernels/attention/coded_attention.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/attention/attention_testing.h"
#include "kernels/attention/coded_attention_testing.h"
#include "kernels/attention/kv_codes_testing.h"
#include "kernels/testing/cpu_targets.h"
#include "kernels/testing/rounded.h"

namespace thinwire {
namespace {

using ::testing::HasSubstr;

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

void ExpectMatchesReference(const Case& c, int num_threads, const std::string& where,
                            uint32_t seed = 1) {
  const Problem problem(c, seed);
  problem.Run(num_threads);
  problem.ExpectMatchesReference(where);
}

// Prompts, decode steps and prompts behind a cached prefix, shorter and longer than the chunks of
// keys and the blocks of rows; with and without an exact first key.
const std::vector<Sequence> kMixed = {{1, 1},          {1, 1, true},   {1, 17},       {5, 5, true},
                                      {37, 37, true},  {1, 333, true}, {130, 131},    {2, 300},
                                      {70, 201, true}, {1, 260},       {1, 256, true}};

TEST(CodedPagedAttentionTest, MixedSequencesMatchTheReference) {
  int turn = 0;
  for (const std::vector<Bits>& bits :
       {std::vector<Bits>{{4, 4}}, {{3, 3}}, {{4, 2}}, {{8, 8}}, {{5, 1}, {7, 3}, {2, 2}}}) {
    for (const int64_t group : {1, 2, 4, 8}) {
      ++turn;
      Case c = {kMixed, bits, {{4, 3}, {2, 2}}, kFloatDTypes[turn % 3], kFloatDTypes[turn / 3 % 3]};
      c.num_kv_heads = 2;
      c.group = group;
      ExpectMatchesReference(c, 2, "mixed");
    }
  }
}

TEST(CodedPagedAttentionTest, AllWidthsAndHeadDimsMatchTheReference) {
  const std::vector<Sequence> seqs = {{1, 45, true}, {3, 29}, {19, 31, true}};
  std::mt19937 random(11);
  uint32_t seed = 1;
  for (const int64_t head_dim : {16, 32, 48, 64, 80, 96, 112, 128}) {
    for (int bits = 1; bits <= 8; ++bits) {
      Bits mixed;
      for (int64_t u = 0; u < head_dim / kKvUnit; ++u) {
        mixed.push_back(static_cast<uint8_t>(1 + random() % 8));
      }
      std::sort(mixed.rbegin(), mixed.rend());
      Case c = {seqs, {Uniform(head_dim, bits)}, {mixed}, kFloatDTypes[seed % 3], DType::kF32};
      c.num_kv_heads = 1 + seed % 3;
      c.group = 1 + seed % 5;
      c.page_size = seed % 4 == 0 ? 1 : seed % 4 == 1 ? 5 : seed % 4 == 2 ? 16 : 64;
      if (seed % 2 == 0) std::swap(c.k_bits, c.v_bits);
      ExpectMatchesReference(c, 1 + static_cast<int>(seed % 3), "widths", seed);
      ++seed;
    }
  }
}

TEST(CodedPagedAttentionTest, WindowHidesOldTokensAndTheExactOne) {
  for (const int64_t window : {1, 2, 31, 100, 299, 300, 5000}) {
    Case c = {kMixed, {{3, 3}}, {{4, 2}}, DType::kF16, DType::kF16};
    c.group = 2;
    c.page_size = 8;
    c.window = window;
    ExpectMatchesReference(c, 2, "window");
  }
}

TEST(CodedPagedAttentionTest, ZerosFarFromTheCodesMatchTheReference) {
  Case c = {kMixed, {{3, 3}}, {{4, 2}}, DType::kF32, DType::kF32};
  c.k_shift = c.v_shift = 100.0f;
  ExpectMatchesReference(c, 1, "far zeros");
}

TEST(CodedPagedAttentionTest, EveryInstructionSetMatchesTheReference) {
  ForEachCpuTarget([](absl::string_view target) {
    for (const auto& [k_bits, v_bits] : {std::pair<Bits, Bits>{{4, 4, 4, 4}, {3, 3, 3, 3}},
                                         {{4, 3, 3, 2}, {8, 7, 6, 5}},
                                         {{5, 5, 5, 5}, {1, 1, 1, 1}},
                                         {{8, 8, 8, 8}, {2, 2, 2, 1}}}) {
      for (const int64_t group : {1, 3, 4}) {
        Case c = {{{1, 300, true}, {2, 29}, {45, 120, true}}, {k_bits}, {v_bits}};
        c.group = group;
        c.page_size = 7;
        ExpectMatchesReference(c, 1, std::string(target));
      }
    }
  });
}

TEST(CodedPagedAttentionTest, LargeGroupsShareOneKvHead) {
  Case c = {{{1, 50, true}, {3, 20}}, {{4, 2}}, {{3, 3}}};
  c.group = 71;
  ExpectMatchesReference(c, 2, "group 71");
}

TEST(CodedPagedAttentionTest, SharpScoresDoNotOverflowOrVanish) {
  const Case c = {{{1, 200, true}, {1, 200}, {60, 200, true}, {60, 200}}, {{4}}, {{3}}};
  Problem problem(c);
  problem.args.scale = 30.0f;
  problem.Run(1);
  problem.ExpectMatchesReference("sharp");
}

// A weight of 1 / 20000 is far below any step that 8 bits between 0 and 1 could have.
TEST(CodedPagedAttentionTest, ManySmallWeightsAreKept) {
  const Case c = {{{1, 20000}}, {{2}}, {{8}}};
  Problem problem(c);
  problem.args.scale = 0.0f;
  problem.Run(1);
  problem.ExpectMatchesReference("flat");
}

TEST(CodedPagedAttentionTest, NanInAQueryIsNotHidden) {
  for (const Sequence& seq : {Sequence{1, 300, true}, {1, 1, true}, {1, 3}, {60, 200, true}}) {
    const Case c = {{seq}, {{4}}, {{3}}};
    const Problem problem(c);
    auto* q = static_cast<float*>(const_cast<void*>(problem.args.q.raw()));
    q[5] = kNaN;
    problem.Run(1);
    const std::vector<float> out = problem.Out();
    for (int64_t i = 0; i < 16; ++i) EXPECT_TRUE(std::isnan(out[i]));
  }
}

TEST(CodedPagedAttentionTest, OtherSequencesAndThreadsDoNotChangeAResult) {
  Case c = {kMixed, {{4, 3}}, {{3, 2}}, DType::kF16, DType::kF32};
  c.num_kv_heads = 2;
  c.group = 2;
  const Problem together(c);
  together.Run(1);
  for (const int threads : {2, 3, 5}) {
    const Problem again(c);
    again.Run(threads);
    EXPECT_EQ(again.out_elements(), together.out_elements()) << threads << " threads";
  }
  const std::vector<float> expected = together.Out();
  for (size_t s = 0; s < kMixed.size(); ++s) {
    const Problem single(c);
    CodedPagedAttentionArgs args = single.args;
    const int32_t begin = args.token_offsets[s];
    const int32_t count = args.token_offsets[s + 1] - begin;
    args.q = args.q.Rows(begin, count);
    args.out = args.out.Rows(begin, count);
    const int32_t token_offsets[] = {0, count};
    args.token_offsets = token_offsets;
    args.context_lens = args.context_lens.subspan(s, 1);
    args.page_offsets = args.page_offsets.subspan(s, 2);
    args.exact_rows = args.exact_rows.subspan(s, 1);
    single.Run(args, 1);
    const std::vector<float> found = single.Out();
    for (int64_t t = begin; t < begin + count; ++t) {
      for (int64_t i = 0; i < single.width(); ++i) {
        ASSERT_EQ(found[single.row(t) + i], expected[single.row(t) + i]) << "sequence " << s;
      }
    }
  }
}

// The same tokens in one call and in several, all on one side of the limit of 8 rows.
TEST(CodedPagedAttentionTest, SplitsOfAPromptDoNotChangeAResult) {
  for (const int64_t window : {0, 50, 120, 400}) {
    for (const bool exact : {false, true}) {
      for (const std::vector<int32_t>& ends :
           {std::vector<int32_t>{693, 694, 697, 700}, {1, 2, 4, 8}, {90, 95, 413, 700}}) {
        const bool few = ends[0] != 90;
        const int32_t first = ends[0] == 693 ? 692 : 0;
        Case c = {{{ends.back() - first, ends.back(), exact}}, {{4, 3}}, {{3, 2}}};
        c.group = few ? 1 : 4;
        c.window = window;
        const Problem whole(c);
        whole.Run(1);
        const std::vector<float> expected = whole.Out();
        const Problem split(c);
        int32_t begin = first;
        for (const int32_t end : ends) {
          CodedPagedAttentionArgs args = split.args;
          args.q = args.q.Rows(begin - first, end - begin);
          args.out = args.out.Rows(begin - first, end - begin);
          const int32_t token_offsets[] = {0, end - begin};
          const int32_t context_lens[] = {end};
          args.token_offsets = token_offsets;
          args.context_lens = context_lens;
          split.Run(args, 1);
          begin = end;
        }
        EXPECT_EQ(split.out_elements(), whole.out_elements())
            << "window " << window << ", exact " << exact << ", up to " << ends.back();
      }
    }
  }
}

TEST(CodedPagedAttentionTest, PageSizesDoNotChangeAResult) {
  for (const int32_t num_tokens : {1, 3, 100}) {
    std::vector<uint8_t> expected;
    for (const int64_t page_size : {16, 1, 3, 64, 1000}) {
      Case c = {{{num_tokens, 345, true}}, {{4, 3}}, {{3, 2}}};
      c.group = 2;
      c.page_size = page_size;
      const Problem problem(c);
      problem.Run(2);
      if (expected.empty()) expected = problem.out_elements();
      EXPECT_EQ(problem.out_elements(), expected) << "pages of " << page_size;
    }
  }
}

TEST(CodedPagedAttentionTest, BatchInvariantMeansAnySplitOfTokensAndHeads) {
  ThreadPool pool(1);
  Stream stream = Stream::Cpu(&pool);
  for (const int64_t window : {0, 40}) {
    SCOPED_TRACE(testing::Message() << "window " << window);
    const Case c = {
        {{70, 300, true}}, {Bits{4, 3}}, {Bits{3, 2}}, DType::kF32, DType::kF32, 1, 4, 16, window};
    const Problem whole(c), split(c);
    ExpectTheBitsOfAnySplit(
        whole.args, split.args, c.page_size,
        [&](const CodedPagedAttentionArgs& args) { return CodedPagedAttention(args, stream); });
  }
}

TEST(CodedPagedAttentionTest, NoTokensIsNoWork) {
  const Problem problem({{}, {{4}}, {{4}}});
  problem.Run(1);
}

TEST(CodedPagedAttentionTest, ArgumentsThatDoNotFitAreNamed) {
  Case c = {{{2, 20, true}, {1, 33}}, {{4, 3}}, {{4, 4}}};
  c.num_kv_heads = 2;
  c.group = 2;
  const Problem problem(c);
  ThreadPool pool(1);
  Stream stream = Stream::Cpu(&pool);
  const auto expect = [&](const CodedPagedAttentionArgs& args, const std::string& what) {
    const absl::Status status = CodedPagedAttention(args, stream);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(status.message()), HasSubstr(what));
  };
  CodedPagedAttentionArgs args = problem.args;
  args.v_codes = nullptr;
  expect(args, "no codes");
  args = problem.args;
  std::swap(args.k_pages, args.v_pages);
  expect(args, "expected contiguous uint8 [num_pages, 2, page_size, 14]");
  args = problem.args;
  args.num_heads = 3;
  expect(args, "multiple of num_kv_heads");
  args = problem.args;
  args.num_heads = 6;
  expect(args, "q and out must be [num_tokens, num_heads * head_dim]");
  args = problem.args;
  args.q = args.q.Rows(1, 2);
  expect(args, "q and out must be");
  args = problem.args;
  args.window = -1;
  expect(args, "negative window");
  args = problem.args;
  args.exact_rows = args.exact_rows.subspan(1);
  expect(args, "1 exact_rows: expected 2 or none");
  args = problem.args;
  const int32_t exact_rows[] = {-2, -1};
  args.exact_rows = exact_rows;
  expect(args, "entry 0 of exact_rows is -2");
  args = problem.args;
  args.exact_k = ConstTensorView();
  expect(args, "expected contiguous fp16 [num_rows, 2, 32]");
  args = problem.args;
  args.page_offsets = args.page_offsets.subspan(1);
  expect(args, "page_offsets");
}

}  // namespace
}  // namespace thinwire
