#include "kernels/attention/coded_attention.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <numeric>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/convert/convert.h"
#include "kernels/core/float16.h"
#include "kernels/testing/cpu_targets.h"
#include "kernels/testing/rounded.h"

namespace thinwire {
namespace {

using ::testing::HasSubstr;

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();

using Bits = std::vector<uint8_t>;  // of the units of one head

Bits Uniform(int64_t head_dim, int bits) {
  return Bits(static_cast<size_t>(head_dim / kKvUnit), static_cast<uint8_t>(bits));
}

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

// Channels shuffled; the representable values of a channel reach from -range to range, off the
// centre by up to `shift`, which need not be a whole number of steps.
KvHeadCodes RandomHead(const Bits& bits, float range, float shift, std::mt19937& random) {
  std::uniform_real_distribution<float> uniform(0.0f, 1.0f);
  KvHeadCodes head;
  const auto head_dim = static_cast<int64_t>(bits.size()) * kKvUnit;
  head.order.resize(static_cast<size_t>(head_dim));
  std::iota(head.order.begin(), head.order.end(), 0);
  std::shuffle(head.order.begin(), head.order.end(), random);
  head.bits = bits;
  for (int64_t j = 0; j < head_dim; ++j) {
    const auto largest = static_cast<float>((1 << bits[static_cast<size_t>(j / kKvUnit)]) - 1);
    const float width = range * (0.5f + uniform(random));
    head.step.push_back(2.0f * width / largest);
    head.zero.push_back(largest * 0.5f - shift * (2.0f * uniform(random) - 1.0f));
  }
  return head;
}

std::vector<KvHeadCodes> RandomHeads(const std::vector<Bits>& bits, int64_t num_heads, float range,
                                     float shift, std::mt19937& random) {
  std::vector<KvHeadCodes> heads;
  for (int64_t h = 0; h < num_heads; ++h) {
    heads.push_back(RandomHead(bits[static_cast<size_t>(h) % bits.size()], range, shift, random));
  }
  return heads;
}

KvCodes Codes(int64_t head_dim, std::vector<KvHeadCodes> heads) {
  return KvCodes::Create(head_dim, std::move(heads), Device::Cpu()).value();
}

TEST(KvCodesTest, RowsOfEqualBitsHaveNoGaps) {
  std::mt19937 random(1);
  for (const int64_t head_dim : {16, 48, 64, 80, 128, 256}) {
    for (int bits = 1; bits <= 8; ++bits) {
      const KvCodes codes =
          Codes(head_dim, RandomHeads({Uniform(head_dim, bits)}, 2, 1.0f, 1.0f, random));
      EXPECT_EQ(codes.row_bytes(), head_dim * bits / 8);
      EXPECT_EQ(codes.num_heads(), 2);
      EXPECT_EQ(codes.head_dim(), head_dim);
    }
  }
}

TEST(KvCodesTest, RowsOfAllHeadsAreAsLongAsTheWidest) {
  std::mt19937 random(1);
  const KvCodes codes =
      Codes(64, RandomHeads({{4, 3, 3, 2}, {8, 7, 1, 1}, {1, 1, 1, 1}}, 3, 1.0f, 1.0f, random));
  EXPECT_EQ(codes.row_bytes(), 2 * (8 + 7 + 1 + 1));
}

TEST(KvCodesTest, PackedRowsComeBack) {
  std::mt19937 random(2);
  for (int turn = 0; turn < 200; ++turn) {
    const int64_t head_dim = kKvUnit * (1 + static_cast<int64_t>(random() % 16));
    Bits bits;
    for (int64_t u = 0; u < head_dim / kKvUnit; ++u) {
      bits.push_back(static_cast<uint8_t>(1 + random() % 8));
    }
    std::sort(bits.rbegin(), bits.rend());
    const KvCodes codes = Codes(head_dim, RandomHeads({bits}, 1, 1.0f, 1.0f, random));
    std::vector<uint8_t> expected, found(static_cast<size_t>(head_dim));
    for (int64_t j = 0; j < head_dim; ++j) {
      expected.push_back(
          static_cast<uint8_t>(random() % (1u << bits[static_cast<size_t>(j / kKvUnit)])));
    }
    std::vector<uint8_t> row(static_cast<size_t>(codes.row_bytes()), 0xee);
    codes.PackRow(0, expected, row.data());
    codes.UnpackRow(0, row.data(), absl::MakeSpan(found));
    ASSERT_EQ(found, expected) << absl::StrJoin(bits, " ");
  }
}

// The documented bytes, by hand: units of 4, 2 and 1 bits are a word of 7 bits, in parts of 4, 2
// and 1.
TEST(KvCodesTest, BytesAreAsDocumented) {
  std::mt19937 random(3);
  const KvCodes codes = Codes(48, RandomHeads({{4, 2, 1}}, 1, 1.0f, 1.0f, random));
  std::vector<uint8_t> values(48);
  for (int i = 0; i < 16; ++i) values[static_cast<size_t>(i)] = static_cast<uint8_t>(i);
  for (int i = 16; i < 32; ++i) values[static_cast<size_t>(i)] = i < 20 ? 3 : 1;
  values[32 + 0] = values[32 + 9] = values[32 + 15] = 1;
  std::vector<uint8_t> row(static_cast<size_t>(codes.row_bytes()));
  codes.PackRow(0, values, row.data());
  // 4 bits: even lanes in the lower half of 64 bits, odd lanes in the upper. 2 bits: likewise of
  // 32.
  const std::vector<uint8_t> expected = {0x20, 0x64, 0xa8, 0xec, 0x31, 0x75, 0xb9,
                                         0xfd, 0x5f, 0x55, 0x5f, 0x55, 0x01, 0x82};
  EXPECT_EQ(row, expected);
}

TEST(KvCodesTest, WhatIsWrongWithAHeadIsNamed) {
  std::mt19937 random(4);
  const auto heads = [&] { return RandomHeads({{4, 3}}, 3, 1.0f, 1.0f, random); };
  const auto expect = [](absl::StatusOr<KvCodes> codes, const std::string& what) {
    EXPECT_EQ(codes.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(codes.status().message()), HasSubstr(what));
  };
  auto wrong = heads();
  wrong[1].order[3] = wrong[1].order[4];
  expect(KvCodes::Create(32, wrong, Device::Cpu()),
         absl::StrCat("codes of KV head 1: order has channel ", wrong[1].order[4]));
  wrong = heads();
  wrong[0].order[0] = 32;
  expect(KvCodes::Create(32, wrong, Device::Cpu()), "codes of KV head 0: order has channel 32");
  wrong = heads();
  wrong[2].bits = {3, 4};
  expect(KvCodes::Create(32, wrong, Device::Cpu()), "codes of KV head 2: bits of unit 1 are 4");
  wrong = heads();
  wrong[2].bits = {9, 4};
  expect(KvCodes::Create(32, wrong, Device::Cpu()), "bits of unit 0 are 9");
  wrong = heads();
  wrong[2].bits = {3, 0};
  expect(KvCodes::Create(32, wrong, Device::Cpu()), "bits of unit 1 are 0");
  wrong = heads();
  wrong[1].bits = {3};
  expect(KvCodes::Create(32, wrong, Device::Cpu()), "KV head 1: bits has 1 entries: expected 2");
  wrong = heads();
  wrong[1].step.push_back(1.0f);
  expect(KvCodes::Create(32, wrong, Device::Cpu()), "step has 33 entries");
  for (const float step : {0.0f, -1.0f, kNaN, kInfinity}) {
    wrong = heads();
    wrong[1].step[7] = step;
    expect(KvCodes::Create(32, wrong, Device::Cpu()), "KV head 1: step of position 7");
  }
  wrong = heads();
  wrong[0].zero[31] = kInfinity;
  expect(KvCodes::Create(32, wrong, Device::Cpu()), "KV head 0: zero of position 31");
  expect(KvCodes::Create(32, {}, Device::Cpu()), "0 KV heads");
  EXPECT_EQ(KvCodes::Create(40, heads(), Device::Cpu()).status().code(),
            absl::StatusCode::kUnimplemented);
  EXPECT_EQ(KvCodes::Create(32, heads(), Device::Cuda(0)).status().code(),
            absl::StatusCode::kUnimplemented);
}

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

struct Sequence {
  int32_t num_tokens;
  int32_t context;
  bool exact = false;  // position 0 has an exact row
};

struct Case {
  std::vector<Sequence> seqs;
  std::vector<Bits> k_bits;  // of head h: [h % size]
  std::vector<Bits> v_bits;
  DType q_dtype = DType::kF32;
  DType out_dtype = DType::kF32;
  int64_t num_kv_heads = 1;
  int64_t group = 1;
  int64_t page_size = 16;
  int64_t window = 0;
  float k_shift = 2.0f;  // how far off the centre zeros are, in steps
  float v_shift = 2.0f;

