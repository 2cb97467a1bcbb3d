// The memory behind KV pages: one rank's layers and KV heads.
#pragma once

#include <cstdint>
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

  // Bytes of one page across all layers, K and V together.
  int64_t PageBytes() const;
};

// Layer l has two arrays [num_pages, num_kv_heads, page_size, head_dim], K and V, in the layout
// that kernels/attention reads. Which sequence owns which page is the scheduler's business.
// Move-only.
class PagedKvCache {
 public:
  // On the CPU, memory is touched, and so counted, only as pages fill.
  static absl::StatusOr<PagedKvCache> Allocate(const KvCacheShape& shape, int64_t num_pages,
                                               Device device);

  TensorView k_pages(int64_t layer) { return k_[layer].mutable_view(); }
  TensorView v_pages(int64_t layer) { return v_[layer].mutable_view(); }
  const KvCacheShape& shape() const { return shape_; }
  int64_t num_pages() const { return num_pages_; }
  int64_t size_bytes() const { return num_pages_ * shape_.PageBytes(); }

 private:
  KvCacheShape shape_;
  int64_t num_pages_ = 0;
  std::vector<Tensor> k_, v_;
};

}  // namespace thinwire
