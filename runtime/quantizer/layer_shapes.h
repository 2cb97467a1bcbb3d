// Which shape the vectors of each of a layer's projections have.
#pragma once

#include <array>

#include "runtime/checkpoint/quant_scheme.h"
#include "runtime/quant/vptq.h"
#include "runtime/quantizer/dense_layer.h"

namespace thinwire {

using LayerShapes = std::array<VptqShape, kLinearRoles.size()>;

// What `shape` says, which has a length.
inline VptqOptions VptqOptionsOf(const VptqShape& shape) {
  return {.length = shape.length,
          .index_bits = shape.index_bits,
          .residual = shape.residual,
          .residual_bits = shape.residual_bits,
          .num_groups = shape.num_groups,
          .outlier_percent = shape.outlier_percent,
          .outlier_length = shape.outlier_length,
          .outlier_bits = shape.outlier_bits,
          .byte_books = shape.byte_books,
          .norm = shape.norm};
}

}  // namespace thinwire
