// Attention over codes on the CPU. Private to kernels/attention. Rows, tasks and their independence
// of each other are those of kernels/attention/paged_attention_cpu.h.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "kernels/attention/coded_attention.h"
#include "kernels/attention/kv_codes.h"
#include "kernels/attention/paged_attention_cpu.h"
#include "kernels/core/dtype.h"
#include "kernels/core/stream.h"
#include "kernels/core/tensor_view.h"

namespace thinwire {

// The codes of K or of V of one sequence and one KV head.
struct CodedRows {
  const uint8_t* first;  // row 0 of page 0 of this head
  int64_t row_bytes;
  int64_t page_size;
  int64_t page_stride;      // bytes from one page to the next
  const int32_t* page_ids;  // of the sequence
  const KvCodes* codes;
  int64_t kv_head;
};

// A row's running softmax. Scores of codes leave out the constant that K's zeros add to all of
// them.
struct CodedRowState {
  float maximum;  // of the scores so far, on the scale of codes
  float sum;      // of the weights of codes
  float exact;    // weight of the key that has no codes
};

struct CodedFewRows {
  CodedRows k;
  CodedRows v;
  int64_t num_rows;      // at most kFewRows
  const float* q;        // [num_rows, PaddedFloats(head_dim)] by K's positions; scaled, times steps
  const KeyRange* keys;  // [num_rows] with codes; may be empty
  float* scores;         // scratch [num_rows, kFewRowsChunk]
  CodedRowState* states;  // [num_rows] as before the first of keys; updated
  float* out;  // [num_rows, PaddedFloats(head_dim)] sum of weight * code, by V's positions
};
void AttendFewCodedRows(const CodedFewRows& args);

// to[j - begin, :] = the values of positions [begin, end) in the order of the codes; at most
// kManyRowsChunk.
void WidenCodedRows(const CodedRows& rows, int64_t begin, int64_t end, float* to);

// x[num_heads * head_dim] of one token to its rows; head h's row lies h * head_stride bytes behind
// `to`. Returns the index of the first of x that is NaN or infinite, -1 when there is none.
int64_t EncodeToken(const KvCodes& codes, const float* x, uint8_t* to, int64_t head_stride);

// What CodedKvWrite and CodedPagedAttention check alike; `op` begins the messages.
absl::Status CheckCodedPages(absl::string_view op, const KvCodes& k_codes, const KvCodes& v_codes,
                             const ConstTensorView& k_pages, const ConstTensorView& v_pages);
absl::Status CheckExactRows(absl::string_view op, const KvCodes& codes,
                            absl::Span<const int32_t> rows, size_t count,
                            const ConstTensorView& exact_k, const ConstTensorView& exact_v);

// Arguments are checked and on the CPU.
absl::Status CodedPagedAttentionCpu(const CodedPagedAttentionArgs& args, Stream& stream);

}  // namespace thinwire
