// Tensors that are computed instead of read: seeded values of any size that take no memory or disk.
#pragma once

#include <cstdint>
#include <string>

#include "kernels/core/tensor_view.h"
#include "parallel/plan/shard_plan.h"
#include "runtime/checkpoint/safetensors.h"

namespace thinwire {

enum class SyntheticFill {
  kNormal,    // mean 0, standard deviation `scale`: 256 quantiles of the normal distribution
  kBytes,     // the same in steps of their 127th part: a byte book of one scale, fp16
  kUniform,   // in [scale / 2, 3 scale / 2], evenly: scales
  kConstant,  // `scale`
  kBits,      // integers of random bits: packed codes; of I16 the lowest `code_bits`
  kCodes,     // integers of codes of `code_bits` bits, `code` and `code` - 1 in turns: packed zeros
};

struct SyntheticTensor {
  TensorInfo info;  // dtype fp32, fp16, bf16, I32 for kBits and kCodes, or I16 for kBits; of 1 to 3
                    // dimensions
  SyntheticFill fill = SyntheticFill::kConstant;
  float scale = 1.0f;
  int code_bits = 4;
  uint32_t code = 0;
  uint64_t seed = 0;
};

// Copies a block of it to `out` (host memory in the block's shape, rows may be strided), converting
// between floats. An element depends on seed and place alone, so blocks agree however it is cut. A
// codes' row begins with its first code: kCodes never cross rows.
void FillSynthetic(const SyntheticTensor& tensor, Range rows, Range columns, TensorView out);

}  // namespace thinwire
