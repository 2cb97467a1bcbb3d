#include "runtime/cache/paged_kv_cache.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/core/check.h"
#include "kernels/core/status_macros.h"

namespace thinwire {

KvCacheShape::RowBytes KvCacheShape::Row(int64_t layer) const {
  if (!coded_rows.empty()) return coded_rows[layer];
  const int64_t bytes = DTypeBytes(dtype, head_dim);
  return {bytes, bytes};
}

KvCacheShape::RowBytes KvCacheShape::UsedRow(int64_t layer, int64_t kv_head) const {
  return used_rows.empty() ? Row(layer) : used_rows[layer * num_kv_heads + kv_head];
}

int64_t KvCacheShape::PageBytes() const {
  if (coded_rows.empty()) {
    return 2 * num_layers * DTypeBytes(dtype, num_kv_heads * page_size * head_dim);
  }
  int64_t bytes = 0;
  for (const RowBytes& row : coded_rows) bytes += num_kv_heads * page_size * (row.k + row.v);
  return bytes;
}

int64_t KvCacheShape::ExactRowBytes() const {
  if (!exact_first_tokens) return 0;
  return 2 * num_layers * DTypeBytes(DType::kF16, num_kv_heads * head_dim);
}

absl::StatusOr<PagedKvCache> PagedKvCache::Allocate(const KvCacheShape& shape, int64_t num_pages,
                                                    int64_t num_exact_rows, Device device) {
  TW_CHECK(shape.coded_rows.empty() ||
           static_cast<int64_t>(shape.coded_rows.size()) == shape.num_layers);
  PagedKvCache cache;
  cache.shape_ = shape;
  cache.num_pages_ = num_pages;
  const auto add = [&](int64_t layer, DType dtype, std::initializer_list<int64_t> dims,
                       std::vector<Tensor>& tensors) -> absl::Status {
    auto tensor = Tensor::Allocate(dtype, dims, device);
    if (!tensor.ok()) {
      return Annotate(tensor.status(),
                      absl::StrCat("KV cache of ", num_pages, " pages, layer ", layer));
    }
    tensors.push_back(*std::move(tensor));
    return absl::OkStatus();
  };
  const int64_t heads = shape.num_kv_heads;
  for (int64_t layer = 0; layer < shape.num_layers; ++layer) {
    const bool coded = !shape.coded_rows.empty();
    const DType dtype = coded ? DType::kU8 : shape.dtype;
    const int64_t k_row = coded ? shape.coded_rows[layer].k : shape.head_dim;
    const int64_t v_row = coded ? shape.coded_rows[layer].v : shape.head_dim;
    TW_RETURN_IF_ERROR(add(layer, dtype, {num_pages, heads, shape.page_size, k_row}, cache.k_));
    TW_RETURN_IF_ERROR(add(layer, dtype, {num_pages, heads, shape.page_size, v_row}, cache.v_));
    if (!shape.exact_first_tokens) continue;
    const std::initializer_list<int64_t> exact = {num_exact_rows, heads, shape.head_dim};
    TW_RETURN_IF_ERROR(add(layer, DType::kF16, exact, cache.exact_k_));
    TW_RETURN_IF_ERROR(add(layer, DType::kF16, exact, cache.exact_v_));
  }
  return cache;
}

TensorView PagedKvCache::exact_k(int64_t layer) {
  return exact_k_.empty() ? TensorView() : exact_k_[layer].mutable_view();
}

TensorView PagedKvCache::exact_v(int64_t layer) {
  return exact_v_.empty() ? TensorView() : exact_v_[layer].mutable_view();
}

int64_t PagedKvCache::size_bytes() const {
  int64_t bytes = 0;
  for (const std::vector<Tensor>* tensors : {&k_, &v_, &exact_k_, &exact_v_}) {
    for (const Tensor& tensor : *tensors) bytes += tensor.size_bytes();
  }
  return bytes;
}

}  // namespace thinwire
