// The memory behind KV pages: one rank's layers and KV heads.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/core/tensor.h"

namespace thinwire {

// What one rank keeps of every token.
struct KvCacheShape {
  int64_t num_layers = 0;    // of this stage
  int64_t num_kv_heads = 0;  // of this rank
  int64_t head_dim = 0;
  int64_t page_size = 0;  // tokens of a page
  DType dtype = DType::kF32;

  // Where K and V are codes: bytes of a row (one token, one KV head) of each layer, as
  // kernels/attention packs them. Empty: rows are head_dim values of dtype.
  struct RowBytes {
    int64_t k = 0;
    int64_t v = 0;
  };
  std::vector<RowBytes> coded_rows;
  // Of these bytes, those that the codes of each head take, [num_layers * num_kv_heads] by layer;
  // the others are zero. Empty: all.
  std::vector<RowBytes> used_rows;
  // Of each layer, whether its codes lie in planes (KvCodes::paired): K's, V's. Empty: none do.
  std::vector<std::pair<bool, bool>> in_planes;
  // Whether codes of a sequence's first token have exact K and V beside them.
  bool exact_first_tokens = false;

  // Bytes of a row of a layer, and those of them that a head's codes take.
  RowBytes Row(int64_t layer) const;
  RowBytes UsedRow(int64_t layer, int64_t kv_head) const;

  // Bytes of one page across all layers, K and V together.
  int64_t PageBytes() const;

  // Bytes of one sequence's exact first token across all layers, K and V together.
  int64_t ExactRowBytes() const;
};

// Layer l has two arrays, K and V, in the layout that kernels/attention reads: [num_pages,
// num_kv_heads, page_size, head_dim] of dtype, or [num_pages, num_kv_heads, page_size, row bytes]
// of uint8. Which sequence owns which page is the scheduler's business. Move-only.
class PagedKvCache {
 public:
  // `num_exact_rows`: sequences whose first token is kept exactly, where the shape wants that.
  // On the CPU, memory is touched, and so counted, only as pages fill.
  static absl::StatusOr<PagedKvCache> Allocate(const KvCacheShape& shape, int64_t num_pages,
                                               int64_t num_exact_rows, Device device);

  TensorView k_pages(int64_t layer) { return k_[layer].mutable_view(); }
  TensorView v_pages(int64_t layer) { return v_[layer].mutable_view(); }

  // [num_exact_rows, num_kv_heads, head_dim] fp16; empty where the shape wants none.
  TensorView exact_k(int64_t layer);
  TensorView exact_v(int64_t layer);

  const KvCacheShape& shape() const { return shape_; }
  int64_t num_pages() const { return num_pages_; }
  int64_t size_bytes() const;

 private:
  KvCacheShape shape_;
  int64_t num_pages_ = 0;
  std::vector<Tensor> k_, v_;
  std::vector<Tensor> exact_k_, exact_v_;
};

}  // namespace thinwire
