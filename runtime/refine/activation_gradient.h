// Values and derivatives of the non-linearities of kernels/activation.
#pragma once

#include <cstdint>

#include "kernels/activation/activation.h"
#include "kernels/core/thread_pool.h"

namespace thinwire {

struct ActivationPoint {
  double value = 0.0;
  double slope = 0.0;  // of ReLU at 0: 0
};
ActivationPoint ActivationAt(ActivationKind kind, double x);

// d[i] *= f'(x[i])
void ActivationGradient(ActivationKind kind, int64_t n, const float* x, float* d, ThreadPool& pool);

// Of f(gate) * up: d is the derivative to it and becomes that to `up`; dgate that to `gate`.
void GatedActivationGradient(ActivationKind kind, int64_t n, const float* gate, const float* up,
                             float* d, float* dgate, ThreadPool& pool);

}  // namespace thinwire
