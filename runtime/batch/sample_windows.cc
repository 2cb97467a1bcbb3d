#include "runtime/batch/sample_windows.h"

#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "kernels/core/status_macros.h"

namespace thinwire {
namespace {

// SplitMix64 (Steele et al., OOPSLA 2014). Seeds that are neighbours share no window.
uint64_t Mix(uint64_t value) {
  value += 0x9e3779b97f4a7c15;
  value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9;
  value = (value ^ (value >> 27)) * 0x94d049bb133111eb;
  return value ^ (value >> 31);
}

}  // namespace

absl::StatusOr<std::vector<std::vector<int32_t>>> SampleWindows(
    Engine& engine, int64_t num_windows, int64_t length, uint64_t seed,
    const std::function<void(int64_t done, int64_t total)>& on_window) {
  const ModelConfig& config = engine.rank().config();
  if (length < 2 || length > config.max_positions) {
    return absl::InvalidArgumentError(absl::StrCat("window of ", length,
                                                   " tokens; expected 2 to the model's context, ",
                                                   config.max_positions));
  }
  int32_t first = config.bos_token_id;
  if (first < 0 && !config.eos_token_ids.empty()) first = config.eos_token_ids.front();
  if (first < 0) {
    return absl::FailedPreconditionError(
        "the model can make up no text: its config.json has neither bos_token_id nor eos_token_id");
  }
  std::vector<std::vector<int32_t>> windows(num_windows);
  const int64_t max_live = 2 * engine.rank().options().max_seqs;
  int64_t next = 0;
  int64_t done = 0;
  while (done < num_windows) {
    for (; next < num_windows && engine.num_live() < max_live; ++next) {
      Request request;
      request.prompt_ids = {first};
      request.max_new_tokens = length - 1;
      request.sampling = {.temperature = 1.0f,
                          .seed = Mix(Mix(seed) + static_cast<uint64_t>(next))};
      request.on_done = [&, index = next](Completion completion) {
        windows[index] = {first};
        windows[index].insert(windows[index].end(), completion.token_ids.begin(),
                              completion.token_ids.end());
        ++done;
        if (on_window != nullptr) on_window(done, num_windows);
      };
      TW_RETURN_IF_ERROR(engine.Submit(std::move(request)).status());
    }
    TW_RETURN_IF_ERROR(engine.Step());
  }
  return windows;
}

}  // namespace thinwire