  int64_t head_dim() const { return static_cast<int64_t>(k_bits[0].size()) * kKvUnit; }
};

// A call's arguments and their memory. Pages are shuffled among unused ones; what no sequence may
// read is 0xee in pages and NaN in gaps between rows of q and in unused exact rows. K of position 0
// is 3 times as large as that of others, V 10 times. K and V depend on the seed and the position
// only, not on page_size.
class Problem {
 public:
  explicit Problem(const Case& c, uint32_t seed = 1)
      : c_(c),
        random_(seed),
        k_codes(
            Codes(c.head_dim(), RandomHeads(c.k_bits, c.num_kv_heads, 2.0f, c.k_shift, random_))),
        v_codes(
            Codes(c.head_dim(), RandomHeads(c.v_bits, c.num_kv_heads, 1.0f, c.v_shift, random_))) {
    std::uniform_real_distribution<float> uniform(-1.0f, 1.0f);
    const int64_t kv_width = c.num_kv_heads * c.head_dim();
    const int64_t width = c.group * kv_width;
    token_offsets_.push_back(0);
    page_offsets_.push_back(0);
    const auto num_exact = static_cast<int64_t>(c.seqs.size()) + 1;
    std::vector<int32_t> exact_ids(static_cast<size_t>(num_exact));
    std::iota(exact_ids.begin(), exact_ids.end(), 0);
    std::shuffle(exact_ids.begin(), exact_ids.end(), random_);
    for (size_t s = 0; s < c.seqs.size(); ++s) {
      const Sequence& seq = c.seqs[s];
      token_offsets_.push_back(token_offsets_.back() + seq.num_tokens);
      context_lens_.push_back(seq.context);
      page_offsets_.push_back(page_offsets_.back() +
                              static_cast<int32_t>((seq.context + c.page_size - 1) / c.page_size));
      exact_rows_.push_back(seq.exact ? exact_ids[s] : -1);
    }
    const int64_t num_tokens = token_offsets_.back();
    q_ = std::vector<float>(static_cast<size_t>(num_tokens * (width + kGap)), kNaN);
    for (int64_t t = 0; t < num_tokens; ++t) {
      for (int64_t i = 0; i < width; ++i) q_[t * (width + kGap) + i] = 2.0f * uniform(random_);
    }
    q_elements_ = Elements(c.q_dtype, q_);
    q_ = Floats(c.q_dtype, q_elements_);
    out_elements_.resize(static_cast<size_t>(DTypeBytes(c.out_dtype, num_tokens * (width + kGap))),
                         0xff);
    const int64_t num_pages = page_offsets_.back() + 3;
    k_pages_.assign(
        static_cast<size_t>(num_pages * c.num_kv_heads * c.page_size * k_codes.row_bytes()), 0xee);
    v_pages_.assign(
        static_cast<size_t>(num_pages * c.num_kv_heads * c.page_size * v_codes.row_bytes()), 0xee);
    exact_k_.assign(static_cast<size_t>(num_exact * kv_width), Half{0x7fff});
    exact_v_ = exact_k_;
    args.q = ConstTensorView(q_elements_.data(), c.q_dtype, {num_tokens, width + kGap})
                 .Columns(0, width);
    args.out =
        TensorView(out_elements_.data(), c.out_dtype, {num_tokens, width + kGap}).Columns(0, width);
    args.token_offsets = token_offsets_;
    args.context_lens = context_lens_;
    args.page_offsets = page_offsets_;
    args.exact_rows = exact_rows_;
    args.k_codes = &k_codes;
    args.v_codes = &v_codes;
    const TensorView k_pages(k_pages_.data(), DType::kU8,
                             {num_pages, c.num_kv_heads, c.page_size, k_codes.row_bytes()});
    const TensorView v_pages(v_pages_.data(), DType::kU8,
                             {num_pages, c.num_kv_heads, c.page_size, v_codes.row_bytes()});
    const TensorView exact_k(exact_k_.data(), DType::kF16,
                             {num_exact, c.num_kv_heads, c.head_dim()});
    const TensorView exact_v(exact_v_.data(), DType::kF16,
                             {num_exact, c.num_kv_heads, c.head_dim()});
    args.k_pages = k_pages;
    args.v_pages = v_pages;
    args.exact_k = exact_k;
    args.exact_v = exact_v;
    args.num_heads = c.num_kv_heads * c.group;
    args.scale = 1.0f / std::sqrt(static_cast<float>(c.head_dim()));
    args.window = c.window;

    CodedKvWriteArgs write;
    std::vector<int64_t> slots;
    std::vector<int32_t> exact_rows;
    std::vector<float> k, v;
    page_ids_.resize(static_cast<size_t>(num_pages));
    std::iota(page_ids_.begin(), page_ids_.end(), 0);
    std::mt19937 page_random(seed);
    std::shuffle(page_ids_.begin(), page_ids_.end(), page_random);
    args.page_ids = absl::MakeConstSpan(page_ids_).subspan(0, page_offsets_.back());
    for (size_t s = 0; s < c.seqs.size(); ++s) {
      for (int32_t j = 0; j < c.seqs[s].context; ++j) {
        const int64_t page = page_ids_[page_offsets_[s] + j / c.page_size];
        slots.push_back(page * c.page_size + j % c.page_size);
        exact_rows.push_back(j == 0 ? exact_rows_[s] : -1);
        for (int64_t i = 0; i < kv_width; ++i) {
          k.push_back((j == 0 ? 6.0f : 2.0f) * uniform(random_));
          v.push_back((j == 0 ? 10.0f : 1.0f) * uniform(random_));
        }
      }
    }
    const auto num_keys = static_cast<int64_t>(slots.size());
    if (num_keys == 0) return;
    write.k = ConstTensorView(k.data(), DType::kF32, {num_keys, kv_width});
    write.v = ConstTensorView(v.data(), DType::kF32, {num_keys, kv_width});
    write.slots = slots;
    write.k_codes = &k_codes;
    write.v_codes = &v_codes;
    write.k_pages = k_pages;
    write.v_pages = v_pages;
    write.exact_rows = exact_rows;
    write.exact_k = exact_k;
    write.exact_v = exact_v;
    ThreadPool pool(1);
    Stream stream = Stream::Cpu(&pool);
    const absl::Status status = CodedKvWrite(write, stream);
    EXPECT_TRUE(status.ok()) << status;
  }

