// When a refused request may be tried again, carried by the status that refuses it.
#pragma once

#include <optional>

#include "absl/status/status.h"
#include "absl/time/time.h"

namespace thinwire {

// `status` with the advice to wait so long before another try.
absl::Status WithRetryHint(absl::Status status, absl::Duration delay);

// The advice, if there is one.
std::optional<absl::Duration> RetryHint(const absl::Status& status);

// Whether the same request may succeed elsewhere or later: UNAVAILABLE and RESOURCE_EXHAUSTED.
bool IsRetryable(const absl::Status& status);

}  // namespace thinwire
