// Perplexity of a token sequence under the model.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "absl/status/statusor.h"
#include "runtime/engine/engine.h"

namespace thinwire {

struct Perplexity {
  double nll = 0.0;  // mean over all predictions, natural logarithm
  int64_t num_predictions = 0;
  std::vector<double> window_nll;  // mean of each window

  double value() const;  // exp(nll)
};

// Cuts `ids` into consecutive windows of `window` ids (the remainder is dropped), lets each window
// predict its last window - 1 ids from those before them in the window, and averages.
// InvalidArgument: window < 2, longer than the context, or more ids than there are. `on_window` is
// told of windows done and in all.
absl::StatusOr<Perplexity> EvaluatePerplexity(
    Engine& engine, const std::vector<int32_t>& ids, int64_t window,
    const std::function<void(int64_t done, int64_t total)>& on_window = nullptr);

}  // namespace thinwire
