#include "runtime/cache/kv_part.h"

#include <cstddef>
#include <vector>

#include "kernels/attention/row_strips.h"
#include "kernels/core/check.h"

namespace thinwire {
namespace {

// The rows of the part, in the order of a message.
std::vector<RowStrip> StripsOf(PagedKvCache& cache, const KvPart& part, const KvPlace& place) {
  const KvCacheShape& shape = cache.shape();
  const int64_t heads = shape.num_kv_heads;
  TW_CHECK(part.layers.end <= shape.num_layers && part.kv_heads.end <= heads);
  std::vector<RowStrip> strips;
  const auto add_pages = [&](const TensorView& pages, int64_t head, int64_t row, int64_t used) {
    const int64_t head_bytes = shape.page_size * row;
    strips.push_back({.pages = static_cast<std::byte*>(pages.mutable_raw()) + head * head_bytes,
                      .page_bytes = heads * head_bytes,
                      .row_bytes = row,
                      .used_bytes = used,
                      .count = place.num_tokens});
  };
  const auto add_exact = [&](const TensorView& exact, int64_t head) {
    const int64_t row = DTypeBytes(DType::kF16, shape.head_dim);
    strips.push_back({.pages = static_cast<std::byte*>(exact.mutable_raw()) +
                               (place.exact_row * heads + head) * row,
                      .row_bytes = row,
                      .used_bytes = row,
                      .count = 1});
  };
  for (int64_t layer = part.layers.begin; layer < part.layers.end; ++layer) {
    for (int64_t head = part.kv_heads.begin; head < part.kv_heads.end; ++head) {
      const KvCacheShape::RowBytes row = shape.Row(layer);
      const KvCacheShape::RowBytes used = shape.UsedRow(layer, head);
      add_pages(cache.k_pages(layer), head, row.k, used.k);
      add_pages(cache.v_pages(layer), head, row.v, used.v);
      if (!shape.exact_first_tokens) continue;
      add_exact(cache.exact_k(layer), head);
      add_exact(cache.exact_v(layer), head);
    }
  }
  return strips;
}

}  // namespace

int64_t KvPartBytes(const KvCacheShape& shape, const KvPart& part, int64_t num_tokens) {
  int64_t bytes = 0;
  for (int64_t layer = part.layers.begin; layer < part.layers.end; ++layer) {
    for (int64_t head = part.kv_heads.begin; head < part.kv_heads.end; ++head) {
      const KvCacheShape::RowBytes used = shape.UsedRow(layer, head);
      bytes += num_tokens * (used.k + used.v);
      if (shape.exact_first_tokens) bytes += 2 * DTypeBytes(DType::kF16, shape.head_dim);
    }
  }
  return bytes;
}

int64_t KvPartFp16Bytes(const KvCacheShape& shape, const KvPart& part, int64_t num_tokens) {
  return part.layers.size() * part.kv_heads.size() * num_tokens * 2 *
         DTypeBytes(DType::kF16, shape.head_dim);
}

absl::Status ReadKvPart(PagedKvCache& cache, const KvPart& part, const KvPlace& place,
                        TensorView bytes, Stream& stream) {
  return PackRows({StripsOf(cache, part, place), place.pages, cache.shape().page_size}, bytes,
                  stream);
}

absl::Status WriteKvPart(PagedKvCache& cache, const KvPart& part, const KvPlace& place,
                         ConstTensorView bytes, Stream& stream) {
  return UnpackRows({StripsOf(cache, part, place), place.pages, cache.shape().page_size}, bytes,
                    stream);
}

}  // namespace thinwire
