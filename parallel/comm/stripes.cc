#include "parallel/comm/stripes.h"

#include <algorithm>

#include "kernels/core/check.h"

namespace thinwire {

std::vector<Stripe> CutIntoStripes(int64_t bytes, int most, int64_t least) {
  TW_CHECK(bytes >= 1 && most >= 1);
  const int64_t count = std::clamp<int64_t>(bytes / std::max(least, kStripeAlignment), 1, most);
  const int64_t blocks = (bytes + kStripeAlignment - 1) / kStripeAlignment;
  std::vector<Stripe> stripes;
  for (int64_t i = 0; i < count; ++i) {
    stripes.push_back({blocks * i / count * kStripeAlignment,
                       std::min(bytes, blocks * (i + 1) / count * kStripeAlignment)});
  }
  return stripes;
}

}  // namespace thinwire
