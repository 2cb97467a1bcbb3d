#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>
#include <numeric>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/attention/coded_attention.h"
#include "kernels/attention/coded_attention_testing.h"
#include "kernels/attention/kv_codes_testing.h"
#include "kernels/core/copy.h"
#include "kernels/testing/gpu_test.h"
#include "kernels/testing/on_device.h"

namespace thinwire {
namespace {

using ::testing::HasSubstr;

// Queries and weights are two fp16 each, 2^-22; exp2 is off by 4 units of fp32, and the sums of a
// matrix instruction are cut off, not rounded.
constexpr double kExtra = 0x1p-20;

KvCodes CodesOn(const KvCodes& codes, Device device) {
  std::vector<KvHeadCodes> heads;
  for (int64_t h = 0; h < codes.num_heads(); ++h) heads.push_back(codes.head(h));
  return KvCodes::Create(codes.head_dim(), std::move(heads), device).value();
}

// Rows of `pages`, [num_pages, num_heads, page_size, row_bytes], as `to` lays them.
Tensor Repacked(ConstTensorView pages, const KvCodes& from, const KvCodes& to) {
  Tensor repacked = Tensor::Allocate(DType::kU8, {pages.num_elements()}, Device::Cpu()).value();
  EXPECT_EQ(from.row_bytes(), to.row_bytes());
  const auto* row = static_cast<const uint8_t*>(pages.raw());
  auto* to_row = static_cast<uint8_t*>(repacked.mutable_view().mutable_raw());
  std::vector<uint8_t> codes(static_cast<size_t>(from.head_dim()));
  for (int64_t r = 0; r < pages.num_elements() / from.row_bytes(); ++r) {
    const int64_t head = r / pages.dim(2) % pages.dim(1);
    from.UnpackRow(head, row, absl::MakeSpan(codes));
    to.PackRow(head, codes, to_row);
    row += from.row_bytes();
    to_row += from.row_bytes();
  }
  return repacked;
}

// A problem's call on the stream's device; out is a copy of the problem's.
struct DeviceCall {
  DeviceCall(const Problem& problem, Stream& stream)
      : k_codes(CodesOn(problem.k_codes, stream.device())),
        v_codes(CodesOn(problem.v_codes, stream.device())),
        q(OnDevice(problem.all_q(), stream)),
        out(OnDevice(problem.all_out(), stream)),
        k(OnDevice(Repacked(problem.args.k_pages, problem.k_codes, k_codes).view(), stream)),
        v(OnDevice(Repacked(problem.args.v_pages, problem.v_codes, v_codes).view(), stream)),
        exact_k(OnDevice(problem.args.exact_k, stream)),
        exact_v(OnDevice(problem.args.exact_v, stream)),
        args(problem.args) {
    const auto as_pages = [](const Tensor& bytes, const ConstTensorView& pages) {
      return ConstTensorView(bytes.view().raw(), DType::kU8,
                             {pages.dim(0), pages.dim(1), pages.dim(2), pages.dim(3)},
                             bytes.view().device());
    };
    args.q = q.view().Columns(0, problem.width());
    args.out = out.mutable_view().Columns(0, problem.width());
    args.k_codes = &k_codes;
    args.v_codes = &v_codes;
    args.k_pages = as_pages(k, problem.args.k_pages);
    args.v_pages = as_pages(v, problem.args.v_pages);
    args.exact_k = exact_k.view();
    args.exact_v = exact_v.view();
  }
  DeviceCall(const DeviceCall&) = delete;
  DeviceCall& operator=(const DeviceCall&) = delete;

