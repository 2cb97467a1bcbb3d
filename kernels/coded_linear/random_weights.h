// For tests: random weights as codes, with what they were made from, and random offsets of groups
// and segments.
#pragma once

#include <algorithm>
#include <cstdint>
#include <random>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/coded_linear/coded_weights.h"
#include "kernels/core/float16.h"

namespace thinwire {

// Offsets of parts of `size` columns, the last perhaps shorter; size 0: of random sizes to 70.
inline std::vector<int32_t> Offsets(int64_t columns, int64_t size, std::mt19937& random) {
  std::vector<int32_t> offsets = {0};
  while (offsets.back() < columns) {
    const int64_t next = size != 0 ? size : 1 + static_cast<int64_t>(random() % 70);
    offsets.push_back(static_cast<int32_t>(std::min<int64_t>(columns, offsets.back() + next)));
  }
  return offsets;
}

// `offsets` and more between them.
inline std::vector<int32_t> Subdivided(const std::vector<int32_t>& offsets, int64_t size,
                                       std::mt19937& random) {
  std::vector<int32_t> all = {0};
  for (size_t g = 1; g < offsets.size(); ++g) {
    for (const int32_t offset : Offsets(offsets[g] - offsets[g - 1], size, random)) {
      if (offset > 0) all.push_back(offsets[g - 1] + offset);
    }
  }
  return all;
}

// Matrices [out, in] of codes, and [out, num_groups] of scales and zeros.
struct Weights {
  Weights(int64_t out, int64_t in, int bits, std::vector<int32_t> group_offsets, int max_zero,
          std::mt19937& random)
      : out(out),
        in(in),
        num_groups(static_cast<int64_t>(group_offsets.size()) - 1),
        offsets(group_offsets) {
    std::uniform_real_distribution<float> scale(-1.0f, 1.0f);
    for (int64_t i = 0; i < out * in; ++i) {
      codes.push_back(static_cast<uint8_t>(random() % (1u << bits)));
    }
    for (int64_t i = 0; i < out * num_groups; ++i) {
      scales.push_back(ToFloat(ToHalf(scale(random))));
      zeros.push_back(static_cast<uint8_t>(random() % static_cast<unsigned>(max_zero + 1)));
    }
    coded = Make(0, out, bits);
  }

  // Those of rows [first, first + n), set in two parts, rows of a wider matrix.
  CodedWeights Make(int64_t first, int64_t n, int bits) const {
    CodedWeights made = CodedWeights::Allocate(n, in, bits, offsets, Device::Cpu()).value();
    const ConstTensorView all_codes(codes.data(), DType::kU8, {out, in});
    const ConstTensorView all_scales(scales.data(), DType::kF32, {out, num_groups});
    const ConstTensorView all_zeros(zeros.data(), DType::kU8, {out, num_groups});
    for (const auto& [begin, count] : {std::pair(n / 2, n - n / 2), std::pair(int64_t{0}, n / 2)}) {
      const absl::Status status =
          made.SetRows(begin, all_codes.Rows(first + begin, count),
                       all_scales.Rows(first + begin, count), all_zeros.Rows(first + begin, count));
      EXPECT_TRUE(status.ok()) << status;
    }
    return made;
  }

  int64_t Group(int64_t column) const {
    return std::upper_bound(offsets.begin(), offsets.end(), column) - offsets.begin() - 1;
  }

  int64_t out, in, num_groups;
  std::vector<int32_t> offsets;
  std::vector<uint8_t> codes, zeros;
  std::vector<float> scales;
  CodedWeights coded;
};

}  // namespace thinwire
