// Philox4x32-10, a counter-based random number generator (Salmon et al., "Parallel Random Numbers:
// As Easy as 1, 2, 3", SC'11).
#pragma once

#include <array>
#include <cstdint>

namespace thinwire {

// 128 random bits that depend on counter and key only.
std::array<uint32_t, 4> Philox4x32(std::array<uint32_t, 4> counter, std::array<uint32_t, 2> key);

}  // namespace thinwire
