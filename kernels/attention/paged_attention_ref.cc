#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "kernels/attention/paged_attention.h"
#include "kernels/convert/element.h"

namespace thinwire {

absl::Status PagedAttentionReference(const PagedAttentionArgs& args) {
  const int64_t num_kv_heads = args.k_pages.dim(1);
  const int64_t page_size = args.k_pages.dim(2);
  const int64_t head_dim = args.k_pages.dim(3);
  const int64_t group = args.num_heads / num_kv_heads;
  for (size_t s = 0; s < args.context_lens.size(); ++s) {
    const auto row_of = [&](int64_t token, int64_t kv_head) {
      const int64_t page = args.page_ids[args.page_offsets[s] + token / page_size];
      return ((page * num_kv_heads + kv_head) * page_size + token % page_size) * head_dim;
    };
    for (int64_t t = args.token_offsets[s]; t < args.token_offsets[s + 1]; ++t) {
      const int64_t position = args.context_lens[s] - (args.token_offsets[s + 1] - t);
      const int64_t first = args.window > 0 ? std::max<int64_t>(0, position - args.window + 1) : 0;
      for (int64_t h = 0; h < args.num_heads; ++h) {
        const int64_t q_row = t * args.q.row_stride() + h * head_dim;
        std::vector<double> weights;
        double largest = -std::numeric_limits<double>::infinity();
        for (int64_t j = first; j <= position; ++j) {
          const int64_t k_row = row_of(j, h / group);
          double score = 0.0;
          for (int64_t i = 0; i < head_dim; ++i) {
            score += LoadElement(args.q, q_row + i) * LoadElement(args.k_pages, k_row + i);
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
          for (int64_t j = first; j <= position; ++j) {
            value += weights[j - first] * LoadElement(args.v_pages, row_of(j, h / group) + i);
          }
          StoreElement(args.out, t * args.out.row_stride() + h * head_dim + i, value / sum);
        }
      }
    }
  }
  return absl::OkStatus();
}

}  // namespace thinwire