  int64_t width() const { return args.q.dim(1); }
  int64_t row(int64_t token) const { return token * (width() + kGap); }
  std::vector<float> Out() const { return Floats(c_.out_dtype, out_elements_); }
  const std::vector<uint8_t>& out_elements() const { return out_elements_; }

  void Run(int num_threads) const { Run(args, num_threads); }
  void Run(const CodedPagedAttentionArgs& call, int num_threads) const {
    ThreadPool pool(num_threads);
    Stream stream = Stream::Cpu(&pool);
    const absl::Status status = CodedPagedAttention(call, stream);
    ASSERT_TRUE(status.ok()) << status;
  }

  // Bounds of |scale q . k| and, by channel, of |v|, codes taken with both ends of their range.
  double LargestScore(size_t seq, int64_t token, int64_t head) const {
    const int64_t kv_head = head / c_.group, head_dim = c_.head_dim();
    const KvHeadCodes& codes = k_codes.head(kv_head);
    double score = 0.0, exact_score = 0.0;
    for (int64_t j = 0; j < head_dim; ++j) {
      const auto p = static_cast<size_t>(j);
      const int32_t channel = codes.order[p];
      const double q = std::abs(static_cast<double>(q_[row(token) + head * head_dim + channel]));
      score += q * Largest(codes, p);
      if (exact_rows_[seq] >= 0)
        exact_score += q * std::abs(Exact(exact_k_, seq, kv_head, channel));
    }
    return (score + exact_score) * static_cast<double>(args.scale);
  }
  std::vector<double> LargestValues(size_t seq, int64_t head) const {
    const int64_t kv_head = head / c_.group;
    const KvHeadCodes& codes = v_codes.head(kv_head);
    std::vector<double> values(codes.order.size());
    for (size_t p = 0; p < values.size(); ++p) {
      const int32_t channel = codes.order[p];
      double& value = values[static_cast<size_t>(channel)];
      value = Largest(codes, p);
      if (exact_rows_[seq] >= 0) {
        value = std::max(value, std::abs(Exact(exact_v_, seq, kv_head, channel)));
      }
    }
    return values;
  }

