// Single elements of fp32, fp16 and bf16 tensors in host memory, for reference implementations:
// simple and slow.
#pragma once

#include <cstdint>

#include "kernels/core/tensor_view.h"

namespace thinwire {

// The element `i` elements behind the first; exact.
double LoadElement(const ConstTensorView& view, int64_t i);

// Rounds to fp32 and from there to the view's dtype, to nearest even.
void StoreElement(const TensorView& view, int64_t i, double value);

}  // namespace thinwire
