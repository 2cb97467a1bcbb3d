// A decoder layer in fp32, in the model's own order of channels: what quantisation works on.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "kernels/core/stream.h"
#include "kernels/core/thread_pool.h"
#include "runtime/checkpoint/checkpoint.h"
#include "runtime/checkpoint/model_config.h"
#include "runtime/checkpoint/quant_scheme.h"
#include "runtime/model/decoder_weights.h"

namespace thinwire {

struct DenseLinear {
  int64_t out_features = 0;
  int64_t in_features = 0;
  std::vector<float> weight;  // [out, in]
  std::vector<float> bias;    // [out], or empty

  bool empty() const { return weight.empty(); }
  absl::Span<float> row(int64_t o) {
    return absl::MakeSpan(weight).subspan(o * in_features, in_features);
  }
  absl::Span<const float> row(int64_t o) const {
    return absl::MakeConstSpan(weight).subspan(o * in_features, in_features);
  }
};

// [width]: for each input channel, the sum of its squared weights over the rows of `readers`, all
// of which have `width` inputs. `pool`: whose threads share the columns, or null; the same bits.
std::vector<double> ColumnSquares(const std::vector<const DenseLinear*>& readers, int64_t width,
                                  ThreadPool* pool = nullptr);

// Which of a layer's projections.
enum class LinearRole { kQ, kK, kV, kOut, kGate, kUp, kDown };
inline constexpr std::array<LinearRole, 7> kLinearRoles = {
    LinearRole::kQ,    LinearRole::kK,  LinearRole::kV,   LinearRole::kOut,
    LinearRole::kGate, LinearRole::kUp, LinearRole::kDown};

// "q", "k", "v", "out", "gate", "up", "down".
absl::string_view RoleWord(LinearRole role);

// The site that a projection reads.
QuantSite InputSite(LinearRole role);

struct DenseNorm {
  std::vector<float> gain;    // [hidden], or empty
  std::vector<float> offset;  // [hidden], or empty
};

struct DenseLayer {
  DenseNorm attention_norm, mlp_norm;
  std::array<DenseLinear, kLinearRoles.size()> linears;  // gate is empty where there is none

  DenseLinear& at(LinearRole role) { return linears[static_cast<size_t>(role)]; }
  const DenseLinear& at(LinearRole role) const { return linears[static_cast<size_t>(role)]; }
};

// Layer `layer` of an unquantised checkpoint. InvalidArgument: a weight that is NaN or infinite
// (layer, projection, row and column named); errors of loading.
absl::StatusOr<DenseLayer> LoadDenseLayer(const Checkpoint& checkpoint, const ModelConfig& config,
                                          int64_t layer);

// The same layer for LayerRunner on one rank, on the stream's device; done on return.
// ResourceExhausted where memory lacks.
absl::StatusOr<LayerWeights> ToLayerWeights(const DenseLayer& layer, Stream& stream);

// Replaces the projections of `weights` that read `site`, which q, k and v, out, gate and up, or
// down do, by those of `layer`; done on return.
absl::Status ReplaceReaders(const DenseLayer& layer, QuantSite site, LayerWeights& weights,
                            Stream& stream);

}  // namespace thinwire
