#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/attention/coded_attention.h"
#include "kernels/attention/kv_codes_testing.h"
#include "kernels/core/float16.h"
#include "kernels/testing/cpu_targets.h"
#include "kernels/testing/rounded.h"

namespace thinwire {
namespace {

using ::testing::HasSubstr;

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();

// A write's arguments and their memory: pages start as 0xee, rows of k and v have gaps of NaN.
class WriteProblem {
 public:
  static constexpr int64_t kPages = 5, kPageSize = 3, kGap = 2;

  WriteProblem(int64_t head_dim, const std::vector<Bits>& k_bits, const std::vector<Bits>& v_bits,
               int64_t num_heads, DType dtype, uint32_t seed)
      : random_(seed),
        k_codes(Codes(head_dim, RandomHeads(k_bits, num_heads, 1.0f, 2.0f, random_))),
        v_codes(Codes(head_dim, RandomHeads(v_bits, num_heads, 1.0f, 2.0f, random_))),
        dtype_(dtype) {
    slots = {3, 14, 0, 8, 9, 7};
    exact_rows = {-1, 1, -1, -1, 0, -1};
    const auto num_tokens = static_cast<int64_t>(slots.size());
    const int64_t width = num_heads * head_dim;
    std::uniform_real_distribution<float> uniform(-2.0f, 2.0f);
    for (std::vector<float>* values : {&k, &v}) {
      values->resize(static_cast<size_t>(num_tokens * (width + kGap)), kNaN);
      for (int64_t t = 0; t < num_tokens; ++t) {
        for (int64_t i = 0; i < width; ++i) (*values)[t * (width + kGap) + i] = uniform(random_);
      }
    }
    k_pages.assign(static_cast<size_t>(kPages * num_heads * kPageSize * k_codes.row_bytes()), 0xee);
    v_pages.assign(static_cast<size_t>(kPages * num_heads * kPageSize * v_codes.row_bytes()), 0xee);
    exact_k.assign(static_cast<size_t>(3 * width), Half{0x7fff});
    exact_v = exact_k;
  }

  absl::Status Write(int num_threads) {
    k_elements_ = Elements(dtype_, k);
    v_elements_ = Elements(dtype_, v);
    ThreadPool pool(num_threads);
    Stream stream = Stream::Cpu(&pool);
    return CodedKvWrite(Args(), stream);
  }

  CodedKvWriteArgs Args() {
    const auto num_tokens = static_cast<int64_t>(slots.size());
    const int64_t heads = k_codes.num_heads(), head_dim = k_codes.head_dim();
    const int64_t width = heads * head_dim;
    CodedKvWriteArgs args;
    args.k =
        ConstTensorView(k_elements_.data(), dtype_, {num_tokens, width + kGap}).Columns(0, width);
    args.v =
        ConstTensorView(v_elements_.data(), dtype_, {num_tokens, width + kGap}).Columns(0, width);
    args.slots = slots;
    args.k_codes = &k_codes;
    args.v_codes = &v_codes;
    args.k_pages =
        TensorView(k_pages.data(), DType::kU8, {kPages, heads, kPageSize, k_codes.row_bytes()});
    args.v_pages =
        TensorView(v_pages.data(), DType::kU8, {kPages, heads, kPageSize, v_codes.row_bytes()});
    args.exact_rows = exact_rows;
    args.exact_k = TensorView(exact_k.data(), DType::kF16, {3, heads, head_dim});
    args.exact_v = TensorView(exact_v.data(), DType::kF16, {3, heads, head_dim});
    return args;
  }

