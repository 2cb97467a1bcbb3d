// A request inside the serving loop. Private to serving_loop*.cc.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "runtime/batch/stop_text.h"
#include "runtime/server/serving_loop.h"
#include "runtime/tokenizer/stream_decoder.h"

namespace thinwire {

struct ServingLoop::Active {
  GenerationRequest request;
  std::shared_ptr<Generation> generation;
  int64_t num_tokens = 0;  // prompt and what it may grow by
  ServingClock::time_point submitted;

  // Set by the engine's thread.
  int64_t engine_id = -1;
  std::optional<StreamDecoder> decoder;
  StopText stop{{}};
  std::vector<int32_t> token_ids;  // generated
  std::vector<float> log_probs;
  std::vector<TokenLogProb> top_log_probs;
  EndReason reason = EndReason::kStop;  // where it waits for its log probabilities
  std::string last_text;                // and the text that the end brings
  std::optional<ServingClock::time_point> admitted, first_token, last_token;
};

inline double Seconds(ServingClock::duration duration) {
  return std::chrono::duration<double>(duration).count();
}

// Tokens of the text that the request may be expected to become: the longest that it allows; but
// few texts that nothing bounds fill the context.
inline int64_t CostOf(const GenerationRequest& request, int64_t max_positions) {
  constexpr int64_t kUnboundedAnswer = 512;
  const auto prompt_size = static_cast<int64_t>(request.prompt_ids.size());
  const int64_t growth =
      request.params.max_tokens < max_positions ? request.params.max_tokens : kUnboundedAnswer;
  return prompt_size + std::min(growth, max_positions - prompt_size);
}

}  // namespace thinwire
