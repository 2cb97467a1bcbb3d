#include <cmath>

#include "kernels/activation/activation.h"
#include "kernels/core/check.h"

namespace thinwire {

double ActivationReference(ActivationKind kind, double x) {
  switch (kind) {
    case ActivationKind::kRelu:
      return std::isnan(x) ? x : std::fmax(x, 0.0);
    case ActivationKind::kSilu:
      // x / (1 + exp(-x)); at -infinity its limit.
      return x == -INFINITY ? 0.0 : x / (1.0 + std::exp(-x));
    case ActivationKind::kGelu:
      // 1 + erf(z) = erfc(-z), which does not cancel.
      return x == -INFINITY ? 0.0 : x * std::erfc(-x * std::sqrt(0.5)) / 2.0;
    case ActivationKind::kGeluTanh: {
      // (1 + tanh(u)) / 2 = 1 / (1 + exp(-2u)), which does not cancel.
      const double u = std::sqrt(2.0 / M_PI) * (x + 0.044715 * x * x * x);
      return x == -INFINITY ? 0.0 : x / (1.0 + std::exp(-2.0 * u));
    }
  }
  TW_CHECK(false);
}

}  // namespace thinwire
