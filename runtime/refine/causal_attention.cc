#include "runtime/refine/causal_attention.h"

#include <algorithm>
#include <cmath>

#include "kernels/core/check.h"
#include "kernels/linear/blas.h"

namespace thinwire {
namespace {

constexpr int64_t kBlockRows = 128;

}  // namespace

CausalAttention::CausalAttention(const CausalAttentionShape& shape, ThreadPool* pool)
    : shape_(shape),
      pool_(pool),
      scale_(1.0f / std::sqrt(static_cast<float>(shape.head_dim))),
      scratch_(static_cast<size_t>(pool->num_threads())) {
  TW_CHECK(shape.num_kv_heads > 0 && shape.num_heads % shape.num_kv_heads == 0);
}

template <typename Body>
void CausalAttention::ForHeads(const Body& body) {
  const int64_t num_heads = shape_.num_kv_heads;
  const int64_t block = std::min(kBlockRows, shape_.seqlen) * shape_.seqlen;
  pool_->ParallelForDynamic(shape_.num_windows * num_heads, [&](int64_t item) {
    std::vector<float>& scratch = scratch_[static_cast<size_t>(ThreadPool::CurrentThread())];
    scratch.resize(static_cast<size_t>(2 * block));
    body(item / num_heads, item % num_heads, scratch.data());
  });
}

template <typename Body>
void CausalAttention::ForBlocks(const Body& body) const {
  for (int64_t begin = 0; begin < shape_.seqlen; begin += kBlockRows) {
    Block block = {.begin = begin, .end = std::min(begin + kBlockRows, shape_.seqlen)};
    if (shape_.sliding_window > 0) {
      block.first = std::max<int64_t>(0, begin - shape_.sliding_window + 1);
    }
    body(block);
  }
}

void CausalAttention::Probabilities(const Block& block, const float* q, const float* k,
                                    float* scores) const {
  const int64_t stride = shape_.qkv_width();
  const int64_t width = block.columns();
  SgemmNT(block.rows(), width, shape_.head_dim, q + block.begin * stride, stride,
          k + block.first * stride, stride, 0.0f, scores, width);
  for (int64_t i = block.begin; i < block.end; ++i) {
    float* const row = scores + (i - block.begin) * width;
    const int64_t oldest =
        shape_.sliding_window > 0 ? std::max<int64_t>(0, i - shape_.sliding_window + 1) : 0;
    const int64_t from = oldest - block.first;
    const int64_t to = i + 1 - block.first;
    float largest = row[from];
    for (int64_t j = from; j < to; ++j) largest = std::max(largest, row[j]);
    double sum = 0.0;
    for (int64_t j = from; j < to; ++j) {
      row[j] = std::exp(scale_ * (row[j] - largest));
      sum += row[j];
    }
    const auto factor = static_cast<float>(1.0 / sum);
    std::fill(row, row + from, 0.0f);
    for (int64_t j = from; j < to; ++j) row[j] *= factor;
    std::fill(row + to, row + width, 0.0f);
  }
}

void CausalAttention::Forward(const float* qkv, float* out) {
  const int64_t stride = shape_.qkv_width();
  const int64_t out_stride = shape_.q_width();
  const int64_t dim = shape_.head_dim;
  const int64_t group = shape_.num_heads / shape_.num_kv_heads;
  ForHeads([&](int64_t window, int64_t kv_head, float* scratch) {
    const float* const rows = qkv + window * shape_.seqlen * stride;
    const float* const k = rows + shape_.q_width() + kv_head * dim;
    const float* const v = k + shape_.kv_width();
    for (int64_t head = kv_head * group; head < (kv_head + 1) * group; ++head) {
      float* const o = out + window * shape_.seqlen * out_stride + head * dim;
      ForBlocks([&](const Block& block) {
        Probabilities(block, rows + head * dim, k, scratch);
        SgemmNN(block.rows(), dim, block.columns(), scratch, block.columns(),
                v + block.first * stride, stride, 0.0f, o + block.begin * out_stride, out_stride);
      });
    }
  });
}

void CausalAttention::Backward(const float* qkv, const float* dout, float* dqkv) {
  const int64_t stride = shape_.qkv_width();
  const int64_t out_stride = shape_.q_width();
  const int64_t dim = shape_.head_dim;
  const int64_t group = shape_.num_heads / shape_.num_kv_heads;
  ForHeads([&](int64_t window, int64_t kv_head, float* scratch) {
    const int64_t first_row = window * shape_.seqlen;
    const float* const rows = qkv + first_row * stride;
    const int64_t k_column = shape_.q_width() + kv_head * dim;
    const float* const k = rows + k_column;
    const float* const v = k + shape_.kv_width();
    float* const drows = dqkv + first_row * stride;
    float* const dk = drows + k_column;
    float* const dv = dk + shape_.kv_width();
    for (int64_t t = 0; t < shape_.seqlen; ++t) {
      std::fill_n(dk + t * stride, dim, 0.0f);
      std::fill_n(dv + t * stride, dim, 0.0f);
    }
    float* const p = scratch;
    for (int64_t head = kv_head * group; head < (kv_head + 1) * group; ++head) {
      const float* const q = rows + head * dim;
      const float* const d = dout + first_row * out_stride + head * dim;
      ForBlocks([&](const Block& block) {
        const int64_t width = block.columns();
        const float* const block_d = d + block.begin * out_stride;
        float* const ds = scratch + block.rows() * width;
        Probabilities(block, q, k, p);
        SgemmTN(width, dim, block.rows(), p, width, block_d, out_stride, 1.0f,
                dv + block.first * stride, stride);
        SgemmNT(block.rows(), width, dim, block_d, out_stride, v + block.first * stride, stride,
                0.0f, ds, width);
        // ds = p * (dp - sum of p dp), times the factor of the scores.
        for (int64_t i = 0; i < block.rows(); ++i) {
          const float* const p_row = p + i * width;
          float* const row = ds + i * width;
          double sum = 0.0;
          for (int64_t j = 0; j < width; ++j) sum += double{p_row[j]} * row[j];
          const auto mean = static_cast<float>(sum);
          for (int64_t j = 0; j < width; ++j) row[j] = scale_ * p_row[j] * (row[j] - mean);
        }
        SgemmNN(block.rows(), dim, width, ds, width, k + block.first * stride, stride, 0.0f,
                drows + head * dim + block.begin * stride, stride);
        SgemmTN(width, dim, block.rows(), ds, width, q + block.begin * stride, stride, 1.0f,
                dk + block.first * stride, stride);
      });
    }
  });
}

}  // namespace thinwire
