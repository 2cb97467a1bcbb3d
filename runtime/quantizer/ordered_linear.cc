#include "runtime/quantizer/ordered_linear.h"

#include <utility>

namespace thinwire {

std::vector<double> InOrder(const std::vector<double>& matrix, const std::vector<int32_t>& order,
                            ThreadPool& pool) {
  const auto width = static_cast<int64_t>(order.size());
  std::vector<double> ordered(matrix.size());
  pool.ParallelFor(width, 16, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const double* row = matrix.data() + order[i] * width;
      for (int64_t j = 0; j < width; ++j) ordered[i * width + j] = row[order[j]];
    }
  });
  return ordered;
}

std::vector<double> VectorInOrder(absl::Span<const double> values,
                                  const std::vector<int32_t>& order) {
  std::vector<double> ordered(order.size());
  for (size_t j = 0; j < order.size(); ++j) ordered[j] = values[order[j]];
  return ordered;
}

std::vector<float> ColumnsInOrder(const DenseLinear& linear, const std::vector<int32_t>& order,
                                  ThreadPool& pool) {
  std::vector<float> columns(linear.weight.size());
  pool.ParallelFor(linear.out_features, 16, [&](int64_t begin, int64_t end) {
    for (int64_t o = begin; o < end; ++o) {
      const absl::Span<const float> row = linear.row(o);
      float* to = columns.data() + o * linear.in_features;
      for (int64_t j = 0; j < linear.in_features; ++j) to[j] = row[order[j]];
    }
  });
  return columns;
}

void SetColumns(const std::vector<float>& columns, const std::vector<int32_t>& order,
                DenseLinear& linear, ThreadPool& pool) {
  pool.ParallelFor(linear.out_features, 16, [&](int64_t begin, int64_t end) {
    for (int64_t o = begin; o < end; ++o) {
      const absl::Span<float> row = linear.row(o);
      const float* from = columns.data() + o * linear.in_features;
      for (int64_t j = 0; j < linear.in_features; ++j) row[order[j]] = from[j];
    }
  });
}

void SetWeights(std::vector<float> weights, absl::Span<const double> mean, DenseLinear& linear) {
  const int64_t in = linear.in_features;
  for (int64_t o = 0; o < linear.out_features && !mean.empty(); ++o) {
    double sum = linear.bias[o];
    for (int64_t i = 0; i < in; ++i) {
      sum += (double{linear.weight[o * in + i]} - double{weights[o * in + i]}) * mean[i];
    }
    linear.bias[o] = static_cast<float>(sum);
  }
  linear.weight = std::move(weights);
}

std::vector<int32_t> GroupOffsets(int64_t width, int64_t group_size) {
  std::vector<int32_t> offsets;
  const int64_t step = group_size > 0 ? group_size : width;
  for (int64_t begin = 0; begin < width; begin += step) {
    offsets.push_back(static_cast<int32_t>(begin));
  }
  offsets.push_back(static_cast<int32_t>(width));
  return offsets;
}

}  // namespace thinwire