  // The pages that the definition gives.
  std::vector<uint8_t> ExpectedPages(const KvCodes& codes,
                                     const std::vector<uint8_t>& elements) const {
    const std::vector<float> x = Floats(dtype_, elements);
    const int64_t heads = codes.num_heads(), head_dim = codes.head_dim();
    std::vector<uint8_t> pages(static_cast<size_t>(kPages * heads * kPageSize * codes.row_bytes()),
                               0xee);
    for (size_t t = 0; t < slots.size(); ++t) {
      for (int64_t h = 0; h < heads; ++h) {
        const KvHeadCodes& head = codes.head(h);
        std::vector<uint8_t> row;
        for (int64_t j = 0; j < head_dim; ++j) {
          const auto p = static_cast<size_t>(j);
          const float value = x[t * static_cast<size_t>(heads * head_dim + kGap) +
                                static_cast<size_t>(h * head_dim + head.order[p])];
          const float quotient = value / head.step[p];
          const float position = std::nearbyint(quotient + head.zero[p]);
          const auto largest = static_cast<float>((1 << head.bits[p / kKvUnit]) - 1);
          row.push_back(static_cast<uint8_t>(std::clamp(position, 0.0f, largest)));
        }
        const int64_t at = (slots[t] / kPageSize * heads + h) * kPageSize + slots[t] % kPageSize;
        codes.PackRow(h, row, pages.data() + at * codes.row_bytes());
      }
    }
    return pages;
  }

  void ExpectWritten(const std::string& where) const {
    EXPECT_EQ(k_pages, ExpectedPages(k_codes, k_elements_)) << where;
    EXPECT_EQ(v_pages, ExpectedPages(v_codes, v_elements_)) << where;
    const int64_t width = k_codes.num_heads() * k_codes.head_dim();
    for (const bool is_k : {true, false}) {
      const std::vector<float> x = Floats(dtype_, is_k ? k_elements_ : v_elements_);
      const std::vector<Half>& exact = is_k ? exact_k : exact_v;
      for (int64_t row = 0; row < 3; ++row) {
        const int64_t t = row == 0 ? 4 : row == 1 ? 1 : -1;
        for (int64_t i = 0; i < width; ++i) {
          const uint16_t expected = t < 0 ? 0x7fff : ToHalf(x[t * (width + kGap) + i]).bits;
          ASSERT_EQ(exact[row * width + i].bits, expected) << where;
        }
      }
    }
  }

 private:
  std::mt19937 random_;

 public:
  KvCodes k_codes, v_codes;
  std::vector<int64_t> slots;
  std::vector<int32_t> exact_rows;
  std::vector<float> k, v;
  std::vector<uint8_t> k_pages, v_pages;
  std::vector<Half> exact_k, exact_v;

