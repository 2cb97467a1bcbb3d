#include "runtime/quant/budget_choice.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace thinwire {
namespace {

// From one option of a unit to one of more bits and less loss.
struct Step {
  size_t unit = 0;
  int from = 0, to = 0;
  int64_t bits = 0;
  double gain = 0.0;

  double rate() const { return gain / static_cast<double>(bits); }
};

// The options on the lower convex hull, by ascending bits and descending loss.
std::vector<int> Hull(const std::vector<BudgetOption>& options) {
  std::vector<int> order(options.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int a, int b) {
    return options[a].bits != options[b].bits ? options[a].bits < options[b].bits
                                              : options[a].loss < options[b].loss;
  });
  std::vector<int> hull;
  for (const int next : order) {
    const BudgetOption& c = options[next];
    if (!hull.empty() && c.loss >= options[hull.back()].loss) continue;
    while (hull.size() >= 2) {
      const BudgetOption& a = options[hull[hull.size() - 2]];
      const BudgetOption& b = options[hull.back()];
      const double first = (a.loss - b.loss) * static_cast<double>(c.bits - b.bits);
      if (first > (b.loss - c.loss) * static_cast<double>(b.bits - a.bits)) break;
      hull.pop_back();
    }
    hull.push_back(next);
  }
  return hull;
}

}  // namespace

absl::StatusOr<std::vector<int>> ChooseWithinBudget(
    absl::Span<const std::vector<BudgetOption>> options, int64_t budget) {
  std::vector<int> chosen;
  std::vector<Step> steps;
  int64_t used = 0;
  for (size_t unit = 0; unit < options.size(); ++unit) {
    for (const BudgetOption& option : options[unit]) {
      if (!std::isfinite(option.loss)) {
        return absl::InvalidArgumentError(
            absl::StrCat("loss of unit ", unit, ": expected a number, found ", option.loss));
      }
    }
    if (options[unit].empty()) {
      return absl::InvalidArgumentError(absl::StrCat("unit ", unit, ": expected options"));
    }
    const std::vector<int> hull = Hull(options[unit]);
    chosen.push_back(hull.front());
    used += options[unit][hull.front()].bits;
    for (size_t i = 1; i < hull.size(); ++i) {
      const BudgetOption& from = options[unit][hull[i - 1]];
      const BudgetOption& to = options[unit][hull[i]];
      steps.push_back({unit, hull[i - 1], hull[i], to.bits - from.bits, from.loss - to.loss});
    }
  }
  if (used > budget) {
    return absl::InvalidArgumentError(
        absl::StrCat("expected a budget of at least ", used, " bits, found ", budget));
  }
  std::stable_sort(steps.begin(), steps.end(),
                   [](const Step& a, const Step& b) { return a.rate() > b.rate(); });
  for (const Step& step : steps) {
    // A step that does not fit keeps those above it away.
    if (chosen[step.unit] != step.from || used + step.bits > budget) continue;
    chosen[step.unit] = step.to;
    used += step.bits;
  }
  // What is left over: any option that fits and gains, the best first.
  for (;;) {
    Step best;
    for (size_t unit = 0; unit < options.size(); ++unit) {
      const BudgetOption& now = options[unit][chosen[unit]];
      for (size_t i = 0; i < options[unit].size(); ++i) {
        const BudgetOption& other = options[unit][i];
        const double gain = now.loss - other.loss;
        if (used + other.bits - now.bits <= budget && gain > best.gain) {
          best = {unit, chosen[unit], static_cast<int>(i), other.bits - now.bits, gain};
        }
      }
    }
    if (!(best.gain > 0.0)) return chosen;
    chosen[best.unit] = best.to;
    used += best.bits;
  }
}

}  // namespace thinwire
