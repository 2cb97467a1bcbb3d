#include "runtime/cache/kv_part.h"

#include <algorithm>
#include <cstddef>
#include <cstring>

#include "kernels/core/check.h"

namespace thinwire {
namespace {

// Calls visit(memory, bytes, rest) for every run of bytes of the part, in the order of a message;
// `rest` bytes behind the run belong to it and are zero.
template <typename Visit>
void ForEachRun(PagedKvCache& cache, const KvPart& part, const KvPlace& place, const Visit& visit) {
  const KvCacheShape& shape = cache.shape();
  const int64_t page_size = shape.page_size;
  const int64_t heads = shape.num_kv_heads;
  TW_CHECK(part.layers.end <= shape.num_layers && part.kv_heads.end <= heads);
  TW_CHECK_GE(static_cast<int64_t>(place.pages.size()) * page_size, place.num_tokens);
  const auto visit_pages = [&](const TensorView& pages, int64_t head, int64_t row, int64_t used) {
    auto* base = static_cast<std::byte*>(pages.mutable_raw());
    for (int64_t token = 0; token < place.num_tokens;) {
      const int64_t count = std::min(page_size, place.num_tokens - token);
      std::byte* rows = base + ((place.pages[token / page_size] * heads + head) * page_size) * row;
      if (used == row) {
        visit(rows, count * row, 0);
      } else {
        for (int64_t i = 0; i < count; ++i) visit(rows + i * row, used, row - used);
      }
      token += count;
    }
  };
  const auto visit_exact = [&](const TensorView& exact, int64_t head) {
    const int64_t row = DTypeBytes(DType::kF16, shape.head_dim);
    visit(static_cast<std::byte*>(exact.mutable_raw()) + (place.exact_row * heads + head) * row,
          row, 0);
  };
  for (int64_t layer = part.layers.begin; layer < part.layers.end; ++layer) {
    for (int64_t head = part.kv_heads.begin; head < part.kv_heads.end; ++head) {
      const KvCacheShape::RowBytes row = shape.Row(layer);
      const KvCacheShape::RowBytes used = shape.UsedRow(layer, head);
      visit_pages(cache.k_pages(layer), head, row.k, used.k);
      visit_pages(cache.v_pages(layer), head, row.v, used.v);
      if (!shape.exact_first_tokens) continue;
      visit_exact(cache.exact_k(layer), head);
      visit_exact(cache.exact_v(layer), head);
    }
  }
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

void ReadKvPart(PagedKvCache& cache, const KvPart& part, const KvPlace& place, TensorView bytes) {
  auto* out = static_cast<std::byte*>(bytes.mutable_raw());
  const std::byte* end = out + bytes.num_elements();
  ForEachRun(cache, part, place, [&](const std::byte* run, int64_t count, int64_t) {
    std::memcpy(out, run, count);
    out += count;
  });
  TW_CHECK(out == end);
}

void WriteKvPart(PagedKvCache& cache, const KvPart& part, const KvPlace& place,
                 ConstTensorView bytes) {
  const auto* in = static_cast<const std::byte*>(bytes.raw());
  const std::byte* end = in + bytes.num_elements();
  ForEachRun(cache, part, place, [&](std::byte* run, int64_t count, int64_t rest) {
    std::memcpy(run, in, count);
    std::memset(run + count, 0, rest);
    in += count;
  });
  TW_CHECK(in == end);
}

}  // namespace thinwire