  const KvCodes k_codes, v_codes;
  const Tensor q;
  Tensor out;
  const Tensor k, v, exact_k, exact_v;
  CodedPagedAttentionArgs args;
};

class CodedAttentionCudaTest : public GpuTest {
 protected:
  void ExpectMatchesReference(const Case& c, const std::string& where, uint32_t seed = 1,
                              float scale = 0.0f, bool batch_invariant = false) {
    Problem problem(c, seed);
    if (scale != 0.0f) problem.args.scale = scale;
    DeviceCall call(problem, stream());
    call.args.batch_invariant = batch_invariant;
    const absl::Status status = CodedPagedAttention(call.args, stream());
    ASSERT_TRUE(status.ok()) << status;
    ASSERT_TRUE(Copy(call.out.view(), problem.all_out(), stream()).ok());
    const absl::Status done = stream().Synchronize();
    ASSERT_TRUE(done.ok()) << done;
    problem.ExpectMatchesReference(where, kExtra);
  }
};

const std::vector<Sequence> kMixed = {{1, 1},          {1, 1, true},    {1, 17},   {5, 5, true},
                                      {37, 37, true},  {1, 333, true},  {30, 131}, {2, 300},
                                      {20, 201, true}, {1, 1025, true}, {1, 3001}};

TEST_F(CodedAttentionCudaTest, EvenWidthsMatchTheReference) {
  int turn = 0;
  for (const int k_bits : {8, 4, 3}) {
    for (const int v_bits : {8, 4, 3}) {
      for (const int64_t group : {1, 4, 8, 11}) {
        ++turn;
        Case c = {kMixed,
                  {Uniform(128, k_bits)},
                  {Uniform(128, v_bits)},
                  kFloatDTypes[turn % 3],
                  kFloatDTypes[turn / 3 % 3]};
        c.num_kv_heads = 2;
        c.group = group;
        c.page_size = group == 4 ? 64 : 16;
        ExpectMatchesReference(c, "even", static_cast<uint32_t>(turn));
      }
    }
  }
}

TEST_F(CodedAttentionCudaTest, MixedWidthsMatchTheReference) {
  std::mt19937 random(12);
  for (uint32_t seed = 1; seed <= 60; ++seed) {
    const int64_t head_dim = seed % 2 == 0 ? 64 : 128;
    const auto bits = [&] {
      Bits mixed;
      for (int64_t u = 0; u < head_dim / kKvUnit; ++u) {
        mixed.push_back(static_cast<uint8_t>(1 + random() % (seed % 3 == 0 ? 8 : 4)));
      }
      std::sort(mixed.rbegin(), mixed.rend());
      return mixed;
    };
    Case c = {{{1, 300, true}, {2, 29}, {1, 16}, {3, 140, true}, {1, 1100}},
              {bits(), bits()},
              {bits(), bits()},
              kFloatDTypes[seed % 3],
              kFloatDTypes[seed / 3 % 3]};
    c.num_kv_heads = 2;
    c.group = 1 + seed % 9;
    c.page_size = seed % 5 == 0 ? 32 : 16;
    c.window = seed % 7 == 0 ? 100 : 0;
    ExpectMatchesReference(c, "mixed", seed);
  }
}

TEST_F(CodedAttentionCudaTest, EvenWidthsOfOneSideAndMixedOnesOfTheOther) {
  const Bits mixed = {8, 6, 5, 5, 4, 3, 2, 2};  // rows of 70 bytes
  for (const int bits : {8, 4, 3}) {
    Case c = {kMixed, {mixed}, {Uniform(128, bits)}, DType::kF16, DType::kF32};
    c.num_kv_heads = 2;
    c.group = 4;
    ExpectMatchesReference(c, "mixed K", static_cast<uint32_t>(bits));
    std::swap(c.k_bits, c.v_bits);
    ExpectMatchesReference(c, "mixed V", static_cast<uint32_t>(bits));
  }
}

TEST_F(CodedAttentionCudaTest, AllWidthsAndHeadDimsMatchTheReference) {
  const std::vector<Sequence> seqs = {{1, 45, true}, {3, 29}, {19, 31, true}, {1, 600}};
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
      ExpectMatchesReference(c, "widths", seed);
      ++seed;
    }
  }
}

TEST_F(CodedAttentionCudaTest, WindowHidesOldTokensAndTheExactOne) {
  for (const int bits : {3, 4, 5}) {
    for (const int64_t window : {1, 2, 31, 100, 299, 300, 5000}) {
      Case c = {kMixed, {Uniform(128, bits)}, {Uniform(128, bits)}, DType::kF16, DType::kF16};
      c.group = 2;
      c.window = window;
      ExpectMatchesReference(c, "window");
    }
  }
}

TEST_F(CodedAttentionCudaTest, ZerosFarFromTheCodesMatchTheReference) {
  Case c = {kMixed, {Uniform(128, 3)}, {Uniform(128, 4)}};
  c.k_shift = c.v_shift = 100.0f;
  ExpectMatchesReference(c, "far zeros");
}

TEST_F(CodedAttentionCudaTest, BatchInvariantMatchesTheReference) {
  for (const int64_t window : {0, 300}) {
    Case c = {kMixed, {Uniform(128, 4)}, {Bits{8, 6, 5, 5, 4, 3, 2, 2}}, DType::kF16, DType::kF32};
    c.num_kv_heads = 2;
    c.group = 3;
    c.window = window;
    ExpectMatchesReference(c, "batch-invariant", 1, 0.0f, /*batch_invariant=*/true);
  }
}

