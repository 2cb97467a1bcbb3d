// One choice for each of many things, so that all together cost little and stay within a budget.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"

namespace thinwire {

struct BudgetOption {
  int64_t bits = 0;   // >= 0
  double loss = 0.0;  // finite
};

// [options.size()]: which of its options each unit takes, such that bits sum to at most `budget`
// and losses to little: along the lower convex hulls, the steps that gain most for a bit first,
// then whatever still fits. Optimal for every budget at which a step along the hulls ends; else the
// loss is above the least by less than that of one step. InvalidArgument: a unit without options, a
// NaN or infinity, a budget below the least bits (unit, or expected and found named).
absl::StatusOr<std::vector<int>> ChooseWithinBudget(
    absl::Span<const std::vector<BudgetOption>> options, int64_t budget);

}  // namespace thinwire
