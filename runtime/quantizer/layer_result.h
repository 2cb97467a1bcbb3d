// What quantisation makes of one decoder layer, and its files in the output folder.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "nlohmann/json_fwd.hpp"
#include "runtime/checkpoint/checkpoint.h"
#include "runtime/checkpoint/gptq_config.h"
#include "runtime/checkpoint/model_config.h"
#include "runtime/checkpoint/rptq_file.h"
#include "runtime/checkpoint/vptq_config.h"
#include "runtime/quant/gptq_codes.h"
#include "runtime/quant/vptq.h"
#include "runtime/quantizer/dense_layer.h"

namespace thinwire {

// Norms and biases are those of the quantised layer: folds and corrections are in them.
struct LayerResult {
  DenseNorm attention_norm, mlp_norm;
  // Columns in the order of the site that the projection reads. Without rows: the projection is
  // not quantised.
  std::array<GptqCodes, kLinearRoles.size()> weights;
  // The same where weights are vectors of codebooks, columns in the model's own order. As read from
  // a file: only what they stand for, [out, in].
  std::array<VptqCodes, kLinearRoles.size()> vectors;
  std::array<std::vector<float>, kLinearRoles.size()> read_vectors;
  std::array<std::vector<float>, kLinearRoles.size()> biases;
  LayerCodes codes;

  // Relative error of each projection's outputs on the calibration inputs.
  std::array<double, kLinearRoles.size()> errors = {};

  GptqCodes& weight(LinearRole role) { return weights[static_cast<size_t>(role)]; }
  const GptqCodes& weight(LinearRole role) const { return weights[static_cast<size_t>(role)]; }
  VptqCodes& vector(LinearRole role) { return vectors[static_cast<size_t>(role)]; }
  const VptqCodes& vector(LinearRole role) const { return vectors[static_cast<size_t>(role)]; }
  std::vector<float>& read_vector(LinearRole role) {
    return read_vectors[static_cast<size_t>(role)];
  }
  const std::vector<float>& read_vector(LinearRole role) const {
    return read_vectors[static_cast<size_t>(role)];
  }
  std::vector<float>& bias(LinearRole role) { return biases[static_cast<size_t>(role)]; }
  const std::vector<float>& bias(LinearRole role) const {
    return biases[static_cast<size_t>(role)];
  }
  bool quantises_weights() const {
    return !weight(LinearRole::kQ).codes.empty() || !vector(LinearRole::kQ).indices.empty() ||
           !read_vector(LinearRole::kQ).empty();
  }
};

// The layer as calibration goes on with it: weights that the codes stand for, in the model's own
// order of channels. `dense` is what it was made from.
DenseLayer Dequantized(const LayerResult& result, const DenseLayer& dense);

// The folder that a quantisation writes to. Each layer is a file of its own, so a run that was
// ended finds what is done.
class LayerFiles {
 public:
  // `source`: the checkpoint that is quantised, borrowed like the config.
  LayerFiles(std::string dir, const Checkpoint* source, const ModelConfig* config,
             const GptqConfig& gptq, int tp);

  // "model-00003-of-00025.safetensors": layer 2 of 24. The last file holds what is no layer's.
  std::string FileName(int64_t layer) const;
  int64_t num_files() const { return config_->num_layers + 1; }

  bool Has(int64_t layer) const;
  // All or nothing.
  absl::Status Write(int64_t layer, const LayerResult& result) const;
  // Which projections of all layers' files are vectors of codebooks; none where none is.
  absl::StatusOr<std::optional<VptqConfig>> ReadVptqConfig() const;
  // What Write wrote. `dense` gives the shapes.
  absl::StatusOr<LayerResult> Read(int64_t layer, const DenseLayer& dense) const;

  // The tensors of the source that are no layer's, as they are.
  absl::Status WriteEnds() const;
  // The index over all files, the sites of all layers in one file, and what became of projections,
  // with their errors, in quantize_report.json; the files of single layers' sites vanish.
  absl::Status Finish() const;

 private:
  // Of one file's projections.
  static absl::StatusOr<VptqConfig> ReadModules(const std::string& path);
  static absl::StatusOr<nlohmann::json> ReadReport(const std::string& path);
  std::string Path(absl::string_view name) const;
  std::string SitesDir(int64_t layer) const;
  std::string Prefix(int64_t layer) const;
  absl::Status WriteSites(int64_t layer, const LayerCodes& codes) const;
  absl::StatusOr<LayerCodes> ReadSites(int64_t layer) const;
  // Copies tensors of the source whose names pass.
  absl::Status CopyTensors(const std::string& path, const std::vector<std::string>& names) const;

  const std::string dir_;
  const Checkpoint* source_;
  const ModelConfig* config_;
  const GptqConfig gptq_;
  const int tp_;
};

}  // namespace thinwire
