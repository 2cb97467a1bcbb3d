#include "runtime/refine/logit_loss.h"

#include <algorithm>
#include <cmath>

#include "absl/status/status.h"
#include "kernels/convert/convert.h"
#include "kernels/core/check.h"
#include "kernels/linear/blas.h"
#include "runtime/refine/matrix_products.h"

namespace thinwire {
namespace {

// Floats of one kind of logits that a thread holds, and tokens they are at most of.
constexpr int64_t kScratchLogits = int64_t{1} << 22;
constexpr int64_t kMaxTokens = 256;

std::vector<float> Values(const Tensor& tensor) {
  const ConstTensorView view = tensor.view();
  std::vector<float> values(static_cast<size_t>(view.num_elements()));
  ConvertToFloat(view.raw(), view.dtype(), values.data(), view.num_elements());
  return values;
}

// logits become their distribution's logarithms.
void LogSoftmax(float* logits, int64_t vocab) {
  const float largest = *std::max_element(logits, logits + vocab);
  double sum = 0.0;
  for (int64_t i = 0; i < vocab; ++i) sum += std::exp(logits[i] - largest);
  const auto shift = static_cast<float>(largest + std::log(sum));
  for (int64_t i = 0; i < vocab; ++i) logits[i] -= shift;
}

}  // namespace

absl::StatusOr<LogitLoss> LogitLoss::Create(const ModelConfig& config, const DecoderWeights& ends,
                                            ThreadPool* pool) {
  LogitLoss loss;
  loss.hidden_ = config.hidden;
  loss.vocab_ = config.vocab;
  loss.pool_ = pool;
  const std::vector<float> head = Values(ends.head.empty() ? ends.token_embedding : ends.head);
  TW_CHECK_EQ(static_cast<int64_t>(head.size()), config.vocab * config.embed_dim);
  if (ends.project_out.weight.empty()) {
    TW_CHECK_EQ(config.embed_dim, config.hidden);
    loss.head_ = head;
    return loss;
  }
  const std::vector<float> projection = Values(ends.project_out.weight);  // [embed_dim, hidden]
  loss.head_.resize(static_cast<size_t>(config.vocab * config.hidden));
  ProductNN(config.vocab, config.hidden, config.embed_dim, head.data(), config.embed_dim,
            projection.data(), 0.0f, loss.head_.data(), config.hidden, *pool);
  return loss;
}

double LogitLoss::Run(absl::Span<const float> target, absl::Span<const float> hidden,
                      absl::Span<float> gradient) {
  const auto num_tokens = static_cast<int64_t>(hidden.size()) / hidden_;
  TW_CHECK(target.size() == hidden.size() && gradient.size() == hidden.size());
  const int64_t step = std::clamp<int64_t>(kScratchLogits / vocab_, 1, kMaxTokens);
  const int64_t num_parts = (num_tokens + step - 1) / step;
  std::vector<double> sums(static_cast<size_t>(num_parts), 0.0);
  std::vector<std::vector<float>> scratch(static_cast<size_t>(pool_->num_threads()));
  const float share = 1.0f / static_cast<float>(num_tokens);
  pool_->ParallelForDynamic(num_parts, [&](int64_t part) {
    const int64_t first = part * step;
    const int64_t count = std::min(step, num_tokens - first);
    std::vector<float>& logits = scratch[static_cast<size_t>(ThreadPool::CurrentThread())];
    logits.resize(static_cast<size_t>(2 * step * vocab_));
    float* const log_p = logits.data();
    float* const log_q = log_p + step * vocab_;
    for (const auto& [from, to] : {std::pair(target, log_p), std::pair(hidden, log_q)}) {
      SgemmNT(count, vocab_, hidden_, from.data() + first * hidden_, hidden_, head_.data(), hidden_,
              0.0f, to, vocab_);
    }
    for (int64_t t = 0; t < count; ++t) {
      float* const p = log_p + t * vocab_;
      float* const q = log_q + t * vocab_;
      LogSoftmax(p, vocab_);
      LogSoftmax(q, vocab_);
      double sum = 0.0;
      for (int64_t i = 0; i < vocab_; ++i) {
        const float probability = std::exp(p[i]);
        sum += double{probability} * (p[i] - q[i]);
        q[i] = share * (std::exp(q[i]) - probability);
      }
      sums[static_cast<size_t>(part)] += sum;
    }
    SgemmNN(count, hidden_, vocab_, log_q, vocab_, head_.data(), hidden_, 0.0f,
            gradient.data() + first * hidden_, hidden_);
  });
  double total = 0.0;
  for (const double sum : sums) total += sum;
  return total / static_cast<double>(num_tokens);
}

}  // namespace thinwire