TEST_F(CodedAttentionCudaTest, BatchInvariantMeansAnySplitOfTokensAndHeads) {
  for (const int64_t window : {0, 10, 1500}) {
    SCOPED_TRACE(testing::Message() << "window " << window);
    Case c = {{{40, 2070, true}}, {Uniform(64, 4)}, {Bits{4, 3, 3, 2}}};
    c.group = 3;
    c.window = window;
    const Problem problem(c);
    DeviceCall whole(problem, stream()), split(problem, stream());
    RunWholeAndSplit(whole.args, split.args, c.page_size, [&](const CodedPagedAttentionArgs& args) {
      return CodedPagedAttention(args, stream());
    });
    const auto bytes = [&](const Tensor& out) {
      const Tensor host = OnHost(out.view(), stream());
      const auto* const data = static_cast<const uint8_t*>(host.view().raw());
      return std::vector<uint8_t>(data, data + host.size_bytes());
    };
    EXPECT_EQ(bytes(whole.out), bytes(split.out));
  }
}

TEST_F(CodedAttentionCudaTest, SharpScoresDoNotOverflowOrVanish) {
  for (const int bits : {3, 4, 8, 5}) {
    const Case c = {{{1, 200, true}, {1, 200}, {60, 200, true}, {60, 200}},
                    {Uniform(128, bits)},
                    {Uniform(128, bits)}};
    ExpectMatchesReference(c, "sharp", 1, 30.0f);
    ExpectMatchesReference(c, "flat", 1, 1e-6f);
  }
}

struct Write {
  Write(const Bits& k_bits, const Bits& v_bits, DType dtype, std::mt19937& random)
      : head_dim(static_cast<int64_t>(k_bits.size()) * kKvUnit),
        k_codes(Codes(head_dim, RandomHeads({k_bits}, kHeads, 2.0f, 2.0f, random))),
        v_codes(Codes(head_dim, RandomHeads({v_bits}, kHeads, 1.0f, 2.0f, random))) {
    std::uniform_real_distribution<float> uniform(-3.0f, 3.0f);
    const int64_t width = kHeads * head_dim;
    for (int64_t i = 0; i < kTokens * width; ++i) {
      k.push_back(uniform(random));
      v.push_back(uniform(random));
    }
    k_elements = Elements(dtype, k);
    v_elements = Elements(dtype, v);
    slots.resize(kPages * kPageSize);
    std::iota(slots.begin(), slots.end(), 0);
    std::shuffle(slots.begin(), slots.end(), random);
    slots.resize(kTokens);
    for (int32_t t = 0; t < kTokens; ++t) exact_rows.push_back(t % 3 == 0 ? t / 3 : -1);
    args.k = ConstTensorView(k_elements.data(), dtype, {kTokens, width});
    args.v = ConstTensorView(v_elements.data(), dtype, {kTokens, width});
    args.slots = slots;
    args.exact_rows = exact_rows;
  }

  static constexpr int64_t kHeads = 3, kTokens = 29, kPages = 7, kPageSize = 5;
  int64_t head_dim;
  KvCodes k_codes, v_codes;
  std::vector<float> k, v;
  std::vector<uint8_t> k_elements, v_elements;
  std::vector<int64_t> slots;
  std::vector<int32_t> exact_rows;
  CodedKvWriteArgs args;
};

