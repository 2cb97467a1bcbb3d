#include "runtime/quant/gptq_codes.h"

#include <algorithm>
#include <utility>

#include "kernels/core/check.h"
#include "kernels/linear/blas.h"

namespace thinwire {
namespace {

constexpr int64_t kRows = 64;

void DequantizeRow(const GptqCodes& codes, int64_t row, float* to) {
  const uint8_t* code = codes.codes.data() + row * codes.in_features;
  for (int64_t g = 0; g < codes.num_groups(); ++g) {
    const float scale = codes.scales[row * codes.num_groups() + g];
    const auto zero = static_cast<float>(codes.zeros[row * codes.num_groups() + g]);
    for (int64_t i = codes.group_offsets[g]; i < codes.group_offsets[g + 1]; ++i) {
      to[i] = scale * (static_cast<float>(code[i]) - zero);
    }
  }
}

// tr(A H A^T) of a[rows, in], in double: errors lie where H is small, a part in 10^6 of its size.
double Trace(const std::vector<double>& a, int64_t rows, int64_t in, const double* hessian,
             std::vector<double>& product) {
  product.resize(a.size());
  DgemmNN(rows, in, in, a.data(), in, hessian, in, 0.0, product.data(), in);
  double sum = 0.0;
  for (int64_t i = 0; i < rows * in; ++i) sum += a[i] * product[i];
  return sum;
}

}  // namespace

std::vector<float> Dequantize(const GptqCodes& codes, ThreadPool* pool) {
  std::vector<float> values(static_cast<size_t>(codes.out_features * codes.in_features));
  const auto run = [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      DequantizeRow(codes, row, values.data() + row * codes.in_features);
    }
  };
  if (pool == nullptr) {
    run(0, codes.out_features);
  } else {
    pool->ParallelFor(codes.out_features, kRows, run);
  }
  return values;
}

double RelativeError(absl::Span<const float> weights, const GptqCodes& codes,
                     absl::Span<const double> hessian, ThreadPool& pool) {
  const int64_t out = codes.out_features;
  const int64_t in = codes.in_features;
  TW_CHECK_EQ(static_cast<int64_t>(weights.size()), out * in);
  TW_CHECK_EQ(static_cast<int64_t>(hessian.size()), in * in);
  const int64_t num_tiles = (out + kRows - 1) / kRows;
  std::vector<std::pair<double, double>> tiles(static_cast<size_t>(num_tiles));
  pool.ParallelForDynamic(num_tiles, [&](int64_t tile) {
    const int64_t first = tile * kRows;
    const int64_t rows = std::min(kRows, out - first);
    std::vector<double> weight(static_cast<size_t>(rows * in));
    std::vector<double> error(weight.size());
    std::vector<double> product;
    std::vector<float> coded(static_cast<size_t>(in));
    for (int64_t r = 0; r < rows; ++r) {
      DequantizeRow(codes, first + r, coded.data());
      for (int64_t i = 0; i < in; ++i) {
        weight[r * in + i] = static_cast<double>(weights[(first + r) * in + i]);
        error[r * in + i] = static_cast<double>(coded[i]) - weight[r * in + i];
      }
    }
    tiles[tile] = {Trace(error, rows, in, hessian.data(), product),
                   Trace(weight, rows, in, hessian.data(), product)};
  });
  double error = 0.0;
  double whole = 0.0;
  for (const auto& [of_error, of_weight] : tiles) {
    error += of_error;
    whole += of_weight;
  }
  return whole == 0.0 ? 0.0 : error / whole;
}

std::vector<float> BiasCorrection(absl::Span<const float> weights, const GptqCodes& codes,
                                  absl::Span<const double> mean) {
  const int64_t in = codes.in_features;
  TW_CHECK_EQ(static_cast<int64_t>(weights.size()), codes.out_features * in);
  TW_CHECK_EQ(static_cast<int64_t>(mean.size()), in);
  std::vector<float> correction(static_cast<size_t>(codes.out_features));
  std::vector<float> coded(static_cast<size_t>(in));
  for (int64_t row = 0; row < codes.out_features; ++row) {
    DequantizeRow(codes, row, coded.data());
    double sum = 0.0;
    for (int64_t i = 0; i < in; ++i) {
      sum += (static_cast<double>(weights[row * in + i]) - static_cast<double>(coded[i])) * mean[i];
    }
    correction[row] = static_cast<float>(sum);
  }
  return correction;
}

}  // namespace thinwire
