#include "runtime/refine/activation_gradient.h"

#include <cmath>
#include <numbers>

#include "kernels/core/check.h"

namespace thinwire {
namespace {

constexpr int64_t kGrain = 1 << 14;

}  // namespace

ActivationPoint ActivationAt(ActivationKind kind, double x) {
  switch (kind) {
    case ActivationKind::kRelu:
      return x > 0.0 ? ActivationPoint{x, 1.0} : ActivationPoint{};
    case ActivationKind::kSilu: {
      const double sigmoid = 1.0 / (1.0 + std::exp(-x));
      return {x * sigmoid, sigmoid * (1.0 + x * (1.0 - sigmoid))};
    }
    case ActivationKind::kGelu: {
      const double below = 0.5 * std::erfc(-x / std::numbers::sqrt2);
      const double density =
          std::exp(-0.5 * x * x) * std::numbers::inv_sqrtpi / std::numbers::sqrt2;
      return {x * below, below + x * density};
    }
    case ActivationKind::kGeluTanh: {
      const double factor = std::numbers::sqrt2 * std::numbers::inv_sqrtpi;  // sqrt(2 / pi)
      const double t = std::tanh(factor * (x + 0.044715 * x * x * x));
      const double inner = factor * (1.0 + 3.0 * 0.044715 * x * x);
      return {0.5 * x * (1.0 + t), 0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * inner};
    }
  }
  TW_CHECK(false);
}

void ActivationGradient(ActivationKind kind, int64_t n, const float* x, float* d,
                        ThreadPool& pool) {
  pool.ParallelFor(n, kGrain, [&](int64_t begin, int64_t end) {
    if (kind == ActivationKind::kRelu) {
      for (int64_t i = begin; i < end; ++i) d[i] = x[i] > 0.0f ? d[i] : 0.0f;
      return;
    }
    for (int64_t i = begin; i < end; ++i) {
      d[i] = static_cast<float>(d[i] * ActivationAt(kind, x[i]).slope);
    }
  });
}

void GatedActivationGradient(ActivationKind kind, int64_t n, const float* gate, const float* up,
                             float* d, float* dgate, ThreadPool& pool) {
  pool.ParallelFor(n, kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const ActivationPoint point = ActivationAt(kind, gate[i]);
      dgate[i] = static_cast<float>(double{d[i]} * up[i] * point.slope);
      d[i] = static_cast<float>(d[i] * point.value);
    }
  });
}

}  // namespace thinwire
