// What an engine answers to several requests, for tests.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "runtime/engine/engine.h"

namespace thinwire {

struct EngineAnswers {
  std::vector<Completion> completions;     // as the requests
  std::vector<std::vector<int32_t>> told;  // tokens, in the order in which on_token had them
};

// Submits all requests, with callbacks that write to `answers`, which lives as long as they run.
// After each token of request i `goes_on(i, tokens told)` says whether it wants more; null: always.
absl::Status SubmitAll(absl::Span<const Request> requests, Engine& engine, EngineAnswers& answers,
                       const std::function<bool(size_t i, size_t num_told)>& goes_on = nullptr);

}  // namespace thinwire
