// Blocks of a model folder's tensors as a rank's memory holds them. Private to this folder.
#pragma once

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "kernels/core/tensor.h"
#include "parallel/plan/shard_plan.h"
#include "runtime/checkpoint/checkpoint.h"
#include "runtime/checkpoint/model_config.h"
#include "runtime/model/decoder_weights.h"

namespace thinwire {

// Output features of one projection that this rank holds.
struct ProjectionRows {
  std::string name;        // without ".weight"
  int64_t total_rows = 0;  // of the whole projection
  Range rows;
};

// Borrows checkpoint and config. Errors name file and tensor.
class WeightReader {
 public:
  WeightReader(const Checkpoint& checkpoint, const ModelConfig& config)
      : checkpoint_(checkpoint), config_(config) {}

  const Checkpoint& checkpoint() const { return checkpoint_; }

  // OK when the tensor exists and is fp32, fp16 or bf16; `dtype` is then its type.
  absl::Status FindFloat(const std::string& name, DType& dtype) const;

  // A block of a matrix in the checkpoint's own dtype.
  absl::Status ReadMatrix(const std::string& name, int64_t rows, int64_t columns,
                          const TensorSlice& slice, Tensor& out) const;

  // A block of a vector as fp32.
  absl::Status ReadVector(const std::string& name, int64_t size, Range range, TensorView out) const;

  absl::Status ReadNorm(const std::string& name, bool affine, bool has_bias,
                        NormWeights& out) const;

  // Output features of several projections with the same input stacked into one matrix, biases
  // likewise.
  absl::Status ReadFused(const std::vector<ProjectionRows>& parts, int64_t in_features, bool bias,
                         LinearWeights& out) const;

  // Output features part.rows of a projection for its input features `columns`, and their bias
  // where wanted.
  absl::Status ReadBlock(const ProjectionRows& part, int64_t in_features, Range columns, bool bias,
                         LinearWeights& out) const;

  // The bias of output features part.rows, as fp32.
  absl::Status ReadBias(const ProjectionRows& part, LinearWeights& out) const;

 private:
  const Checkpoint& checkpoint_;
  const ModelConfig& config_;
};

}  // namespace thinwire
