// How far a model's predictions are from those of another.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kernels/core/thread_pool.h"
#include "runtime/checkpoint/model_config.h"
#include "runtime/model/decoder_weights.h"

namespace thinwire {

// The mean over tokens of the Kullback-Leibler divergence sum p (log p - log q), p and q the
// distributions that the same output projection makes of two models' last hidden states. Holds the
// projection in fp32; logits of some tokens at a time. Thread-compatible.
class LogitLoss {
 public:
  // `ends`: of the whole model; embeddings narrower than the hidden size are projected here once.
  // Borrows the pool.
  static absl::StatusOr<LogitLoss> Create(const ModelConfig& config, const DecoderWeights& ends,
                                          ThreadPool* pool);

  // target, hidden: [num_tokens, hidden] behind the last norm. gradient: the same shape, the
  // derivative to `hidden`. Returns the loss in nats. The same bits with any number of threads.
  double Run(absl::Span<const float> target, absl::Span<const float> hidden,
             absl::Span<float> gradient);

 private:
  LogitLoss() = default;

  int64_t hidden_ = 0;
  int64_t vocab_ = 0;
  std::vector<float> head_;  // [vocab, hidden]
  ThreadPool* pool_ = nullptr;
};

}  // namespace thinwire