// Runs the write on a stream into fresh pages and exact rows; returns the codes of pages and the
// bytes of exact rows.
std::vector<uint8_t> Written(const Write& write, Stream& stream) {
  const KvCodes k_codes = CodesOn(write.k_codes, stream.device());
  const KvCodes v_codes = CodesOn(write.v_codes, stream.device());
  const auto filled = [&](DType dtype, std::initializer_list<int64_t> shape) {
    Tensor host = Tensor::Allocate(dtype, shape, Device::Cpu()).value();
    std::memset(host.mutable_view().mutable_raw(), 0xee, static_cast<size_t>(host.size_bytes()));
    return OnDevice(host.view(), stream);
  };
  const auto pages = [&](const KvCodes& codes) {
    return filled(DType::kU8, {Write::kPages, Write::kHeads, Write::kPageSize, codes.row_bytes()});
  };
  Tensor k_pages = pages(k_codes), v_pages = pages(v_codes);
  Tensor exact_k = filled(DType::kF16, {10, Write::kHeads, write.head_dim});
  Tensor exact_v = filled(DType::kF16, {10, Write::kHeads, write.head_dim});
  const Tensor k = OnDevice(write.args.k, stream), v = OnDevice(write.args.v, stream);
  CodedKvWriteArgs args = write.args;
  args.k = k.view();
  args.v = v.view();
  args.k_codes = &k_codes;
  args.v_codes = &v_codes;
  args.k_pages = k_pages.mutable_view();
  args.v_pages = v_pages.mutable_view();
  args.exact_k = exact_k.mutable_view();
  args.exact_v = exact_v.mutable_view();
  const absl::Status status = CodedKvWrite(args, stream);
  EXPECT_TRUE(status.ok()) << status;
  std::vector<uint8_t> bytes;
  for (const auto& [tensor, codes] : {std::pair(&k_pages, &k_codes), {&v_pages, &v_codes}}) {
    const Tensor host = OnHost(tensor->view(), stream);
    const auto* row = static_cast<const uint8_t*>(host.view().raw());
    std::vector<uint8_t> unpacked(static_cast<size_t>(codes->head_dim()));
    for (int64_t r = 0; r < Write::kPages * Write::kHeads * Write::kPageSize; ++r) {
      // Rows that nothing was written to have the same bytes, not the same codes.
      const bool written =
          !std::all_of(row, row + codes->row_bytes(), [](uint8_t byte) { return byte == 0xee; });
      codes->UnpackRow(r / Write::kPageSize % Write::kHeads, row, absl::MakeSpan(unpacked));
      if (written) bytes.insert(bytes.end(), unpacked.begin(), unpacked.end());
      row += codes->row_bytes();
    }
  }
  for (const Tensor* tensor : {&exact_k, &exact_v}) {
    const Tensor host = OnHost(tensor->view(), stream);
    const auto* data = static_cast<const uint8_t*>(host.view().raw());
    bytes.insert(bytes.end(), data, data + host.size_bytes());
  }
  return bytes;
}

TEST_F(CodedAttentionCudaTest, WritesTheCodesThatTheHostWrites) {
  std::mt19937 random(21);
  for (const int64_t head_dim : {16, 48, 64, 128}) {
    for (int bits = 1; bits <= 8; ++bits) {
      Bits mixed;
      for (int64_t u = 0; u < head_dim / kKvUnit; ++u) {
        mixed.push_back(static_cast<uint8_t>(1 + random() % 8));
      }
      std::sort(mixed.rbegin(), mixed.rend());
      for (const DType dtype : kFloatDTypes) {
        const Write write(Uniform(head_dim, bits), mixed, dtype, random);
        EXPECT_EQ(Written(write, stream()), Written(write, host()))
            << head_dim << " channels, " << bits << " bits";
      }
    }
  }
}

TEST_F(CodedAttentionCudaTest, WriteNamesWhatCannotBeStored) {
  std::mt19937 random(22);
  Write write(Uniform(32, 4), Uniform(32, 3), DType::kF32, random);
  const int64_t width = Write::kHeads * 32;
  write.v_elements = Elements(DType::kF32, [&] {
    std::vector<float> v = write.v;
    v[static_cast<size_t>(5 * width + 32 + 7)] = std::numeric_limits<float>::quiet_NaN();
    return v;
  }());
  const KvCodes k_codes = CodesOn(write.k_codes, stream().device());
  const KvCodes v_codes = CodesOn(write.v_codes, stream().device());
  const auto pages = [&](const KvCodes& codes) {
    return Tensor::Allocate(DType::kU8,
                            {Write::kPages, Write::kHeads, Write::kPageSize, codes.row_bytes()},
                            stream().device())
        .value();
  };
  Tensor k_pages = pages(k_codes), v_pages = pages(v_codes);
  const Tensor k = OnDevice(write.args.k, stream());
  const Tensor v = OnDevice(
      ConstTensorView(write.v_elements.data(), DType::kF32, {Write::kTokens, width}), stream());
  CodedKvWriteArgs args;
  args.k = k.view();
  args.v = v.view();
  args.slots = write.slots;
  args.k_codes = &k_codes;
  args.v_codes = &v_codes;
  args.k_pages = k_pages.mutable_view();
  args.v_pages = v_pages.mutable_view();
  EXPECT_THAT(CodedKvWrite(args, stream()).ToString(),
              HasSubstr("V of token 5, KV head 1, channel 7 is "));
  // The same without waiting.
  Tensor first_wrong = VectorOnDevice<int64_t>({kNoWrongValue}, stream());
  args.first_wrong = first_wrong.mutable_view();
  EXPECT_TRUE(CodedKvWrite(args, stream()).ok());
  const int64_t index = Values<int64_t>(first_wrong.view(), stream())[0];
  EXPECT_THAT(CodedKvWriteError(args, index).ToString(),
              HasSubstr("V of token 5, KV head 1, channel 7 is "));
}

}  // namespace
}  // namespace thinwire
