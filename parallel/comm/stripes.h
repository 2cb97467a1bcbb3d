// Cutting a message into parts that travel side by side.
#pragma once

#include <cstdint>
#include <vector>

namespace thinwire {

// Bytes [begin, end) of a message.
struct Stripe {
  int64_t begin = 0;
  int64_t end = 0;

  int64_t size() const { return end - begin; }
  friend bool operator==(const Stripe& a, const Stripe& b) = default;
};

inline constexpr int64_t kStripeAlignment = 16;

// At most `most` >= 1 parts of nearly equal size that follow each other and make up `bytes` >= 1,
// each but the only one of at least `least` bytes, up to alignment; they begin at whole
// kStripeAlignment bytes. The same on all ranks that agree in the arguments.
std::vector<Stripe> CutIntoStripes(int64_t bytes, int most, int64_t least);

}  // namespace thinwire
