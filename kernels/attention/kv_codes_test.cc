#include "kernels/attention/kv_codes.h"

#include <algorithm>
#include <cstdint>
#include <limits>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/attention/kv_codes_testing.h"

namespace thinwire {
namespace {

using ::testing::HasSubstr;

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();

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
  if (!BuiltWithCuda()) {
    EXPECT_EQ(KvCodes::Create(32, heads(), Device::Cuda(0)).status().code(),
              absl::StatusCode::kUnimplemented);
  }
}

}  // namespace
}  // namespace thinwire
