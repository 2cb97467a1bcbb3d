// Attention on the CPU. Private to kernels/attention.
//
// The rows of one task are queries that share a KV head: row r is query token r / group, head r %
// group of the group. A sequence's way (few or many rows) and its split into tasks depend on that
// sequence only, and each row is computed by itself, so that neither other sequences nor the
// threads change a result.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/types/span.h"
#include "kernels/attention/paged_attention.h"
#include "kernels/core/dtype.h"
#include "kernels/core/stream.h"

namespace thinwire {

// Up to this many rows, keys are read from the pages in their storage type, one dot product each;
// beyond, rows are the lanes of vectors and keys are widened to fp32 first.
constexpr int64_t kFewRows = 8;

// Keys at a time: the scores of a chunk stay in the first-level cache.
constexpr int64_t kFewRowsChunk = 256;
constexpr int64_t kManyRowsChunk = 96;

// Rows side by side in a block of the many-rows kernel.
constexpr int64_t kBlockRows = 64;

// Rows of fp32 scratch are padded to a multiple of this, the widest vector.
constexpr int64_t kPaddedFloats = 16;

inline int64_t PaddedFloats(int64_t n) {
  return (n + kPaddedFloats - 1) / kPaddedFloats * kPaddedFloats;
}

// The keys and values of one sequence and one KV head.
struct HeadPages {
  const std::byte* k;  // row 0 of page 0 of this head
  const std::byte* v;
  DType dtype;
  int64_t head_dim;
  int64_t page_size;
  int64_t page_stride;      // elements from one page to the next
  const int32_t* page_ids;  // of the sequence

  // Bytes from k or v to the row of a token.
  int64_t Offset(int64_t token) const {
    return DTypeBytes(dtype,
                      page_ids[token / page_size] * page_stride + token % page_size * head_dim);
  }

  // Tokens of [token, end) whose rows lie one after the other.
  int64_t Run(int64_t token, int64_t end) const {
    return std::min(end - token, page_size - token % page_size);
  }
};

// The positions [begin, end) that a row attends to; never empty.
struct KeyRange {
  int32_t begin;
  int32_t end;
};

// Rows given and returned as fp32 [num_rows, PaddedFloats(head_dim)].
struct FewRows {
  int64_t num_rows;      // at most kFewRows
  float* q;              // scaled; zero beyond head_dim; may be overwritten
  const KeyRange* keys;  // [num_rows]
  float* scores;         // scratch [num_rows, kFewRowsChunk]
  float* out;
};
void AttendFewRows(const HeadPages& pages, const FewRows& rows);

// Rows given and returned as fp32, transposed in blocks: [head_dim, kBlockRows] of block 0, of
// block 1, ... Both ends of `keys` grow with the row.
struct ManyRowsArgs {
  int64_t head_dim;
  // Writes the keys and values of positions [begin, end), at most kManyRowsChunk, as fp32
  // [end - begin, head_dim].
  absl::FunctionRef<void(int64_t begin, int64_t end, float* k, float* v)> widen;
  int64_t num_rows;
  const float* q;        // scaled; zero beyond num_rows
  const KeyRange* keys;  // [num_rows rounded up to kBlockRows], those beyond num_rows empty: {0, 0}
  float* scores;         // scratch [kManyRowsChunk, kBlockRows]
  float* wide;           // scratch [2, kManyRowsChunk, head_dim]
  float* maxima;         // scratch [num_rows rounded up to kBlockRows]
  float* sums;           // the same
  float* out;
};
void AttendManyRows(const ManyRowsArgs& args);

// What calls of attention have in common, as in PagedAttentionArgs.
struct AttentionCall {
  ConstTensorView q;
  TensorView out;
  absl::Span<const int32_t> token_offsets;
  absl::Span<const int32_t> context_lens;
  int64_t num_kv_heads;
  int64_t head_dim;
  int64_t num_heads;
  float scale;
  int64_t window;
  bool batch_invariant;
};

// How the keys and values of a call's sequences lie in memory. Both calls come from several threads
// at once.
class StoredKeys {
 public:
  virtual ~StoredKeys() = default;

  // The channel that each position of a row holds, [head_dim]: q is given and out is taken in this
  // order. Null: as in the model.
  virtual const int32_t* KOrder(int64_t /*kv_head*/) const { return nullptr; }
  virtual const int32_t* VOrder(int64_t /*kv_head*/) const { return nullptr; }

  virtual void AttendFew(int64_t seq, int64_t kv_head, const FewRows& rows) const = 0;

  // As ManyRowsArgs::widen.
  virtual void Widen(int64_t seq, int64_t kv_head, int64_t begin, int64_t end, float* k,
                     float* v) const = 0;
};

// Arguments are checked and on the CPU. Scratch per thread is bounded whatever the context.
absl::Status AttendCpu(const AttentionCall& call, const StoredKeys& stored, Stream& stream);
absl::Status PagedAttentionCpu(const PagedAttentionArgs& args, Stream& stream);

}  // namespace thinwire
