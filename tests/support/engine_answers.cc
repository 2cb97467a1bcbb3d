#include "tests/support/engine_answers.h"

#include <utility>

#include "kernels/core/status_macros.h"

namespace thinwire {

absl::Status SubmitAll(absl::Span<const Request> requests, Engine& engine, EngineAnswers& answers,
                       const std::function<bool(size_t i, size_t num_told)>& goes_on) {
  answers.completions.resize(requests.size());
  answers.told.resize(requests.size());
  for (size_t i = 0; i < requests.size(); ++i) {
    Request request = requests[i];
    request.on_token = [&answers, goes_on, i](int32_t token) {
      answers.told[i].push_back(token);
      return goes_on == nullptr || goes_on(i, answers.told[i].size());
    };
    request.on_done = [&answers, i](Completion completion) {
      answers.completions[i] = std::move(completion);
    };
    TW_RETURN_IF_ERROR(engine.Submit(std::move(request)).status());
  }
  return absl::OkStatus();
}

}  // namespace thinwire
