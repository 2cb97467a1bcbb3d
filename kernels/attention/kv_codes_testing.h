// For tests: random codes of K and V, and values as elements of a dtype.
#pragma once

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <random>
#include <utility>
#include <vector>

#include "kernels/attention/attention_testing.h"
#include "kernels/attention/kv_codes.h"

namespace thinwire {

using Bits = std::vector<uint8_t>;  // of the units of one head

inline Bits Uniform(int64_t head_dim, int bits) {
  return Bits(static_cast<size_t>(head_dim / kKvUnit), static_cast<uint8_t>(bits));
}

// Channels shuffled; the representable values of a channel reach from -range to range, off the
// centre by up to `shift`, which need not be a whole number of steps.
inline KvHeadCodes RandomHead(const Bits& bits, float range, float shift, std::mt19937& random) {
  std::uniform_real_distribution<float> uniform(0.0f, 1.0f);
  KvHeadCodes head;
  const auto head_dim = static_cast<int64_t>(bits.size()) * kKvUnit;
  head.order.resize(static_cast<size_t>(head_dim));
  std::iota(head.order.begin(), head.order.end(), 0);
  std::shuffle(head.order.begin(), head.order.end(), random);
  head.bits = bits;
  for (int64_t j = 0; j < head_dim; ++j) {
    const auto largest = static_cast<float>((1 << bits[static_cast<size_t>(j / kKvUnit)]) - 1);
    const float width = range * (0.5f + uniform(random));
    head.step.push_back(2.0f * width / largest);
    head.zero.push_back(largest * 0.5f - shift * (2.0f * uniform(random) - 1.0f));
  }
  return head;
}

inline std::vector<KvHeadCodes> RandomHeads(const std::vector<Bits>& bits, int64_t num_heads,
                                            float range, float shift, std::mt19937& random) {
  std::vector<KvHeadCodes> heads;
  for (int64_t h = 0; h < num_heads; ++h) {
    heads.push_back(RandomHead(bits[static_cast<size_t>(h) % bits.size()], range, shift, random));
  }
  return heads;
}

inline KvCodes Codes(int64_t head_dim, std::vector<KvHeadCodes> heads) {
  return KvCodes::Create(head_dim, std::move(heads), Device::Cpu()).value();
}

}  // namespace thinwire
