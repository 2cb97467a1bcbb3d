// Text that a model makes up, as windows of token ids: what to calibrate it on where there is no
// text.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "absl/status/statusor.h"
#include "runtime/engine/engine.h"

namespace thinwire {

// `num_windows` windows of `length` ids: the model's first token (bos, else eos), then ids sampled
// at temperature 1 from all of the vocabulary, past any end token. Equal seeds give equal windows,
// and so does each window by itself. InvalidArgument: length < 2 or longer than the context;
// FailedPrecondition: the model names neither bos nor eos. `on_window` is told of windows done and
// in all.
absl::StatusOr<std::vector<std::vector<int32_t>>> SampleWindows(
    Engine& engine, int64_t num_windows, int64_t length, uint64_t seed,
    const std::function<void(int64_t done, int64_t total)>& on_window = nullptr);

}  // namespace thinwire
