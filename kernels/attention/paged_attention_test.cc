#include "kernels/attention/paged_attention.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "kernels/attention/attention_testing.h"
#include "kernels/attention/paged_attention_testing.h"
#include "kernels/convert/convert.h"
#include "kernels/testing/cpu_targets.h"
#include "kernels/testing/rounded.h"

namespace thinwire {
namespace {

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

void ExpectMatchesReference(const Case& c, int num_threads, const std::string& where) {
  const Problem problem(c);
  ThreadPool pool(num_threads);
  Stream stream = Stream::Cpu(&pool);
  const absl::Status status = PagedAttention(problem.args, stream);
  ASSERT_TRUE(status.ok()) << status;
  problem.ExpectMatchesReference(where);
}

constexpr DType kDTypes[] = {DType::kF32, DType::kF16, DType::kBF16};

// Prompts, decode steps and prompts behind a cached prefix, shorter and longer than the chunks of
// keys and the blocks of rows.
const std::vector<Sequence> kMixed = {{1, 1},   {1, 17},    {5, 5},   {37, 37},
                                      {1, 333}, {130, 131}, {2, 300}, {70, 201}};

TEST(PagedAttentionTest, MixedSequencesOfAllTypesMatchTheReference) {
  for (const DType dtype : kDTypes) {
    for (const int64_t group : {1, 2, 8}) {
      ExpectMatchesReference({kMixed, dtype, 2, group, 16, 16, 0}, 2, "mixed");
    }
  }
}

TEST(PagedAttentionTest, HeadDimsAndPageSizesNeedNotBePowersOfTwo) {
  const std::vector<Sequence> seqs = {{1, 45}, {3, 29}, {19, 31}};
  int turn = 0;
  for (const int64_t head_dim : {1, 2, 7, 16, 20, 32, 64, 80, 128, 131}) {
    for (const int64_t page_size : {1, 5, 16, 64}) {
      ++turn;
      ExpectMatchesReference(
          {seqs, kDTypes[turn % 3], 1 + turn % 3, 1 + turn % 4, head_dim, page_size, 0},
          1 + turn % 3, "dims");
    }
  }
}

TEST(PagedAttentionTest, WindowHidesOldTokens) {
  for (const int64_t window : {1, 2, 31, 100, 5000}) {
    for (const DType dtype : kDTypes) {
      ExpectMatchesReference({kMixed, dtype, 1, 2, 32, 8, window}, 2, "window");
    }
  }
}

TEST(PagedAttentionTest, AWindowOfOneReturnsTheTokensOwnValue) {
  const Case c = {{{1, 40}, {40, 40}}, DType::kF32, 1, 1, 8, 4, 1};
  const Problem problem(c);
  ThreadPool pool(1);
  Stream stream = Stream::Cpu(&pool);
  ASSERT_TRUE(PagedAttention(problem.args, stream).ok());
  const std::vector<float> out = problem.Out();
  const auto* v = problem.args.v_pages.data<float>();
  for (int64_t s = 0; s < 2; ++s) {
    for (int64_t t = problem.args.token_offsets[s]; t < problem.args.token_offsets[s + 1]; ++t) {
      const int64_t position = 40 - (problem.args.token_offsets[s + 1] - t);
      const int64_t id =
          problem.args.page_ids[problem.args.page_offsets[s] + position / c.page_size];
      for (int64_t i = 0; i < c.head_dim; ++i) {
        EXPECT_EQ(out[problem.row(t) + i], v[(id * c.page_size + position % c.page_size) * 8 + i]);
      }
    }
  }
}

TEST(PagedAttentionTest, LargeGroupsShareOneKvHead) {
  ExpectMatchesReference({{{1, 50}, {3, 20}}, DType::kF16, 1, 71, 16, 16, 0}, 2, "group 71");
  ExpectMatchesReference({{{1, 50}, {3, 20}}, DType::kF32, 1, 150, 16, 16, 7}, 2, "group 150");
}

TEST(PagedAttentionTest, EveryInstructionSetMatchesTheReference) {
  ForEachCpuTarget([](absl::string_view target) {
    for (const DType dtype : kDTypes) {
      ExpectMatchesReference({{{1, 300}, {3, 29}, {45, 120}}, dtype, 1, 2, 20, 7, 0}, 1,
                             std::string(target));
      ExpectMatchesReference({{{1, 300}, {3, 29}, {100, 120}}, dtype, 1, 1, 64, 16, 50}, 1,
                             std::string(target));
    }
  });
}

TEST(PagedAttentionTest, SharpScoresDoNotOverflowOrVanish) {
  // Scores of some thousands: one key takes all the weight.
  const Case c = {{{1, 200}, {60, 200}}, DType::kF32, 1, 1, 16, 16, 0};
  Problem problem(c);
  problem.args.scale = 300.0f;
  ThreadPool pool(1);
  Stream stream = Stream::Cpu(&pool);
  ASSERT_TRUE(PagedAttention(problem.args, stream).ok());
  problem.ExpectMatchesReference("sharp");
}

TEST(PagedAttentionTest, NanInACachedKeyIsNotHidden) {
  for (const int32_t num_tokens : {1, 60}) {
    const Case c = {{{num_tokens, 200}}, DType::kF32, 1, 1, 16, 16, 0};
    const Problem problem(c);
    auto* k = const_cast<float*>(problem.args.k_pages.data<float>());
    k[(problem.args.page_ids[2] * 16 + 3) * 16 + 5] = kNaN;  // of token 35
    ThreadPool pool(1);
    Stream stream = Stream::Cpu(&pool);
    ASSERT_TRUE(PagedAttention(problem.args, stream).ok());
    const std::vector<float> out = problem.Out();
    for (int64_t t = 0; t < num_tokens; ++t) {
      for (int64_t i = 0; i < 16; ++i) EXPECT_TRUE(std::isnan(out[problem.row(t) + i]));
    }
  }
}

TEST(PagedAttentionTest, OtherSequencesAndThreadsDoNotChangeAResult) {
  for (const DType dtype : {DType::kF32, DType::kF16}) {
    const Case c = {kMixed, dtype, 2, 2, 24, 16, 0};
    const Problem together(c);
    const std::vector<float> nothing = together.Out();
    ThreadPool one(1);
    Stream alone = Stream::Cpu(&one);
    ASSERT_TRUE(PagedAttention(together.args, alone).ok());
    const std::vector<float> expected = together.Out();
    ASSERT_NE(std::memcmp(expected.data(), nothing.data(), expected.size() * sizeof(float)), 0);
    for (const int threads : {2, 3, 5}) {
      const Problem again(c);
      ThreadPool pool(threads);
      Stream stream = Stream::Cpu(&pool);
      ASSERT_TRUE(PagedAttention(again.args, stream).ok());
      const std::vector<float> found = again.Out();
      EXPECT_EQ(std::memcmp(found.data(), expected.data(), found.size() * sizeof(float)), 0)
          << threads << " threads";
    }
    for (size_t s = 0; s < kMixed.size(); ++s) {
      const Problem single(c);
      PagedAttentionArgs args = single.args;
      const int32_t begin = args.token_offsets[s];
      const int32_t count = args.token_offsets[s + 1] - begin;
      args.q = args.q.Rows(begin, count);
      args.out = args.out.Rows(begin, count);
      const int32_t token_offsets[] = {0, count};
      args.token_offsets = token_offsets;
      args.context_lens = args.context_lens.subspan(s, 1);
      args.page_offsets = args.page_offsets.subspan(s, 2);
      ASSERT_TRUE(PagedAttention(args, alone).ok());
      const std::vector<float> found = single.Out();
      for (int64_t t = begin; t < begin + count; ++t) {
        for (int64_t i = 0; i < single.width(); ++i) {
          ASSERT_EQ(found[single.row(t) + i], expected[single.row(t) + i]) << "sequence " << s;
        }
      }
    }
  }
}

TEST(PagedAttentionTest, BatchInvariantMeansAnySplitOfTokensAndHeads) {
  ThreadPool pool(1);
  Stream stream = Stream::Cpu(&pool);
  for (const int64_t window : {0, 40}) {
    SCOPED_TRACE(testing::Message() << "window " << window);
    const Case c = {{{70, 300}}, DType::kF32, 1, 4, 24, 16, window};
    const Problem whole(c), split(c);
    ExpectTheBitsOfAnySplit(
        whole.args, split.args, c.page_size,
        [&](const PagedAttentionArgs& args) { return PagedAttention(args, stream); });
  }
}

TEST(PagedAttentionTest, NoTokensIsNoWork) {
  const Problem problem({{}, DType::kF32, 1, 1, 16, 16, 0});
  ThreadPool pool(1);
  Stream stream = Stream::Cpu(&pool);
  EXPECT_TRUE(PagedAttention(problem.args, stream).ok());
}

TEST(PagedAttentionTest, ArgumentsThatDoNotFitAreNamed) {
  const Case c = {{{2, 20}, {1, 33}}, DType::kF16, 2, 2, 16, 16, 0};
  const Problem problem(c);
  ThreadPool pool(1);
  Stream stream = Stream::Cpu(&pool);
  const auto expect_named = [&](const PagedAttentionArgs& args, absl::string_view name) {
    const absl::Status status = PagedAttention(args, stream);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_NE(status.message().find(name), absl::string_view::npos) << status;
  };
  PagedAttentionArgs args = problem.args;
  args.num_heads = 3;
  expect_named(args, "3 heads");
  args = problem.args;
  args.q = args.q.Columns(0, 32);
  expect_named(args, "q fp16[3, 32]");
  args = problem.args;
  const int32_t short_context[] = {1, 33};
  args.context_lens = short_context;
  expect_named(args, "sequence 0 has 2 query tokens in a context of 1");
  const int32_t long_context[] = {20, 64};
  args.context_lens = long_context;
  expect_named(args, "4 pages for a context of 64");
  args = problem.args;
  const int32_t offsets[] = {0, 2, 4};
  args.token_offsets = offsets;
  expect_named(args, "expected 0 to 3");
  args = problem.args;
  std::vector<int32_t> page_ids(args.page_ids.begin(), args.page_ids.end());
  page_ids[1] = 99;
  args.page_ids = page_ids;
  expect_named(args, "page 99");
}

TEST(KvWriteTest, RowsLandInTheirSlots) {
  for (const DType dtype : kDTypes) {
    constexpr int64_t kTokens = 7, kHeads = 3, kDim = 5, kPage = 4, kPages = 6, kGap = 2;
    constexpr int64_t kWidth = kHeads * kDim;
    std::vector<float> k(kTokens * (kWidth + kGap)), v(k.size());
    std::iota(k.begin(), k.end(), 1.0f);
    std::iota(v.begin(), v.end(), 101.0f);
    const std::vector<uint8_t> k_elements = Elements(dtype, k), v_elements = Elements(dtype, v);
    const std::vector<float> empty(kPages * kHeads * kPage * kDim, -1.0f);
    std::vector<uint8_t> k_pages = Elements(dtype, empty), v_pages = k_pages;
    const std::vector<int64_t> slots = {3, 4, 0, 23, 9, 10, 16};
    ThreadPool pool(2);
    Stream stream = Stream::Cpu(&pool);
    KvWriteArgs args;
    args.k = ConstTensorView(k_elements.data(), dtype, {kTokens, kWidth + kGap}).Columns(0, kWidth);
    args.v = ConstTensorView(v_elements.data(), dtype, {kTokens, kWidth + kGap}).Columns(0, kWidth);
    args.slots = slots;
    args.k_pages = TensorView(k_pages.data(), dtype, {kPages, kHeads, kPage, kDim});
    args.v_pages = TensorView(v_pages.data(), dtype, {kPages, kHeads, kPage, kDim});
    ASSERT_TRUE(KvWrite(args, stream).ok());
    std::vector<float> k_expected = empty, v_expected = empty;
    for (int64_t t = 0; t < kTokens; ++t) {
      for (int64_t h = 0; h < kHeads; ++h) {
        for (int64_t i = 0; i < kDim; ++i) {
          const int64_t to =
              ((slots[t] / kPage * kHeads + h) * kPage + slots[t] % kPage) * kDim + i;
          k_expected[to] = k[t * (kWidth + kGap) + h * kDim + i];
          v_expected[to] = v[t * (kWidth + kGap) + h * kDim + i];
        }
      }
    }
    EXPECT_EQ(k_pages, Elements(dtype, k_expected));
    EXPECT_EQ(v_pages, Elements(dtype, v_expected));
  }
}

TEST(KvWriteTest, ArgumentsThatDoNotFitAreNamed) {
  std::vector<float> rows(size_t{2} * 8), pages(size_t{3} * 2 * 4 * 4);
  ThreadPool pool(1);
  Stream stream = Stream::Cpu(&pool);
  const std::vector<int64_t> slots = {1, 12};
  KvWriteArgs args;
  args.k = args.v = ConstTensorView(rows.data(), DType::kF32, {2, 8});
  args.k_pages = args.v_pages = TensorView(pages.data(), DType::kF32, {3, 2, 4, 4});
  args.slots = slots;
  const absl::Status slot = KvWrite(args, stream);
  EXPECT_EQ(slot.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_NE(slot.message().find("slot 12 of token 1: expected 0 to 11"), absl::string_view::npos);
  args.slots = absl::MakeConstSpan(slots).subspan(0, 1);
  const absl::Status count = KvWrite(args, stream);
  EXPECT_EQ(count.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_NE(count.message().find("1 slots"), absl::string_view::npos);
  args.k = args.v = ConstTensorView(nullptr, DType::kF32, {0, 8});
  args.slots = {};
  EXPECT_TRUE(KvWrite(args, stream).ok());
}

}  // namespace
}  // namespace thinwire
