#include "kernels/sampling/philox.h"

#include "kernels/sampling/sampling.h"

namespace thinwire {
namespace {

uint32_t Low(uint64_t value) { return static_cast<uint32_t>(value); }
uint32_t High(uint64_t value) { return static_cast<uint32_t>(value >> 32); }

}  // namespace

std::array<uint32_t, 4> Philox4x32(std::array<uint32_t, 4> counter, std::array<uint32_t, 2> key) {
  // Multipliers and Weyl increments of the paper, section 4.3 and table 2.
  for (int round = 0; round < 10; ++round) {
    const uint64_t product0 = uint64_t{0xD2511F53} * counter[0];
    const uint64_t product1 = uint64_t{0xCD9E8D57} * counter[2];
    counter = {High(product1) ^ counter[1] ^ key[0], Low(product1),
               High(product0) ^ counter[3] ^ key[1], Low(product0)};
    key[0] += 0x9E3779B9;
    key[1] += 0xBB67AE85;
  }
  return counter;
}

double UniformRandom(uint64_t seed, uint64_t position) {
  const std::array<uint32_t, 4> random =
      Philox4x32({Low(position), High(position), 0, 0}, {Low(seed), High(seed)});
  const uint64_t bits = (static_cast<uint64_t>(random[1]) << 32) | random[0];
  return static_cast<double>(bits >> 11) * 0x1p-53;
}

}  // namespace thinwire
