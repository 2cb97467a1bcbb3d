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
#include "kernels/convert/convert.h"
#include "kernels/testing/cpu_targets.h"
#include "kernels/testing/rounded.h"

namespace thinwire {
namespace {

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

struct Sequence {
  int32_t num_tokens;
  int32_t context;
};

struct Case {
  std::vector<Sequence> seqs;
  DType dtype = DType::kF32;
  int64_t num_kv_heads = 1;
  int64_t group = 1;
  int64_t head_dim = 16;
  int64_t page_size = 16;
  int64_t window = 0;
};

std::vector<uint8_t> Elements(DType dtype, const std::vector<float>& values) {
  const auto n = static_cast<int64_t>(values.size());
  std::vector<uint8_t> elements(static_cast<size_t>(DTypeBytes(dtype, n)));
  ConvertFromFloat(values.data(), elements.data(), dtype, n);
  return elements;
}

std::vector<float> Floats(DType dtype, const std::vector<uint8_t>& elements) {
  std::vector<float> values(elements.size() * 8 / static_cast<size_t>(DTypeBits(dtype)));
  ConvertToFloat(elements.data(), dtype, values.data(), static_cast<int64_t>(values.size()));
  return values;
}

// A call's arguments and their memory. The pages of the sequences are shuffled among each other and
// among unused ones; what no sequence may read, gaps between rows of q and all rows beyond a
// context, is NaN.
class Problem {
 public:
  explicit Problem(const Case& c, uint32_t seed = 1) : c_(c) {
    std::mt19937 random(seed);
    std::uniform_real_distribution<float> uniform(-1.0f, 1.0f);
    const int64_t width = c.num_kv_heads * c.group * c.head_dim;
    token_offsets_.push_back(0);
    page_offsets_.push_back(0);
    for (const Sequence& seq : c.seqs) {
      token_offsets_.push_back(token_offsets_.back() + seq.num_tokens);
      context_lens_.push_back(seq.context);
      page_offsets_.push_back(page_offsets_.back() +
                              static_cast<int32_t>((seq.context + c.page_size - 1) / c.page_size));
    }
    const int64_t num_pages = page_offsets_.back() + 3;
    page_ids_.resize(static_cast<size_t>(num_pages));
    std::iota(page_ids_.begin(), page_ids_.end(), 0);
    std::shuffle(page_ids_.begin(), page_ids_.end(), random);
    const int64_t num_tokens = token_offsets_.back();
    q_ = std::vector<float>(static_cast<size_t>(num_tokens * (width + kGap)), kNaN);
    for (int64_t t = 0; t < num_tokens; ++t) {
      for (int64_t i = 0; i < width; ++i) q_[t * (width + kGap) + i] = 2.0f * uniform(random);
    }
    const int64_t page = c.num_kv_heads * c.page_size * c.head_dim;
    k_ = std::vector<float>(static_cast<size_t>(num_pages * page), kNaN);
    v_ = k_;
    for (size_t s = 0; s < c.seqs.size(); ++s) {
      for (int64_t j = 0; j < context_lens_[s]; ++j) {
        for (int64_t h = 0; h < c.num_kv_heads; ++h) {
          const int64_t id = page_ids_[page_offsets_[s] + j / c.page_size];
          const int64_t row = id * page + (h * c.page_size + j % c.page_size) * c.head_dim;
          for (int64_t i = 0; i < c.head_dim; ++i) {
            k_[row + i] = 2.0f * uniform(random);
            v_[row + i] = uniform(random);
          }
        }
      }
    }
    q_elements_ = Elements(c.dtype, q_);
    k_elements_ = Elements(c.dtype, k_);
    v_elements_ = Elements(c.dtype, v_);
    out_elements_.resize(q_elements_.size(), 0xff);  // NaN in each dtype
    args.q =
        ConstTensorView(q_elements_.data(), c.dtype, {num_tokens, width + kGap}).Columns(0, width);
    args.out =
        TensorView(out_elements_.data(), c.dtype, {num_tokens, width + kGap}).Columns(0, width);
    args.token_offsets = token_offsets_;
    args.context_lens = context_lens_;
    args.page_offsets = page_offsets_;
    args.page_ids = absl::MakeConstSpan(page_ids_).subspan(0, page_offsets_.back());
    args.k_pages = ConstTensorView(k_elements_.data(), c.dtype,
                                   {num_pages, c.num_kv_heads, c.page_size, c.head_dim});
    args.v_pages = ConstTensorView(v_elements_.data(), c.dtype,
                                   {num_pages, c.num_kv_heads, c.page_size, c.head_dim});
    args.num_heads = c.num_kv_heads * c.group;
    args.scale = 1.0f / std::sqrt(static_cast<float>(c.head_dim));
    args.window = c.window;
  }

  int64_t width() const { return args.q.dim(1); }
  int64_t row(int64_t token) const { return token * (width() + kGap); }
  std::vector<float> Out() const { return Floats(c_.dtype, out_elements_); }