 private:
  DType dtype_;
  std::vector<uint8_t> k_elements_, v_elements_;
};

TEST(CodedKvWriteTest, CodesAreThoseOfTheDefinition) {
  ForEachCpuTarget([](absl::string_view target) {
    uint32_t seed = 1;
    for (int bits = 1; bits <= 8; ++bits) {
      for (const int64_t head_dim : {16, 48, 64, 128}) {
        WriteProblem problem(head_dim, {Uniform(head_dim, bits)}, {Uniform(head_dim, 9 - bits)}, 2,
                             kFloatDTypes[seed % 3], seed);
        ASSERT_TRUE(problem.Write(1 + static_cast<int>(seed % 2)).ok());
        problem.ExpectWritten(absl::StrCat(target, ", ", bits, " bits, head_dim ", head_dim));
        ++seed;
      }
    }
    WriteProblem mixed(128, {{8, 7, 6, 5, 4, 3, 2, 1}, {4, 4, 3, 3, 3, 3, 2, 2}},
                       {{5, 5, 5, 5, 5, 1, 1, 1}, {1, 1, 1, 1, 1, 1, 1, 1}}, 3, DType::kF16, seed);
    ASSERT_TRUE(mixed.Write(2).ok());
    mixed.ExpectWritten(absl::StrCat(target, ", mixed"));
  });
}

TEST(CodedKvWriteTest, TiesGoToTheEvenCodeAndTheRestIsClamped) {
  KvHeadCodes head;
  head.order.resize(16);
  std::iota(head.order.begin(), head.order.end(), 0);
  head.bits = {4};
  head.step.assign(16, 0.5f);
  head.zero.assign(16, 0.0f);
  const KvCodes codes = Codes(16, {head});
  std::vector<float> x = {0.25f,  0.75f, 1.25f, -0.25f, -9.0f, 7.25f, 7.75f, 1e38f,
                          -1e38f, 3e38f, 0.0f,  -0.0f,  6.75f, 7.0f,  0.24f, 0.26f};
  const std::vector<uint8_t> expected = {0, 2, 2, 0, 0, 14, 15, 15, 0, 15, 0, 0, 14, 14, 0, 1};
  std::vector<uint8_t> k_pages(8), v_pages(8), found(16);
  ForEachCpuTarget([&](absl::string_view target) {
    ThreadPool pool(1);
    Stream stream = Stream::Cpu(&pool);
    CodedKvWriteArgs args;
    args.k = args.v = ConstTensorView(x.data(), DType::kF32, {1, 16});
    const std::vector<int64_t> slots = {0};
    args.slots = slots;
    args.k_codes = args.v_codes = &codes;
    args.k_pages = TensorView(k_pages.data(), DType::kU8, {1, 1, 1, 8});
    args.v_pages = TensorView(v_pages.data(), DType::kU8, {1, 1, 1, 8});
    ASSERT_TRUE(CodedKvWrite(args, stream).ok());
    codes.UnpackRow(0, k_pages.data(), absl::MakeSpan(found));
    EXPECT_EQ(found, expected) << target;
  });
}

TEST(CodedKvWriteTest, ValuesThatAreNotFiniteAreNamed) {
  ForEachCpuTarget([](absl::string_view target) {
    for (const float value : {kNaN, kInfinity, -kInfinity}) {
      for (const DType dtype : kFloatDTypes) {
        WriteProblem problem(64, {{4, 3, 3, 2}}, {{4, 4, 4, 4}}, 2, dtype, 1);
        const int64_t stride = 2 * 64 + WriteProblem::kGap;
        problem.v[2 * stride + 64 + 5] = value;
        problem.k[5 * stride] = value;
        const absl::Status status = problem.Write(3);
        EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
        EXPECT_THAT(std::string(status.message()),
                    HasSubstr("V of token 2, KV head 1, channel 5 is "))
            << target;
        problem.k[2 * stride + 63] = value;
        EXPECT_THAT(std::string(problem.Write(1).message()),
                    HasSubstr("K of token 2, KV head 0, channel 63 is "));
      }
    }
  });
}

TEST(CodedKvWriteTest, ValuesBeyondFp16AreRefusedInExactRowsOnly) {
  WriteProblem problem(16, {{4}}, {{4}}, 2, DType::kF32, 1);
  const int64_t stride = 2 * 16 + WriteProblem::kGap;
  problem.k[3] = 1e6f;
  EXPECT_TRUE(problem.Write(1).ok());
  problem.k[1 * stride + 17] = -1e6f;
  EXPECT_THAT(std::string(problem.Write(1).message()),
              HasSubstr("K of token 1, KV head 1, channel 1 is -1e+06: more than fp16"));
}

TEST(CodedKvWriteTest, ArgumentsThatDoNotFitAreNamed) {
  WriteProblem problem(32, {{4, 3}}, {{4, 4}}, 2, DType::kF16, 1);
  ASSERT_TRUE(problem.Write(1).ok());
  ThreadPool pool(1);
  Stream stream = Stream::Cpu(&pool);
  const auto expect = [&](const CodedKvWriteArgs& args, const std::string& what) {
    const absl::Status status = CodedKvWrite(args, stream);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(status.message()), HasSubstr(what));
  };
  CodedKvWriteArgs args = problem.Args();
  args.k_pages = args.v_pages;
  expect(args, "expected contiguous uint8 [num_pages, 2, page_size, 14]");
  args = problem.Args();
  args.slots = args.slots.subspan(1);
  args.exact_rows = {};
  expect(args, "expected one slot a token");
  args = problem.Args();
  args.exact_rows = args.exact_rows.subspan(1);
  expect(args, "5 exact_rows: expected 6 or none");
  args = problem.Args();
  problem.exact_rows[2] = 3;
  expect(args, "entry 2 of exact_rows is 3: expected -1 to 2");
  problem.exact_rows[2] = -1;
  args.exact_v = TensorView();
  expect(args, "expected contiguous fp16 [num_rows, 2, 32]");
  args = problem.Args();
  problem.slots[1] = 15;
  expect(args, "slot 15 of token 1: expected 0 to 14");
  args.k_codes = nullptr;
  expect(args, "no codes");
}

}  // namespace
}  // namespace thinwire
