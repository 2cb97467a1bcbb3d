#include "runtime/cache/paged_kv_cache.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/core/status_macros.h"

namespace thinwire {

int64_t KvCacheShape::PageBytes() const {
  return 2 * num_layers * DTypeBytes(dtype, num_kv_heads * page_size * head_dim);
}

absl::StatusOr<PagedKvCache> PagedKvCache::Allocate(const KvCacheShape& shape, int64_t num_pages,
                                                    Device device) {
  PagedKvCache cache;
  cache.shape_ = shape;
  cache.num_pages_ = num_pages;
  for (int64_t layer = 0; layer < shape.num_layers; ++layer) {
    for (std::vector<Tensor>* pages : {&cache.k_, &cache.v_}) {
      auto tensor = Tensor::Allocate(
          shape.dtype, {num_pages, shape.num_kv_heads, shape.page_size, shape.head_dim}, device);
      if (!tensor.ok()) {
        return Annotate(tensor.status(),
                        absl::StrCat("KV cache of ", num_pages, " pages, layer ", layer));
      }
      pages->push_back(*std::move(tensor));
    }
  }
  return cache;
}

}  // namespace thinwire
