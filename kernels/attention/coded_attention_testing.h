// For tests: calls of attention over codes, checked against the definition.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_join.h"
#include "gtest/gtest.h"
#include "kernels/attention/coded_attention.h"
#include "kernels/attention/kv_codes_testing.h"
#include "kernels/core/float16.h"
#include "kernels/testing/rounded.h"

namespace thinwire {

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
    q_ = std::vector<float>(static_cast<size_t>(num_tokens * (width + kGap)),
                            std::numeric_limits<float>::quiet_NaN());
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

  // The whole matrices that q and out are columns of.
  ConstTensorView all_q() const {
    return ConstTensorView(q_elements_.data(), c_.q_dtype, {args.q.dim(0), width() + kGap});
  }
  TensorView all_out() const {
    return TensorView(args.out.mutable_raw(), c_.out_dtype, {args.q.dim(0), width() + kGap});
  }

  // `extra`: by how much more than 2^-24 a weight and a score's terms may be off, relative to
  // themselves.
  void ExpectMatchesReference(const std::string& where, double extra = 0.0) const {
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
                  u +
              extra * (2.0 * largest + 1.0);
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

}  // namespace thinwire
