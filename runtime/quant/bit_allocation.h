// Which units of equal size get how many bits, for a given average.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"

namespace thinwire {

struct BitAllocation {
  std::vector<uint8_t> bits;   // [num_units]
  std::vector<int32_t> order;  // [num_units]: units by descending bits, equals in given order
  int64_t total_bits = 0;
  double cost = 0.0;
};

// Widths with total at most `budget` bits that minimise the summed cost. `costs` [num_units,
// widths.size()]: what unit u loses with widths[j]; `widths` ascending, distinct, each in [1, 16].
// Exact for any costs (they need not be convex or falling): dynamic programming over the budget,
// num_units * budget * widths steps. Of equal costs the fewest bits in all, then fewer bits for
// later units.
// InvalidArgument: a NaN or -infinity cost (unit and width named); a budget below num_units *
// widths[0], or one that only infinite costs meet.
absl::StatusOr<BitAllocation> AllocateBits(absl::Span<const double> costs, int64_t num_units,
                                           absl::Span<const uint8_t> widths, int64_t budget);

}  // namespace thinwire
