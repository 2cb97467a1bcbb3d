// The copy loop of Checkpoint::Read. Private to this folder.
#pragma once

#include "kernels/core/mapped_file.h"
#include "kernels/core/tensor_view.h"
#include "parallel/plan/shard_plan.h"
#include "runtime/checkpoint/safetensors.h"

namespace thinwire {

// Copies the block rows x columns of `tensor` to `out`, converting between float dtypes. The tensor
// is a matrix, or a vector with columns [0, 1). `out` is in host memory, has the block's shape, and
// a dtype that is the tensor's or, like it, a float. Gives pages of `file` back as it goes.
void CopyBlock(const MappedFile& file, const TensorInfo& tensor, Range rows, Range columns,
               TensorView out);

}  // namespace thinwire
