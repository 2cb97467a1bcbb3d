// A projection and the moments of its inputs, in the order of the site that it reads.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "kernels/core/thread_pool.h"
#include "runtime/quantizer/dense_layer.h"

namespace thinwire {

// [width, width] with rows and columns in `order`.
std::vector<double> InOrder(const std::vector<double>& matrix, const std::vector<int32_t>& order,
                            ThreadPool& pool);

// [width] in `order`.
std::vector<double> VectorInOrder(absl::Span<const double> values,
                                  const std::vector<int32_t>& order);

// The weights [out, in] with columns in `order`.
std::vector<float> ColumnsInOrder(const DenseLinear& linear, const std::vector<int32_t>& order,
                                  ThreadPool& pool);

// Sets the weights from columns in `order`.
void SetColumns(const std::vector<float>& columns, const std::vector<int32_t>& order,
                DenseLinear& linear, ThreadPool& pool);

// Replaces the weights by `weights` [out, in]; the bias takes up what they change at the inputs'
// `mean` [in], or nothing without one.
void SetWeights(std::vector<float> weights, absl::Span<const double> mean, DenseLinear& linear);

// [num_groups + 1]: groups of group_size columns; -1: one of all.
std::vector<int32_t> GroupOffsets(int64_t width, int64_t group_size);

}  // namespace thinwire
