// Causal attention over whole windows and its derivative.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/core/thread_pool.h"

namespace thinwire {

struct CausalAttentionShape {
  int64_t num_windows = 0;  // each a sequence of its own
  int64_t seqlen = 0;
  int64_t num_heads = 0;
  int64_t num_kv_heads = 0;  // divides num_heads
  int64_t head_dim = 0;
  int64_t sliding_window = 0;  // a token sees so many, itself included; 0: all before it

  int64_t q_width() const { return num_heads * head_dim; }
  int64_t kv_width() const { return num_kv_heads * head_dim; }
  int64_t qkv_width() const { return q_width() + 2 * kv_width(); }
};

// out = softmax(Q K^T / sqrt(head_dim)) V. qkv: [num_windows * seqlen, qkv_width], query heads,
// then key heads, then value heads; out: [num_windows * seqlen, q_width]. fp32. The same bits with
// any number of threads. Keeps scratch for some rows of scores, never all. Thread-compatible.
class CausalAttention {
 public:
  // Borrows the pool.
  CausalAttention(const CausalAttentionShape& shape, ThreadPool* pool);

  void Forward(const float* qkv, float* out);

  // dqkv = the derivative to qkv, of which dout is that to out.
  void Backward(const float* qkv, const float* dout, float* dqkv);

 private:
  // Rows [begin, end) of a window's scores see its columns [first, end).
  struct Block {
    int64_t begin = 0, end = 0, first = 0;
    int64_t rows() const { return end - begin; }
    int64_t columns() const { return end - first; }
  };

  // Calls body(window, kv head, scratch of this thread) for each, on all threads.
  template <typename Body>
  void ForHeads(const Body& body);
  template <typename Body>
  void ForBlocks(const Body& body) const;
  // Probabilities of the block's rows, 0 where a row does not see a column.
  void Probabilities(const Block& block, const float* q, const float* k, float* scores) const;

  const CausalAttentionShape shape_;
  ThreadPool* pool_;
  const float scale_;
  std::vector<std::vector<float>> scratch_;  // of a thread
};

}  // namespace thinwire
