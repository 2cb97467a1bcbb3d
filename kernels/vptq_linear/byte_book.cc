#include "kernels/vptq_linear/byte_book.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

#include "kernels/convert/element.h"
#include "kernels/core/check.h"

namespace thinwire {
namespace {

// Powers of two that scales of rounded books have: products of fp16 are multiples of 2^-24, and
// 127 * 2^9 is below its largest. Beyond, of other dtypes, as far as no product leaves fp32.
constexpr int kHalfExponents[2] = {-24, 9};
constexpr int kOtherExponents[2] = {-120, 100};

// The exponent of a finite number's lowest bit that is set.
int LowestExponent(float value) {
  int exponent = 0;
  const float mantissa = std::frexp(std::fabs(value), &exponent);  // [1/2, 1)
  const auto bits = static_cast<uint32_t>(std::ldexp(mantissa, 24));
  return exponent - 24 + std::countr_zero(bits);
}

// The largest scale that all values are at most 127 times of, or 0.
float ScaleOf(const std::vector<float>& values) {
  int lowest = std::numeric_limits<int>::max();
  float largest = 0.0f;
  for (const float value : values) {
    if (!std::isfinite(value)) return 0.0f;
    if (value == 0.0f) continue;
    lowest = std::min(lowest, LowestExponent(value));
    largest = std::max(largest, std::fabs(value));
  }
  if (largest == 0.0f) return 1.0f;
  // All are multiples of 2^lowest, one of them odd: so is m, when the scale is m * 2^lowest.
  if (std::ldexp(double{largest}, -lowest) > double{kMostByteCode} * kMostByteScale) return 0.0f;
  for (int m = kMostByteScale; m >= 1; m -= 2) {
    const bool fits = std::all_of(values.begin(), values.end(), [&](float value) {
      const int multiple = static_cast<int>(std::ldexp(double{value}, -lowest));
      return multiple % m == 0 && std::abs(multiple / m) <= kMostByteCode;
    });
    if (fits) return std::ldexp(static_cast<float>(m), lowest);
  }
  return 0.0f;
}

int8_t CodeOf(float value, double scale) {
  const double code = std::nearbyint(double{value} / scale);
  return static_cast<int8_t>(std::clamp(code, -double{kMostByteCode}, double{kMostByteCode}));
}

// Scales m * 2^e for a component, from half of what its largest value needs to all of it.
std::vector<double> ScalesToTry(float largest, DType dtype) {
  const double needed = double{largest} / kMostByteCode;
  const auto& exponents = dtype == DType::kF16 ? kHalfExponents : kOtherExponents;
  std::vector<double> scales;
  for (int e = exponents[0]; e <= exponents[1]; ++e) {
    for (int m = 1; m <= kMostByteScale; m += 2) {
      if (dtype == DType::kBF16 && m > 1) break;
      const double scale = std::ldexp(m, e);
      if (dtype == DType::kF16 && scale * kMostByteCode > 65504.0) continue;
      scales.push_back(scale);
    }
  }
  std::sort(scales.begin(), scales.end());
  const auto end = std::lower_bound(scales.begin(), scales.end(), needed);
  const auto begin = std::lower_bound(scales.begin(), end, needed / 2);
  // The first that suffices, or the largest there is.
  if (end == scales.end()) return {begin == end ? end - 1 : begin, end};
  return {begin, end + 1};
}

}  // namespace

std::vector<float> ByteBook::Values() const {
  std::vector<float> values(codes.size());
  for (size_t i = 0; i < codes.size(); ++i) {
    values[i] = scales[i % static_cast<size_t>(length)] * static_cast<float>(codes[i]);
  }
  return values;
}

std::optional<ByteBook> AsByteBook(const ConstTensorView& book, int length) {
  TW_CHECK(book.rank() == 2 && book.dim(1) >= length && IsFloat(book.dtype()));
  ByteBook made;
  made.entries = book.dim(0);
  made.length = length;
  made.codes.resize(static_cast<size_t>(made.entries * length));
  std::vector<float> component(static_cast<size_t>(made.entries));
  for (int j = 0; j < length; ++j) {
    for (int64_t i = 0; i < made.entries; ++i)
      component[i] = static_cast<float>(LoadElement(book, i * book.row_stride() + j));
    const float scale = ScaleOf(component);
    if (scale == 0.0f) return std::nullopt;
    made.scales.push_back(scale);
    for (int64_t i = 0; i < made.entries; ++i) {
      made.codes[i * length + j] = CodeOf(component[i], double{scale});
      if (scale * static_cast<float>(made.codes[i * length + j]) != component[i]) {
        return std::nullopt;
      }
    }
  }
  return made;
}

ByteBook RoundToByteBook(absl::Span<const float> values, int length,
                         absl::Span<const float> weights, DType dtype) {
  TW_CHECK(length > 0 && IsFloat(dtype));
  ByteBook made;
  made.entries = static_cast<int64_t>(values.size()) / length;
  made.length = length;
  TW_CHECK_EQ(made.entries * length, static_cast<int64_t>(values.size()));
  TW_CHECK(weights.empty() || static_cast<int64_t>(weights.size()) == made.entries);
  made.codes.resize(values.size());
  for (int j = 0; j < length; ++j) {
    float largest = 0.0f;
    for (int64_t i = 0; i < made.entries; ++i) {
      TW_CHECK(std::isfinite(values[i * length + j]));
      largest = std::max(largest, std::fabs(values[i * length + j]));
    }
    double best = 1.0, least = std::numeric_limits<double>::infinity();
    if (largest > 0.0f) {
      for (const double scale : ScalesToTry(largest, dtype)) {
        double loss = 0.0;
        for (int64_t i = 0; i < made.entries; ++i) {
          const float value = values[i * length + j];
          const double error = double{value} - scale * CodeOf(value, scale);
          loss += (weights.empty() ? 1.0 : double{weights[i]}) * error * error;
        }
        // Of equals the largest, which AsByteBook finds, too.
        if (loss <= least) {
          least = loss;
          best = scale;
        }
      }
    }
    made.scales.push_back(static_cast<float>(best));
    for (int64_t i = 0; i < made.entries; ++i) {
      made.codes[i * length + j] = CodeOf(values[i * length + j], best);
    }
  }
  return made;
}

}  // namespace thinwire
