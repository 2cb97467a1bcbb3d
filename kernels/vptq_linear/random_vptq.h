// For tests and benchmarks: random weights of this format.
#pragma once

#include <algorithm>
#include <cstring>
#include <numeric>
#include <random>
#include <utility>
#include <vector>

#include "kernels/vptq_linear/byte_book.h"
#include "kernels/vptq_linear/vptq_codes.h"
#include "kernels/vptq_linear/vptq_weights.h"

namespace thinwire {

struct RandomVptqPart {
  int length = 8;
  int skip = 0;
  int index_bits = 8;
  int residual_bits = 0;
  bool residual = false;
  std::vector<int64_t> group_columns;
  DType dtype = DType::kF16;
  bool bytes = false;  // rounded to byte books
};

inline Tensor RandomBook(int bits, int length, DType dtype, bool bytes, std::mt19937& random) {
  std::normal_distribution<float> normal(0.0f, 1.0f);
  std::vector<float> values(static_cast<size_t>(VptqStride(length)) << bits);
  for (float& value : values) value = normal(random);
  if (bytes) {
    values = RoundToByteBook(values, static_cast<int>(VptqStride(length)), {}, dtype).Values();
  }
  Tensor book =
      Tensor::Allocate(dtype, {int64_t{1} << bits, VptqStride(length)}, Device::Cpu()).value();
  const TensorView view = book.mutable_view();
  for (int64_t i = 0; i < view.num_elements(); ++i) {
    const float value = values[static_cast<size_t>(i)];
    if (dtype == DType::kF32) view.mutable_data<float>()[i] = value;
    if (dtype == DType::kF16) view.mutable_data<Half>()[i] = ToHalf(value);
    if (dtype == DType::kBF16) view.mutable_data<BFloat16>()[i] = ToBFloat16(value);
  }
  return book;
}

inline VptqPart RandomPart(const RandomVptqPart& from, int64_t out, std::mt19937& random) {
  VptqPart part;
  part.length = from.length;
  part.skip = from.skip;
  part.index_bits = from.index_bits;
  part.residual_bits = from.residual ? from.residual_bits : 0;
  for (const int64_t columns : from.group_columns) {
    VptqGroup& group = part.groups.emplace_back();
    group.num_columns = columns;
    group.centroids = RandomBook(from.index_bits, from.length, from.dtype, from.bytes, random);
    if (from.residual) {
      group.residual = RandomBook(from.residual_bits, from.length, from.dtype, from.bytes, random);
    }
    const int bits = part.code_bits(group);
    const int64_t rows = part.num_vectors(out);
    const int64_t bytes = VptqCodeBytes(rows, columns, bits);
    group.codes = Tensor::Allocate(DType::kU8, {bytes}, Device::Cpu()).value();
    auto* codes = group.codes.mutable_view().mutable_data<uint8_t>();
    std::memset(codes, 0, static_cast<size_t>(bytes));
    for (int64_t row = 0; row < rows; ++row) {
      for (int64_t c = 0; c < columns; ++c) {
        SetVptqCode(codes + row * VptqRowBytes(columns, bits), c * bits,
                    random() & ((uint64_t{1} << bits) - 1));
      }
    }
  }
  return part;
}

inline VptqWeights RandomVptq(int64_t out, const std::vector<RandomVptqPart>& parts, bool ordered,
                              bool scaled, std::mt19937& random) {
  std::vector<VptqPart> made;
  int64_t in = 0;
  for (const RandomVptqPart& part : parts) {
    made.push_back(RandomPart(part, out, random));
    in += made.back().num_columns();
  }
  std::normal_distribution<float> normal(0.0f, 1.0f);
  std::vector<int32_t> order;
  std::vector<float> scale, offset;
  if (ordered) {
    order.resize(static_cast<size_t>(in));
    std::iota(order.begin(), order.end(), 0);
    std::shuffle(order.begin(), order.end(), random);
  }
  if (scaled) {
    for (int64_t i = 0; i < in; ++i) {
      scale.push_back(normal(random));
      offset.push_back(normal(random));
    }
  }
  return VptqWeights::Create(out, std::move(made), std::move(order), std::move(scale),
                             std::move(offset))
      .value();
}

}  // namespace thinwire
