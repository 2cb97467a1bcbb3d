// For tests: values as tensors of a float dtype, and how far rounding to it carries them.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/core/dtype.h"
#include "kernels/core/tensor.h"

namespace thinwire {

// The dtypes that kernels compute on.
inline constexpr DType kFloatDTypes[] = {DType::kF32, DType::kF16, DType::kBF16};

// Half the distance between neighbours in fp32, fp16 or bf16, relative to the value.
double UnitRoundoff(DType dtype);

// [rows, columns] in host memory. values: row after row, rounded to fp32, fp16 or bf16.
Tensor RoundedTensor(const std::vector<float>& values, DType dtype, int64_t rows, int64_t columns);

// The same of random values from a normal distribution of deviation 1, always the same ones.
Tensor NormalTensor(DType dtype, int64_t rows, int64_t columns);

// All elements of a tensor of fp32, fp16 or bf16 in host memory; exact.
std::vector<float> Floats(const Tensor& tensor);

}  // namespace thinwire
