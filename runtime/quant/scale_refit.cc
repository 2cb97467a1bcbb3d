#include "runtime/quant/scale_refit.h"

#include <algorithm>
#include <cstdint>
#include <vector>

#include "kernels/core/check.h"
#include "kernels/core/float16.h"
#include "kernels/linear/blas.h"

namespace thinwire {
namespace {

constexpr int64_t kRows = 16;    // that one thread takes at a time, whatever their number
constexpr double kRidge = 1e-3;  // keeps scales that hardly matter near where they are

// Solves l l^T x = x in place, l lower triangular [n, n].
void SolveFactored(int64_t n, const double* l, double* x) {
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t j = 0; j < i; ++j) x[i] -= l[i * n + j] * x[j];
    x[i] /= l[i * n + i];
  }
  for (int64_t i = n - 1; i >= 0; --i) {
    x[i] /= l[i * n + i];
    for (int64_t j = 0; j < i; ++j) x[j] -= l[i * n + j] * x[i];
  }
}

// One row's system: minimise d^T system d + 2 slope^T d.
void RefitRow(int64_t num_groups, const double* system, const double* slope, float* scales) {
  std::vector<double> factor(system, system + num_groups * num_groups);
  std::vector<double> change(static_cast<size_t>(num_groups));
  for (int64_t g = 0; g < num_groups; ++g) {
    double& diagonal = factor[g * (num_groups + 1)];
    diagonal = diagonal > 0.0 ? diagonal * (1.0 + kRidge) : 1.0;
    change[g] = -slope[g];
  }
  if (CholeskyFactor(num_groups, factor.data()) >= 0) return;
  SolveFactored(num_groups, factor.data(), change.data());
  std::vector<float> moved(static_cast<size_t>(num_groups));
  for (int64_t g = 0; g < num_groups; ++g) {
    const auto old_scale = static_cast<double>(scales[g]);
    moved[g] = ToFloat(ToHalf(static_cast<float>(old_scale + change[g])));
    const auto scale = static_cast<double>(moved[g]);
    if (!(scale > 0.5 * old_scale && scale < 2.0 * old_scale)) moved[g] = scales[g];
    change[g] = static_cast<double>(moved[g]) - old_scale;
  }
  double gain = 0.0;
  for (int64_t g = 0; g < num_groups; ++g) {
    double sum = 2.0 * slope[g] + system[g * (num_groups + 1)] * change[g];
    for (int64_t k = 0; k < g; ++k) sum += 2.0 * system[g * num_groups + k] * change[k];
    gain -= sum * change[g];
  }
  if (gain > 0.0) std::copy(moved.begin(), moved.end(), scales);
}

}  // namespace

void RefitScales(absl::Span<const float> slopes, absl::Span<const float> hessian, GptqCodes& codes,
                 ThreadPool& pool) {
  const int64_t out = codes.out_features;
  const int64_t in = codes.in_features;
  const int64_t num_groups = codes.num_groups();
  TW_CHECK_EQ(static_cast<int64_t>(slopes.size()), out * in);
  TW_CHECK_EQ(static_cast<int64_t>(hessian.size()), in * in);
  if (in == 0) return;
  pool.ParallelForDynamic((out + kRows - 1) / kRows, [&](int64_t tile) {
    const int64_t first = tile * kRows;
    const int64_t rows = std::min(kRows, out - first);
    std::vector<float> k(static_cast<size_t>(rows * in));  // code - zero
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t g = 0; g < num_groups; ++g) {
        const int zero = codes.zeros[(first + r) * num_groups + g];
        for (int64_t i = codes.group_offsets[g]; i < codes.group_offsets[g + 1]; ++i) {
          k[r * in + i] = static_cast<float>(codes.codes[(first + r) * in + i] - zero);
        }
      }
    }
    std::vector<std::vector<double>> systems(
        static_cast<size_t>(rows),
        std::vector<double>(static_cast<size_t>(num_groups * num_groups), 0.0));
    std::vector<std::vector<double>> slope(
        static_cast<size_t>(rows), std::vector<double>(static_cast<size_t>(num_groups), 0.0));
    std::vector<float> products(static_cast<size_t>(rows * in));
    for (int64_t g = 0; g < num_groups; ++g) {
      const int64_t begin = codes.group_offsets[g];
      const int64_t end = codes.group_offsets[g + 1];
      // Columns up to the group's end: the lower triangle.
      SgemmNN(rows, end, end - begin, k.data() + begin, in, hessian.data() + begin * in, in, 0.0f,
              products.data(), in);
      for (int64_t r = 0; r < rows; ++r) {
        for (int64_t other = 0; other <= g; ++other) {
          double sum = 0.0;
          for (int64_t i = codes.group_offsets[other]; i < codes.group_offsets[other + 1]; ++i) {
            sum += static_cast<double>(products[r * in + i]) * static_cast<double>(k[r * in + i]);
          }
          systems[r][g * num_groups + other] = sum;
        }
        for (int64_t i = begin; i < end; ++i) {
          slope[r][g] += static_cast<double>(slopes[(first + r) * in + i]) *
                         static_cast<double>(k[r * in + i]);
        }
      }
    }
    for (int64_t r = 0; r < rows; ++r) {
      RefitRow(num_groups, systems[r].data(), slope[r].data(),
               codes.scales.data() + (first + r) * num_groups);
    }
  });
}

void RefitScalesOf(int64_t first, absl::Span<const double> systems, absl::Span<const double> slopes,
                   GptqCodes& codes, ThreadPool& pool) {
  const int64_t num_groups = codes.num_groups();
  const int64_t num_rows = static_cast<int64_t>(slopes.size()) / num_groups;
  TW_CHECK_EQ(static_cast<int64_t>(slopes.size()), num_rows * num_groups);
  TW_CHECK(first >= 0 && first + num_rows <= codes.out_features);
  TW_CHECK_EQ(systems.size(), slopes.size() * static_cast<size_t>(num_groups));
  pool.ParallelForDynamic(num_rows, [&](int64_t row) {
    RefitRow(num_groups, systems.data() + row * num_groups * num_groups,
             slopes.data() + row * num_groups, codes.scales.data() + (first + row) * num_groups);
  });
}

}  // namespace thinwire
