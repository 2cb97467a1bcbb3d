// For tests: calls of attention over float pages, checked against the definition.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "absl/types/span.h"
#include "gtest/gtest.h"
#include "kernels/attention/attention_testing.h"
#include "kernels/attention/paged_attention.h"
#include "kernels/core/dtype.h"
#include "kernels/testing/rounded.h"

namespace thinwire {

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
  int64_t gap = 3;  // between rows of q and of out, elements
};

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
    q_ = std::vector<float>(static_cast<size_t>(num_tokens * (width + c.gap)),
                            std::numeric_limits<float>::quiet_NaN());
    for (int64_t t = 0; t < num_tokens; ++t) {
      for (int64_t i = 0; i < width; ++i) q_[t * (width + c.gap) + i] = 2.0f * uniform(random);
    }
    const int64_t page = c.num_kv_heads * c.page_size * c.head_dim;
    k_ = std::vector<float>(static_cast<size_t>(num_pages * page),
                            std::numeric_limits<float>::quiet_NaN());
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
        ConstTensorView(q_elements_.data(), c.dtype, {num_tokens, width + c.gap}).Columns(0, width);
    args.out =
        TensorView(out_elements_.data(), c.dtype, {num_tokens, width + c.gap}).Columns(0, width);
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
  int64_t row(int64_t token) const { return token * (width() + c_.gap); }
  std::vector<float> Out() const { return Floats(c_.dtype, out_elements_); }

  // The whole matrices that q and out are columns of.
  ConstTensorView all_q() const {
    return ConstTensorView(q_elements_.data(), c_.dtype, {args.q.dim(0), width() + c_.gap});
  }
  TensorView all_out() const {
    return TensorView(args.out.mutable_raw(), c_.dtype, {args.q.dim(0), width() + c_.gap});
  }

  // Compares out with the reference. `extra`: by how much more than 2^-24 a weight and a score's
  // terms may be off, relative to themselves.
  void ExpectMatchesReference(const std::string& where, double extra = 0.0) const {
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
        ConstTensorView(q.data(), DType::kF32, {num_tokens, width() + c_.gap}).Columns(0, width());
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
                                      u +
                                  extra * (2.0 * largest + 1.0);
      const double relative = 1.01 * (2.0 * weight_error + 2.0 * (n + 2.0) * u);
      const double rounding = UnitRoundoff(c_.dtype);
      for (int64_t t = token_offsets_[s]; t < token_offsets_[s + 1]; ++t) {
        for (int64_t i = 0; i < width() + c_.gap; ++i) {
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
  Case c_;
  std::vector<int32_t> token_offsets_, context_lens_, page_offsets_, page_ids_;
  std::vector<float> q_, k_, v_;
  std::vector<uint8_t> q_elements_, k_elements_, v_elements_, out_elements_;
};

}  // namespace thinwire
