// A vector-quantised decoder whose codebooks, scales, norms and biases are fitted.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/core/thread_pool.h"
#include "runtime/checkpoint/checkpoint.h"
#include "runtime/checkpoint/model_config.h"
#include "runtime/quantizer/dense_layer.h"
#include "runtime/refine/parameter.h"
#include "runtime/refine/trained_linear.h"

namespace thinwire {

// Gain and offset. Units: a channel's gain, of its offset too.
struct TrainedNorm {
  Parameter gain, offset;

  TrainedNorm() = default;
  TrainedNorm(absl::string_view name, const NormWeights& weights);
  DenseNorm Expand() const { return {gain.value, offset.value}; }
  void Differentiate(const DenseNorm& gradient);
};

// Holds all indices and parameters, and no expanded layer. Move-only; pointers to parameters end
// with a move.
class TrainedDecoder {
 public:
  // config: that of the checkpoint, vptq given. byte_books: as TrainedLinear's. Errors are those of
  // loading.
  static absl::StatusOr<TrainedDecoder> Load(const Checkpoint& checkpoint,
                                             const ModelConfig& config, bool byte_books);

  // The layer as its parameters are now.
  void Expand(int64_t layer, DenseLayer& out, ThreadPool& pool) const;
  // Sets the gradients of the layer's parameters.
  void Differentiate(int64_t layer, const DenseLayer& gradient, ThreadPool& pool);

  // All projections': see TrainedLinear.
  void RoundBooks();

  // Without numbers where the model has none.
  TrainedNorm& final_norm() { return final_norm_; }

  std::vector<Parameter*> parameters();

 private:
  struct Layer {
    TrainedNorm attention_norm, mlp_norm;
    std::array<TrainedLinear, kLinearRoles.size()> linears;
  };

  TrainedDecoder() = default;

  bool has_gate_ = false;
  std::vector<Layer> layers_;
  TrainedNorm final_norm_;
};

}  // namespace thinwire
