#include "runtime/checkpoint/synthetic_tensor.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>

#include "kernels/convert/convert.h"
#include "kernels/core/check.h"

namespace thinwire {
namespace {

constexpr int64_t kTableSize = 256;

// SplitMix64 (Steele et al., "Fast splittable pseudorandom number generators", OOPSLA 2014): the
// value at place `counter` of stream `seed`.
uint64_t Bits(uint64_t seed, uint64_t counter) {
  uint64_t z = seed + (counter + 1) * 0x9e3779b97f4a7c15;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
  z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
  return z ^ (z >> 31);
}

// The p-quantile of the standard normal distribution, by bisection.
double NormalQuantile(double p) {
  double low = -8.0, high = 8.0;
  for (int i = 0; i < 60; ++i) {
    const double middle = (low + high) / 2;
    (0.5 * std::erfc(-middle / std::sqrt(2.0)) < p ? low : high) = middle;
  }
  return (low + high) / 2;
}

// The nearest number of four significant bits.
double FourBits(double value) {
  int exponent = 0;
  const double fraction = std::frexp(value, &exponent);  // of [0.5, 1)
  return std::ldexp(std::round(fraction * 16.0) / 16.0, exponent);
}

float TableValue(const SyntheticTensor& tensor, int64_t j) {
  const double p = (static_cast<double>(j) + 0.5) / kTableSize;
  switch (tensor.fill) {
    case SyntheticFill::kNormal:
      return static_cast<float>(tensor.scale * NormalQuantile(p));
    case SyntheticFill::kBytes: {
      const double most = NormalQuantile(1.0 - 0.5 / kTableSize);
      const double step = FourBits(tensor.scale * most / 127.0);
      return static_cast<float>(step * std::round(NormalQuantile(p) / most * 127.0));
    }
    case SyntheticFill::kUniform:
      return static_cast<float>(tensor.scale * (0.5 + p));
    case SyntheticFill::kConstant:
    case SyntheticFill::kBits:
    case SyntheticFill::kCodes:
      break;
  }
  return tensor.scale;
}

// The values of a float tensor, rounded to its dtype and then to the output's.
template <typename T>
std::array<T, kTableSize> MakeTable(const SyntheticTensor& tensor, DType out_dtype) {
  std::array<float, kTableSize> values, stored;
  for (int64_t j = 0; j < kTableSize; ++j) values[j] = TableValue(tensor, j);
  ConvertFromFloat(values.data(), stored.data(), tensor.info.dtype, kTableSize);
  ConvertToFloat(stored.data(), tensor.info.dtype, values.data(), kTableSize);
  std::array<T, kTableSize> table;
  ConvertFromFloat(values.data(), table.data(), out_dtype, kTableSize);
  return table;
}

// Calls set(i, bits) with 64 / kElements bits for elements first .. first + n - 1 of the stream.
template <int kElements, typename Set>
void ForElements(uint64_t seed, int64_t first, int64_t n, const Set& set) {
  constexpr int kWidth = 64 / kElements;
  int64_t i = 0;
  while (i < n) {
    const int64_t element = first + i;
    int64_t within = element % kElements;
    const uint64_t bits = Bits(seed, static_cast<uint64_t>(element / kElements));
    for (; within < kElements && i < n; ++within, ++i) set(i, bits >> (within * kWidth));
  }
}

template <typename T>
void FillFloats(const SyntheticTensor& tensor, int64_t stride, Range rows, Range columns,
                TensorView out) {
  const std::array<T, kTableSize> table = MakeTable<T>(tensor, out.dtype());
  for (int64_t r = 0; r < rows.size(); ++r) {
    T* to = static_cast<T*>(out.mutable_raw()) + r * out.row_stride();
    ForElements<8>(tensor.seed, (rows.begin + r) * stride + columns.begin, columns.size(),
                   [&](int64_t i, uint64_t bits) { to[i] = table[bits & 0xff]; });
  }
}

// Word `word` of a row of two codes in turns.
uint32_t CodesInTurns(const SyntheticTensor& tensor, int64_t word) {
  uint32_t bits = 0;
  for (int64_t bit = 0; bit < 32; ++bit) {
    const int64_t at = word * 32 + bit;
    const uint32_t code = tensor.code - static_cast<uint32_t>(at / tensor.code_bits % 2);
    bits |= ((code >> (at % tensor.code_bits)) & 1u) << bit;
  }
  return bits;
}

// 16-bit integers below 2^code_bits.
void FillIndices(const SyntheticTensor& tensor, int64_t stride, Range rows, Range columns,
                 TensorView out) {
  const uint64_t mask = (uint64_t{1} << tensor.code_bits) - 1;
  for (int64_t r = 0; r < rows.size(); ++r) {
    auto* to = static_cast<uint16_t*>(out.mutable_raw()) + r * out.row_stride();
    ForElements<4>(tensor.seed, (rows.begin + r) * stride + columns.begin, columns.size(),
                   [&](int64_t i, uint64_t bits) { to[i] = static_cast<uint16_t>(bits & mask); });
  }
}

void FillWords(const SyntheticTensor& tensor, int64_t stride, Range rows, Range columns,
               TensorView out) {
  for (int64_t r = 0; r < rows.size(); ++r) {
    auto* to = static_cast<uint32_t*>(out.mutable_raw()) + r * out.row_stride();
    if (tensor.fill == SyntheticFill::kCodes) {
      for (int64_t i = 0; i < columns.size(); ++i) to[i] = CodesInTurns(tensor, columns.begin + i);
      continue;
    }
    ForElements<2>(tensor.seed, (rows.begin + r) * stride + columns.begin, columns.size(),
                   [&](int64_t i, uint64_t bits) { to[i] = static_cast<uint32_t>(bits); });
  }
}

}  // namespace

void FillSynthetic(const SyntheticTensor& tensor, Range rows, Range columns, TensorView out) {
  TW_CHECK(out.device() == Device::Cpu());
  int64_t stride = 1;
  if (tensor.info.shape.size() == 2) {
    stride = tensor.info.shape[1];
  } else {  // a vector is a row
    columns = rows;
    rows = {0, 1};
  }
  if (tensor.info.dtype == DType::kI16) {
    TW_CHECK(tensor.fill == SyntheticFill::kBits && out.dtype() == DType::kI16);
    FillIndices(tensor, stride, rows, columns, out);
  } else if (!IsFloat(tensor.info.dtype)) {
    TW_CHECK(tensor.info.dtype == DType::kI32 && out.dtype() == DType::kI32);
    FillWords(tensor, stride, rows, columns, out);
  } else if (out.dtype() == DType::kF32) {
    FillFloats<float>(tensor, stride, rows, columns, out);
  } else {
    FillFloats<uint16_t>(tensor, stride, rows, columns, out);
  }
}

}  // namespace thinwire
