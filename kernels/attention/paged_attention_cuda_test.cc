#include <algorithm>
#include <cstdint>
#include <cstring>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "kernels/attention/paged_attention.h"
#include "kernels/attention/paged_attention_testing.h"
#include "kernels/core/copy.h"
#include "kernels/testing/gpu_test.h"
#include "kernels/testing/on_device.h"
#include "kernels/testing/rounded.h"

namespace thinwire {
namespace {

// How far weights are from fp32's, beyond 2^-24: two numbers of a page's dtype make one (fp16 and
// bf16 for few rows), or a single one (prompts); and 4 units of fp32 for exp2.
double Extra(const Case& c) {
  bool prompt = false;
  for (const Sequence& seq : c.seqs) prompt = prompt || seq.num_tokens * c.group > 16;
  if (c.dtype == DType::kF32) return 0x1p-22;
  const double roundoff = UnitRoundoff(c.dtype);
  return (prompt ? roundoff : roundoff * roundoff) + 0x1p-22;
}

class PagedAttentionCudaTest : public GpuTest {
 protected:
  void ExpectMatchesReference(const Case& c, const std::string& where, uint32_t seed = 1,
                              bool batch_invariant = false) {
    const Problem problem(c, seed);
    const Tensor q = OnDevice(problem.all_q(), stream());
    Tensor out = OnDevice(problem.all_out(), stream());
    const Tensor k = OnDevice(problem.args.k_pages, stream());
    const Tensor v = OnDevice(problem.args.v_pages, stream());
    PagedAttentionArgs args = problem.args;
    args.q = q.view().Columns(0, problem.width());
    args.out = out.mutable_view().Columns(0, problem.width());
    args.k_pages = k.view();
    args.v_pages = v.view();
    args.batch_invariant = batch_invariant;
    const absl::Status status = PagedAttention(args, stream());
    ASSERT_TRUE(status.ok()) << status;
    ASSERT_TRUE(Copy(out.view(), problem.all_out(), stream()).ok());
    const absl::Status done = stream().Synchronize();
    ASSERT_TRUE(done.ok()) << done;
    problem.ExpectMatchesReference(where, Extra(c));
  }
};

// A matrix as bytes: gaps of NaN compare equal.
ConstTensorView BytesOf(const Tensor& rows) {
  return ConstTensorView(rows.view().raw(), DType::kU8, {rows.view().size_bytes()},
                         rows.view().device());
}

const std::vector<Sequence> kSteps = {{1, 1},   {1, 17},  {1, 255}, {1, 256},
                                      {1, 257}, {2, 300}, {1, 700}, {1, 3001}};
const std::vector<Sequence> kPrompts = {{37, 37}, {130, 131}, {70, 201},
                                        {1, 33},  {64, 64},   {200, 513}};

TEST_F(PagedAttentionCudaTest, DecodingMatchesTheReference) {
  for (const DType dtype : kFloatDTypes) {
    for (const int64_t head_dim : {64, 128}) {
      for (const int64_t group : {1, 4, 7, 8, 9}) {
        Case c = {kSteps, dtype, 2, group, head_dim};
        c.page_size = group == 4 ? 32 : 16;
        ExpectMatchesReference(c, "decoding");
        c.gap = 8;  // rows begin at multiples of 16 bytes
        ExpectMatchesReference(c, "decoding, rows aligned");
      }
    }
  }
}

// More blocks of threads than a GPU has multiprocessors.
TEST_F(PagedAttentionCudaTest, DecodingOfManySequencesMatchesTheReference) {
  std::mt19937 random(3);
  std::vector<Sequence> seqs;
  for (int s = 0; s < 90; ++s) seqs.push_back({1, 1 + static_cast<int32_t>(random() % 400)});
  for (const DType dtype : kFloatDTypes) {
    for (const int64_t head_dim : {64, 128}) {
      for (const int64_t gap : {3, 8}) {
        Case c = {seqs, dtype, 2, 4, head_dim};
        c.gap = gap;
        ExpectMatchesReference(c, "many sequences");
      }
    }
  }
}

TEST_F(PagedAttentionCudaTest, PromptsMatchTheReference) {
  for (const DType dtype : kFloatDTypes) {
    for (const int64_t head_dim : {64, 128}) {
      for (const int64_t group : {1, 3, 8}) {
        ExpectMatchesReference({kPrompts, dtype, 2, group, head_dim}, "prompts");
      }
    }
  }
}

TEST_F(PagedAttentionCudaTest, OddShapesMatchTheReference) {
  std::mt19937 random(5);
  for (uint32_t seed = 1; seed <= 40; ++seed) {
    Case c;
    for (int i = 0; i < 4; ++i) {
      const auto tokens = static_cast<int32_t>(1 + random() % (i == 0 ? 90 : 3));
      c.seqs.push_back({tokens, tokens + static_cast<int32_t>(random() % 600)});
    }
    c.dtype = kFloatDTypes[seed % 3];
    c.num_kv_heads = 1 + static_cast<int64_t>(random() % 3);
    c.group = 1 + static_cast<int64_t>(random() % 12);
    c.head_dim = std::vector<int64_t>{64, 128, 16, 80, 96, 100, 1, 256}[seed % 8];
    c.page_size = std::vector<int64_t>{16, 1, 5, 64, 48}[random() % 5];
    c.window = seed % 2 == 0 ? 0 : 1 + static_cast<int64_t>(random() % 400);
    ExpectMatchesReference(c, absl::StrCat("seed ", seed), seed);
  }
}

TEST_F(PagedAttentionCudaTest, WindowHidesOldTokens) {
  for (const DType dtype : {DType::kF16, DType::kBF16}) {
    for (const int64_t window : {1, 2, 31, 100, 299, 300, 2999, 5000}) {
      Case c = {kSteps, dtype, 1, 4, 128};
      c.window = window;
      ExpectMatchesReference(c, "window");
      c.seqs = kPrompts;
      ExpectMatchesReference(c, "window");
    }
  }
}

TEST_F(PagedAttentionCudaTest, BatchInvariantMatchesTheReference) {
  for (const DType dtype : kFloatDTypes) {
    for (const int64_t window : {0, 100, 1500}) {
      Case c = {kPrompts, dtype, 2, 3, 64};
      c.window = window;
      c.seqs.push_back({3, 2500});
      c.seqs.push_back({1, 3001});
      ExpectMatchesReference(c, "batch-invariant", 1, /*batch_invariant=*/true);
    }
  }
}

TEST_F(PagedAttentionCudaTest, BatchInvariantMeansAnySplitOfTokensAndHeads) {
  for (const DType dtype : kFloatDTypes) {
    for (const int64_t window : {0, 10, 1500}) {
      SCOPED_TRACE(absl::StrCat(DTypeName(dtype), ", window ", window));
      Case c = {{{40, 2070}}, dtype, 1, 3, 64};
      c.window = window;
      const Problem problem(c);
      const Tensor q = OnDevice(problem.all_q(), stream());
      const Tensor k = OnDevice(problem.args.k_pages, stream());
      const Tensor v = OnDevice(problem.args.v_pages, stream());
      Tensor whole_out = OnDevice(problem.all_out(), stream());
      Tensor split_out = OnDevice(problem.all_out(), stream());
      PagedAttentionArgs whole = problem.args;
      whole.q = q.view().Columns(0, problem.width());
      whole.k_pages = k.view();
      whole.v_pages = v.view();
      PagedAttentionArgs split = whole;
      whole.out = whole_out.mutable_view().Columns(0, problem.width());
      split.out = split_out.mutable_view().Columns(0, problem.width());
      RunWholeAndSplit(whole, split, c.page_size,
                       [&](const auto& args) { return PagedAttention(args, stream()); });
      EXPECT_EQ(Values<uint8_t>(BytesOf(whole_out), stream()),
                Values<uint8_t>(BytesOf(split_out), stream()));
    }
  }
}

TEST_F(PagedAttentionCudaTest, WrittenKeysAndValuesLieWhereTheHostPutsThem) {
  std::mt19937 random(3);
  for (const DType dtype : kFloatDTypes) {
    for (const int64_t head_dim : {3, 64, 128}) {
      const int64_t num_tokens = 37, num_heads = 3, num_pages = 9, page_size = 5;
      const int64_t width = num_heads * head_dim, bytes = DTypeBytes(dtype, 1);
      std::vector<uint8_t> k(static_cast<size_t>(num_tokens * (width + 1) * bytes)), v = k;
      for (size_t i = 0; i < k.size(); ++i) {
        k[i] = static_cast<uint8_t>(random());
        v[i] = static_cast<uint8_t>(random());
      }
      std::vector<int64_t> slots(static_cast<size_t>(num_pages * page_size));
      std::iota(slots.begin(), slots.end(), 0);
      std::shuffle(slots.begin(), slots.end(), random);
      slots.resize(static_cast<size_t>(num_tokens));
      std::vector<uint8_t> pages(static_cast<size_t>(num_pages * page_size * width * bytes), 0xee);
      std::vector<uint8_t> v_pages = pages;
      KvWriteArgs args;
      args.slots = slots;
      const ConstTensorView all_k(k.data(), dtype, {num_tokens, width + 1});
      const ConstTensorView all_v(v.data(), dtype, {num_tokens, width + 1});
      const TensorView host_k(pages.data(), dtype, {num_pages, num_heads, page_size, head_dim});
      const TensorView host_v(v_pages.data(), dtype, {num_pages, num_heads, page_size, head_dim});
      for (const int64_t first : {0, 1}) {
        const Tensor device_k = OnDevice(all_k, stream()), device_v = OnDevice(all_v, stream());
        Tensor k_to = OnDevice(host_k, stream()), v_to = OnDevice(host_v, stream());
        args.k = device_k.view().Columns(first, width);
        args.v = device_v.view().Columns(first, width);
        args.k_pages = k_to.mutable_view();
        args.v_pages = v_to.mutable_view();
        ASSERT_TRUE(KvWrite(args, stream()).ok());
        const Tensor k_found = OnHost(k_to.view(), stream());
        const Tensor v_found = OnHost(v_to.view(), stream());
        args.k = all_k.Columns(first, width);
        args.v = all_v.Columns(first, width);
        args.k_pages = host_k;
        args.v_pages = host_v;
        ASSERT_TRUE(KvWrite(args, host()).ok());
        EXPECT_EQ(std::memcmp(k_found.view().raw(), pages.data(), pages.size()), 0);
        EXPECT_EQ(std::memcmp(v_found.view().raw(), v_pages.data(), v_pages.size()), 0);
      }
    }
  }
}

TEST_F(PagedAttentionCudaTest, RotatedKeysHaveTheBitsOfRotationThenWrite) {
  std::mt19937 random(4);
  std::normal_distribution<float> normal;
  struct Shape {
    int64_t num_tokens, num_heads, num_kv_heads, head_dim, gap;
  };
  // Some that go through one kernel, and some that do not.
  for (const Shape& shape : {Shape{1, 32, 4, 128, 0},
                             {1, 3, 1, 16, 8},
                             {5, 8, 8, 64, 0},
                             {300, 4, 2, 128, 24},
                             {3, 2, 2, 10, 1},
                             {2, 6, 3, 80, 3}}) {
    for (const DType dtype : kFloatDTypes) {
      SCOPED_TRACE(absl::StrCat(DTypeName(dtype), " ", shape.num_tokens, " tokens, heads of ",
                                shape.head_dim));
      const int64_t page_size = 16, num_pages = shape.num_tokens / 8 + 1;
      const int64_t before = shape.num_heads * shape.head_dim;
      const int64_t kv = shape.num_kv_heads * shape.head_dim;
      const int64_t width = before + 2 * kv + shape.gap;
      std::vector<float> values(static_cast<size_t>(shape.num_tokens * width));
      for (float& value : values) value = normal(random);
      std::vector<int32_t> positions;
      for (int64_t t = 0; t < shape.num_tokens; ++t) {
        positions.push_back(static_cast<int32_t>(random() % 5000));
      }
      std::vector<float> inv_freq;
      for (int64_t i = 0; i < shape.head_dim / 2; ++i) inv_freq.push_back(1.0f / (1.0f + i));
      std::vector<int64_t> slots(static_cast<size_t>(num_pages * page_size));
      std::iota(slots.begin(), slots.end(), 0);
      std::shuffle(slots.begin(), slots.end(), random);
      slots.resize(static_cast<size_t>(shape.num_tokens));
      const Tensor there = VectorOnDevice(positions, stream());
      const Tensor frequencies = VectorOnDevice(inv_freq, stream());
      const Tensor rows = RoundedTensor(values, dtype, shape.num_tokens, width);
      const std::vector<float> empty(
          static_cast<size_t>(num_pages * page_size * shape.num_kv_heads * shape.head_dim), -3.0f);
      const Tensor fresh = RoundedTensor(empty, dtype, num_pages * page_size, kv);
      std::vector<std::vector<float>> found[2];
      for (const bool in_one : {false, true}) {
        Tensor x = OnDevice(rows.view(), stream());
        Tensor k = OnDevice(fresh.view(), stream()), v = OnDevice(fresh.view(), stream());
        const auto pages = [&](Tensor& tensor) {
          return TensorView(tensor.mutable_view().mutable_raw(), dtype,
                            {num_pages, shape.num_kv_heads, page_size, shape.head_dim},
                            x.view().device());
        };
        const RopeArgs rope = {.x = x.mutable_view().Columns(0, before + kv),
                               .positions = there.view(),
                               .inv_freq = frequencies.view(),
                               .num_heads = shape.num_heads + shape.num_kv_heads,
                               .head_dim = shape.head_dim};
        const KvWriteArgs write = {.k = x.view().Columns(before, kv),
                                   .v = x.view().Columns(before + kv, kv),
                                   .slots = slots,
                                   .k_pages = pages(k),
                                   .v_pages = pages(v)};
        if (in_one) {
          const absl::Status status = RotateAndWriteKv(rope, write, stream());
          ASSERT_TRUE(status.ok()) << status;
        } else {
          ASSERT_TRUE(Rope(rope, stream()).ok());
          ASSERT_TRUE(KvWrite(write, stream()).ok());
        }
        std::vector<float> all = Floats(OnHost(x.view(), stream()));
        for (size_t i = 0; i < all.size(); ++i) {  // keys are unspecified
          const auto column = static_cast<int64_t>(i) % width;
          if (column >= before && column < before + kv) all[i] = 0.0f;
        }
        found[in_one ? 1 : 0] = {all, Floats(OnHost(k.view(), stream())),
                                 Floats(OnHost(v.view(), stream()))};
      }
      EXPECT_TRUE(found[0][0] == found[1][0]) << "queries, or what is beside them";
      EXPECT_TRUE(found[0][1] == found[1][1]) << "keys";
      EXPECT_TRUE(found[0][2] == found[1][2]) << "values";
    }
  }
}

}  // namespace
}  // namespace thinwire
