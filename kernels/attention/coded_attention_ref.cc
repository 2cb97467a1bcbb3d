#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "kernels/attention/coded_attention.h"
#include "kernels/convert/element.h"

namespace thinwire {
namespace {

// K or V of one call.
struct Side {
  const KvCodes& codes;
  const ConstTensorView& pages;
  const ConstTensorView& exact;
};

// One token's K or V of one head, channels in the model's order.
std::vector<double> Row(const Side& side, int64_t head, int64_t page, int64_t row) {
  const KvHeadCodes& host = side.codes.head(head);
  const int64_t offset =
      ((page * side.pages.dim(1) + head) * side.pages.dim(2) + row) * side.codes.row_bytes();
  std::vector<uint8_t> codes(host.order.size());
  side.codes.UnpackRow(head, side.pages.data<uint8_t>() + offset, absl::MakeSpan(codes));
  std::vector<double> values(codes.size());
  for (size_t j = 0; j < codes.size(); ++j) {
    values[static_cast<size_t>(host.order[j])] =
        static_cast<double>(host.step[j]) * (codes[j] - static_cast<double>(host.zero[j]));
  }
  return values;
}

std::vector<double> ExactRow(const Side& side, int64_t head, int64_t row) {
  const int64_t head_dim = side.codes.head_dim();
  std::vector<double> values;
  for (int64_t i = 0; i < head_dim; ++i) {
    values.push_back(LoadElement(side.exact, (row * side.codes.num_heads() + head) * head_dim + i));
  }
  return values;
}

}  // namespace

absl::Status CodedPagedAttentionReference(const CodedPagedAttentionArgs& args) {
  const Side k_side = {*args.k_codes, args.k_pages, args.exact_k};
  const Side v_side = {*args.v_codes, args.v_pages, args.exact_v};
  const int64_t num_kv_heads = args.k_codes->num_heads();
  const int64_t head_dim = args.k_codes->head_dim();
  const int64_t page_size = args.k_pages.dim(2);
  const int64_t group = args.num_heads / num_kv_heads;
  for (size_t s = 0; s < args.context_lens.size(); ++s) {
    const int32_t exact_row = args.exact_rows.empty() ? -1 : args.exact_rows[s];
    for (int64_t kv_head = 0; kv_head < num_kv_heads; ++kv_head) {
      std::vector<std::vector<double>> keys, values;
      for (int64_t j = 0; j < args.context_lens[s]; ++j) {
        const int64_t page = args.page_ids[args.page_offsets[s] + j / page_size];
        const bool exact = j == 0 && exact_row >= 0;
        keys.push_back(exact ? ExactRow(k_side, kv_head, exact_row)
                             : Row(k_side, kv_head, page, j % page_size));
        values.push_back(exact ? ExactRow(v_side, kv_head, exact_row)
                               : Row(v_side, kv_head, page, j % page_size));
      }
      for (int64_t t = args.token_offsets[s]; t < args.token_offsets[s + 1]; ++t) {
        const int64_t position = args.context_lens[s] - (args.token_offsets[s + 1] - t);
        const int64_t first =
            args.window > 0 ? std::max<int64_t>(0, position - args.window + 1) : 0;
        for (int64_t h = kv_head * group; h < (kv_head + 1) * group; ++h) {
          std::vector<double> weights;
          double largest = -std::numeric_limits<double>::infinity();
          for (int64_t j = first; j <= position; ++j) {
            double score = 0.0;
            for (int64_t i = 0; i < head_dim; ++i) {
              score += LoadElement(args.q, t * args.q.row_stride() + h * head_dim + i) * keys[j][i];
            }
            weights.push_back(static_cast<double>(args.scale) * score);
            largest = std::max(largest, weights.back());
          }
          double sum = 0.0;
          for (double& weight : weights) {
            weight = std::exp(weight - largest);
            sum += weight;
          }
          for (int64_t i = 0; i < head_dim; ++i) {
            double value = 0.0;
            for (int64_t j = first; j <= position; ++j) value += weights[j - first] * values[j][i];
            StoreElement(args.out, t * args.out.row_stride() + h * head_dim + i, value / sum);
          }
        }
      }
    }
  }
  return absl::OkStatus();
}

}  // namespace thinwire