  // Compares out with the reference.
  void ExpectMatchesReference(const std::string& where) const {
    // The same in fp32, which holds every value exactly: the reference is rounded once, to fp32.
    const std::vector<float> q = Floats(c_.dtype, q_elements_);
    const std::vector<float> k = Floats(c_.dtype, k_elements_);
    std::vector<float> v = Floats(c_.dtype, v_elements_);
    const int64_t num_tokens = args.q.dim(0);
    const ConstTensorView& pages = args.k_pages;
    std::vector<float> expected(static_cast<size_t>(num_tokens * width()));
    std::vector<float> magnitude(expected.size());
    PagedAttentionArgs wide = args;
    wide.q =
        ConstTensorView(q.data(), DType::kF32, {num_tokens, width() + kGap}).Columns(0, width());
    wide.k_pages = ConstTensorView(k.data(), DType::kF32,
                                   {pages.dim(0), pages.dim(1), pages.dim(2), pages.dim(3)});
    wide.v_pages = ConstTensorView(v.data(), DType::kF32,
                                   {pages.dim(0), pages.dim(1), pages.dim(2), pages.dim(3)});
    wide.out = TensorView(expected.data(), DType::kF32, {num_tokens, width()});
    ASSERT_TRUE(PagedAttentionReference(wide).ok());
    for (float& value : v) value = std::abs(value);
    wide.out = TensorView(magnitude.data(), DType::kF32, {num_tokens, width()});
    ASSERT_TRUE(PagedAttentionReference(wide).ok());

    const std::vector<float> found = Out();
    for (size_t s = 0; s < c_.seqs.size(); ++s) {
      // With u = 2^-24: a score, of head_dim products with |q|, |k| <= 2 and a scaled q, is within
      // (head_dim + 2) u of largest = 4 head_dim scale; the difference from the maximum, itself
      // computed from such, within twice that and its own rounding, at most 2 largest u; Exp adds 2
      // u, each rescaling of a chunk at most 4 u more, each sum of n terms n u. Weights and their
      // sum both enter.
      const double u = 0x1p-24;
      const double n = context_lens_[s];
      const double largest =
          4.0 * static_cast<double>(c_.head_dim) * static_cast<double>(args.scale);
      const double weight_error = (2.0 * (static_cast<double>(c_.head_dim) + 3.0) * largest + 2.0 +
                                   4.0 * (n / 96.0 + 1.0)) *
                                  u;
      const double relative = 1.01 * (2.0 * weight_error + 2.0 * (n + 2.0) * u);
      const double rounding = UnitRoundoff(c_.dtype);
      for (int64_t t = token_offsets_[s]; t < token_offsets_[s + 1]; ++t) {
        for (int64_t i = 0; i < width() + kGap; ++i) {
          const float value = found[row(t) + i];
          if (i >= width()) {
            ASSERT_TRUE(std::isnan(value)) << where << ": gap of out overwritten";
            continue;
          }
          const auto exact = static_cast<double>(expected[t * width() + i]);
          const double error = relative * static_cast<double>(magnitude[t * width() + i]) + u;
          const double bound = error + rounding * (std::abs(exact) + error) + 0x1p-25;
          ASSERT_NEAR(static_cast<double>(value), exact, bound)
              << where << ": sequence " << s << ", token " << t - token_offsets_[s] << " of "
              << c_.seqs[s].num_tokens << ", context " << c_.seqs[s].context << ", column " << i
              << ", " << DTypeName(c_.dtype) << ", " << c_.num_kv_heads << " x " << c_.group
              << " heads of " << c_.head_dim << ", pages of " << c_.page_size << ", window "
              << c_.window;
        }
      }
    }
  }

  PagedAttentionArgs args;

 private:
  static constexpr int64_t kGap = 3;

  Case c_;
  std::vector<int32_t> token_offsets_, context_lens_, page_offsets_, page_ids_;
  std::vector<float> q_, k_, v_;
  std::vector<uint8_t> q_elements_, k_elements_, v_elements_, out_elements_;
};

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
    const Case c = {{{70, 300}}, DType::kF32, 1, 4, 24, 16, window};
    Problem whole(c), split(c);
    whole.args.batch_invariant = true;
    ASSERT_TRUE(PagedAttention(whole.args, stream).ok());
    // One query head of one token at a time, as decoding with another cut of the heads would.
    const int64_t head_dim = whole.args.q.dim(1) / 4;
    for (int32_t t = 0; t < 70; ++t) {
      for (int64_t head = 0; head < 4; ++head) {
        PagedAttentionArgs args = split.args;
        args.batch_invariant = true;
        args.q = args.q.Rows(t, 1).Columns(head * head_dim, head_dim);
        args.out = args.out.Rows(t, 1).Columns(head * head_dim, head_dim);
        args.num_heads = 1;
        const int32_t token_offsets[] = {0, 1};
        const int32_t context_lens[] = {300 - 70 + t + 1};
        const int32_t page_offsets[] = {0, (context_lens[0] + 15) / 16};
        args.token_offsets = token_offsets;
        args.context_lens = context_lens;
        args.page_offsets = page_offsets;
        args.page_ids = args.page_ids.subspan(0, page_offsets[1]);
        ASSERT_TRUE(PagedAttention(args, stream).ok());
      }
    }
    for (int32_t t = 0; t < 70; ++t) {
      EXPECT_EQ(std::memcmp(whole.args.out.Rows(t, 1).raw(), split.args.out.Rows(t, 1).raw(),
                            4 * head_dim * sizeof(float)),
                0)
          << "token " << t << ", window " << window;
    }
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
