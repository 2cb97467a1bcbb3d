#include "kernels/attention/coded_attention_cpu.h"

#include <vector>

#include "kernels/convert/convert.h"
#include "kernels/core/float16.h"

namespace thinwire {
namespace {

// So far below any score that what is gathered before the first key is forgotten.
constexpr float kNoScore = -1e30f;

class CodedKeys final : public StoredKeys {
 public:
  explicit CodedKeys(const CodedPagedAttentionArgs& args)
      : args_(args), head_dim_(args.k_codes->head_dim()) {}

  const int32_t* KOrder(int64_t kv_head) const override {
    return args_.k_codes->head(kv_head).order.data();
  }
  const int32_t* VOrder(int64_t kv_head) const override {
    return args_.v_codes->head(kv_head).order.data();
  }

  void AttendFew(int64_t seq, int64_t kv_head, const FewRows& rows) const override {
    const int64_t stride = PaddedFloats(head_dim_);
    const KvHeadCodes& k = args_.k_codes->head(kv_head);
    CodedRowState states[kFewRows];
    KeyRange keys[kFewRows];
    const bool exact = LoadExact(args_.exact_k, seq, kv_head, rows.out);
    for (int64_t r = 0; r < rows.num_rows; ++r) {
      float* q = rows.q + r * stride;
      keys[r] = rows.keys[r];
      states[r] = {kNoScore, 0.0f, 0.0f};
      float exact_score = 0.0f, zeros = 0.0f;
      if (exact && keys[r].begin == 0) {
        for (int64_t j = 0; j < head_dim_; ++j) exact_score += q[j] * rows.out[k.order[j]];
      }
      for (int64_t j = 0; j < head_dim_; ++j) {
        q[j] *= k.step[j];
        zeros += q[j] * k.zero[j];
      }
      if (exact && keys[r].begin == 0) {
        const float score = exact_score + zeros;
        states[r] = {score, 0.0f, score == score ? 1.0f : score};
        keys[r].begin = 1;
      }
    }
    AttendFewCodedRows({Rows(seq, kv_head, args_.k_pages, *args_.k_codes),
                        Rows(seq, kv_head, args_.v_pages, *args_.v_codes), rows.num_rows, rows.q,
                        keys, rows.scores, states, rows.out});
    // The queries have served.
    float* exact_v = rows.q;
    LoadExact(args_.exact_v, seq, kv_head, exact_v);
    const KvHeadCodes& v = args_.v_codes->head(kv_head);
    for (int64_t r = 0; r < rows.num_rows; ++r) {
      float* out = rows.out + r * stride;
      const CodedRowState& state = states[r];
      const float inverse = 1.0f / (state.sum + state.exact);
      for (int64_t j = 0; j < head_dim_; ++j) {
        out[j] = v.step[j] * (out[j] - v.zero[j] * state.sum);
      }
      if (state.exact != 0.0f) {
        for (int64_t j = 0; j < head_dim_; ++j) out[j] += state.exact * exact_v[v.order[j]];
      }
      for (int64_t j = 0; j < head_dim_; ++j) out[j] *= inverse;
    }
  }

  void Widen(int64_t seq, int64_t kv_head, int64_t begin, int64_t end, float* k,
             float* v) const override {
    WidenCodedRows(Rows(seq, kv_head, args_.k_pages, *args_.k_codes), begin, end, k);
    WidenCodedRows(Rows(seq, kv_head, args_.v_pages, *args_.v_codes), begin, end, v);
    if (begin == 0) {
      OverwriteExact(args_.exact_k, seq, kv_head, *args_.k_codes, k);
      OverwriteExact(args_.exact_v, seq, kv_head, *args_.v_codes, v);
    }
  }

 private:
  CodedRows Rows(int64_t seq, int64_t kv_head, const ConstTensorView& pages,
                 const KvCodes& codes) const {
    const int64_t head_stride = pages.dim(2) * pages.dim(3);
    return {pages.data<uint8_t>() + kv_head * head_stride,
            pages.dim(3),
            pages.dim(2),
            pages.dim(1) * head_stride,
            args_.page_ids.data() + args_.page_offsets[seq],
            &codes,
            kv_head};
  }

  // The sequence's exact row of exact_k or exact_v, if it has one, channels in the model's order.
  bool LoadExact(const ConstTensorView& exact, int64_t seq, int64_t kv_head, float* to) const {
    if (args_.exact_rows.empty() || args_.exact_rows[seq] < 0) return false;
    const int64_t row = args_.exact_rows[seq] * exact.row_stride() + kv_head * head_dim_;
    ConvertToFloat(exact.data<Half>() + row, DType::kF16, to, head_dim_);
    return true;
  }

  void OverwriteExact(const ConstTensorView& exact, int64_t seq, int64_t kv_head,
                      const KvCodes& codes, float* row) const {
    if (args_.exact_rows.empty() || args_.exact_rows[seq] < 0) return;
    const Half* from =
        exact.data<Half>() + args_.exact_rows[seq] * exact.row_stride() + kv_head * head_dim_;
    const std::vector<int32_t>& order = codes.head(kv_head).order;
    for (int64_t j = 0; j < head_dim_; ++j) row[j] = ToFloat(from[order[j]]);
  }

  const CodedPagedAttentionArgs& args_;
  const int64_t head_dim_;
};

}  // namespace

absl::Status CodedPagedAttentionCpu(const CodedPagedAttentionArgs& args, Stream& stream) {
  const CodedKeys stored(args);
  const AttentionCall call = {args.q,
                              args.out,
                              args.token_offsets,
                              args.context_lens,
                              args.k_codes->num_heads(),
                              args.k_codes->head_dim(),
                              args.num_heads,
                              args.scale,
                              args.window,
                              args.batch_invariant};
  return AttendCpu(call, stored, stream);
}

}  // namespace thinwire
