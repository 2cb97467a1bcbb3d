#include "runtime/quant/bit_allocation.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "absl/strings/str_cat.h"
#include "kernels/core/check.h"

namespace thinwire {

absl::StatusOr<BitAllocation> AllocateBits(absl::Span<const double> costs, int64_t num_units,
                                           absl::Span<const uint8_t> widths, int64_t budget) {
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  const auto num_widths = static_cast<int64_t>(widths.size());
  TW_CHECK_GE(num_widths, 1);
  TW_CHECK_EQ(static_cast<int64_t>(costs.size()), num_units * num_widths);
  for (int64_t j = 0; j < num_widths; ++j) {
    TW_CHECK(widths[j] >= (j == 0 ? 1 : widths[j - 1] + 1) && widths[j] <= 16);
  }
  for (int64_t i = 0; i < num_units * num_widths; ++i) {
    if (std::isnan(costs[i]) || costs[i] == -kInfinity) {
      return absl::InvalidArgumentError(absl::StrCat("cost of unit ", i / num_widths, " with ",
                                                     widths[i % num_widths], " bits: ", costs[i],
                                                     ", expected a number"));
    }
  }
  if (budget < num_units * widths.front()) {
    return absl::InvalidArgumentError(
        absl::StrCat("budget of ", budget, " bits for ", num_units, " units, expected at least ",
                     num_units * widths.front(), " (", widths.front(), " each)"));
  }
  const int64_t capacity = std::min(budget, num_units * widths.back());
  // least[b]: the cost of the units so far with exactly b bits; choice[u][b]: how unit u was then.
  std::vector<double> least(static_cast<size_t>(capacity + 1), kInfinity);
  std::vector<double> next(least.size());
  std::vector<uint8_t> choice(static_cast<size_t>(num_units * (capacity + 1)), 0);
  least[0] = 0.0;
  for (int64_t u = 0; u < num_units; ++u) {
    uint8_t* chosen = choice.data() + u * (capacity + 1);
    std::fill(next.begin(), next.end(), kInfinity);
    for (int64_t j = 0; j < num_widths; ++j) {
      const double cost = costs[u * num_widths + j];
      for (int64_t b = widths[j]; b <= capacity; ++b) {
        const double total = least[b - widths[j]] + cost;
        if (total < next[b]) {
          next[b] = total;
          chosen[b] = static_cast<uint8_t>(j);
        }
      }
    }
    least.swap(next);
  }
  BitAllocation result;
  result.total_bits = std::min_element(least.begin(), least.end()) - least.begin();
  result.cost = least[result.total_bits];
  if (result.cost == kInfinity) {
    return absl::InvalidArgumentError(
        absl::StrCat("budget of ", budget, " bits for ", num_units,
                     " units: every choice within it has an infinite cost"));
  }
  result.bits.resize(static_cast<size_t>(num_units));
  int64_t left = result.total_bits;
  for (int64_t u = num_units - 1; u >= 0; --u) {
    result.bits[u] = widths[choice[u * (capacity + 1) + left]];
    left -= result.bits[u];
  }
  result.order.resize(static_cast<size_t>(num_units));
  std::iota(result.order.begin(), result.order.end(), 0);
  std::stable_sort(result.order.begin(), result.order.end(),
                   [&](int32_t a, int32_t b) { return result.bits[a] > result.bits[b]; });
  return result;
}

}  // namespace thinwire
