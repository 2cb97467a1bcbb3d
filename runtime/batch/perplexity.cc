#include "runtime/batch/perplexity.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "kernels/core/status_macros.h"

namespace thinwire {

double Perplexity::value() const { return std::exp(nll); }

absl::StatusOr<Perplexity> EvaluatePerplexity(
    Engine& engine, const std::vector<int32_t>& ids, int64_t window,
    const std::function<void(int64_t done, int64_t total)>& on_window) {
  const int64_t context = engine.rank().config().max_positions;
  if (window < 2 || window > context) {
    return absl::InvalidArgumentError(absl::StrCat(
        "window of ", window, " tokens; expected 2 to the model's context, ", context));
  }
  const int64_t num_windows = static_cast<int64_t>(ids.size()) / window;
  if (num_windows == 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("text of ", ids.size(), " tokens is shorter than one window of ", window));
  }
  Perplexity perplexity;
  perplexity.window_nll.resize(num_windows);
  absl::Status failure;
  const int64_t max_live = 2 * engine.rank().options().max_seqs;
  int64_t next = 0;
  int64_t done = 0;
  while (done < num_windows) {
    for (; next < num_windows && engine.num_live() < max_live; ++next) {
      Request request;
      request.prompt_ids.assign(ids.begin() + next * window, ids.begin() + (next + 1) * window);
      request.score_prompt = true;
      request.on_done = [&, index = next](Completion completion) {
        double sum = 0.0;
        for (const float log_prob : completion.prompt_log_probs) sum -= log_prob;
        perplexity.window_nll[index] = sum / static_cast<double>(window - 1);
        ++done;
        if (on_window != nullptr) on_window(done, num_windows);
      };
      TW_RETURN_IF_ERROR(engine.Submit(std::move(request)).status());
    }
    TW_RETURN_IF_ERROR(engine.Step());
  }
  // Windows are equally long: the mean of their means. Summed in their order, whatever order they
  // ended in.
  for (const double nll : perplexity.window_nll) perplexity.nll += nll;
  perplexity.nll /= static_cast<double>(num_windows);
  perplexity.num_predictions = num_windows * (window - 1);
  return perplexity;
}

}  // namespace thinwire