  void ExpectMatchesReference(const std::string& where) const {
    const int64_t num_tokens = args.q.dim(0), head_dim = c_.head_dim();
    std::vector<float> expected(static_cast<size_t>(num_tokens * width()));
    CodedPagedAttentionArgs wide = args;
    wide.out = TensorView(expected.data(), DType::kF32, {num_tokens, width()});
    ASSERT_TRUE(CodedPagedAttentionReference(wide).ok());
    const std::vector<float> found = Out();
    const double u = 0x1p-24;
    const double rounding = UnitRoundoff(c_.out_dtype);
    for (size_t s = 0; s < c_.seqs.size(); ++s) {
      for (int64_t t = token_offsets_[s]; t < token_offsets_[s + 1]; ++t) {
        for (int64_t h = 0; h < args.num_heads; ++h) {
          // With u = 2^-24 and `largest` bounding a score and each sum of its terms' magnitudes: q
          // times scale and step, or step times code - zero, are within 3 u; the sum of head_dim
          // products adds head_dim + 1 u; that of the zeros, which an exact key takes up, as much
          // again, and their difference 1 u. A score's difference from the maximum has twice this
          // and 2 u of its own. Exp adds 2 u, each rescaling of a chunk at most 4 u, each sum of n
          // terms n u, the epilogue 8 u. Weights and their sum both enter.
          const double n = context_lens_[s];
          const double largest = LargestScore(s, t, h);
          const double weight_error =
              (2.0 * (2.0 * (static_cast<double>(head_dim) + 4.0) + 2.0) * largest + 2.0 +
               4.0 * (n / 96.0 + 1.0)) *
              u;
          const double relative = 1.01 * (2.0 * weight_error + (2.0 * n + 10.0) * u);
          const std::vector<double> values = LargestValues(s, h);
          for (int64_t i = 0; i < head_dim; ++i) {
            const auto value = static_cast<double>(found[row(t) + h * head_dim + i]);
            const auto exact = static_cast<double>(expected[t * width() + h * head_dim + i]);
            const double error = relative * values[static_cast<size_t>(i)] + u * std::abs(exact);
            const double bound = error + rounding * (std::abs(exact) + error) + 0x1p-25;
            ASSERT_NEAR(value, exact, bound)
                << where << ": sequence " << s << ", token " << t - token_offsets_[s] << " of "
                << c_.seqs[s].num_tokens << ", context " << c_.seqs[s].context << ", head " << h
                << ", channel " << i << ", exact row " << exact_rows_[s] << ", K bits "
                << absl::StrJoin(c_.k_bits[0], " ") << ", V bits "
                << absl::StrJoin(c_.v_bits[0], " ") << ", " << c_.num_kv_heads << " x " << c_.group
                << " heads, pages of " << c_.page_size << ", window " << c_.window;
          }
        }
        for (int64_t i = width(); i < width() + kGap; ++i) {
          ASSERT_TRUE(std::isnan(found[row(t) + i])) << where << ": gap of out overwritten";
        }
      }
    }
  }

 private:
  static constexpr int64_t kGap = 3;

  static double Largest(const KvHeadCodes& codes, size_t position) {
    const double largest = (1 << codes.bits[position / kKvUnit]) - 1;
    return static_cast<double>(codes.step[position]) *
           (largest + std::abs(static_cast<double>(codes.zero[position])));
  }
  double Exact(const std::vector<Half>& rows, size_t seq, int64_t kv_head, int64_t channel) const {
    const int64_t at = (exact_rows_[seq] * c_.num_kv_heads + kv_head) * c_.head_dim() + channel;
    return static_cast<double>(ToFloat(rows[static_cast<size_t>(at)]));
  }

  Case c_;
  std::mt19937 random_;
  std::vector<int32_t> token_offsets_, context_lens_, page_offsets_, page_ids_, exact_rows_;
  std::vector<float> q_;
  std::vector<uint8_t> q_elements_, out_elements_, k_pages_, v_pages_;
  std::vector<Half> exact_k_, exact_v_;

 public:
  KvCodes k_codes, v_codes;
  CodedPagedAttentionArgs args;
};

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
