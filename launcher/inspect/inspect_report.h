// What thinwire inspect says of a checkpoint: as text and as JSON.
#pragma once

#include <optional>
#include <string>

#include "absl/strings/string_view.h"
#include "runtime/checkpoint/checkpoint_summary.h"
#include "runtime/checkpoint/rank_share.h"

namespace thinwire {

// Lines for a person.
std::string InspectText(absl::string_view dir, const CheckpointSummary& summary,
                        const std::optional<RankShare>& share);

// One object on one line.
std::string InspectJson(const CheckpointSummary& summary, const std::optional<RankShare>& share);

}  // namespace thinwire
