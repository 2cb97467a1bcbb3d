// Models that exist only by their shape: seeded random weights of any known size and scheme, for
// benchmarks and for what fits, never for quality.
//
// Wherever a model folder is named, so can be
//   synthetic:SHAPE[:SCHEME[:SEED]]
// with SHAPE: a name (known_shapes.h) or a folder with a config.json; SCHEME: as ParseScheme reads
// it, w16a16 where absent. Such a model has no tokenizer: prompts are token ids.
//
// What it is like: weights are normal with a variance that keeps activations near 1, or codes in
// groups of 128 of that variance, or random vectors of random books, whose memory and speed are
// those of a quantised model's; channels are in their own order, in clusters of up to 256 that
// all have the scheme's width (a quantiser deals K's and V's bits out unequally) and ranges for
// values near 1. No token ends a sequence.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "runtime/checkpoint/model_config.h"
#include "runtime/checkpoint/quantisation.h"
#include "runtime/checkpoint/synthetic_tensor.h"

namespace thinwire {

// Whether a --model is no folder.
bool IsSyntheticModel(absl::string_view model);

// What LoadModelConfig, ReadQuantisation and Checkpoint::Open say of a synthetic model. All names
// its own part when it is malformed: NotFound for an unknown shape, InvalidArgument for a scheme or
// seed, or a shape whose channels the scheme's clusters of 16 or groups of columns do not divide;
// Unimplemented for bits on average, vptq-bN; else the errors of
// LoadModelConfig.
absl::StatusOr<ModelConfig> SyntheticConfig(const std::string& model);
absl::StatusOr<std::string> SyntheticConfigText(const std::string& model);  // of its config.json
absl::StatusOr<Quantisation> SyntheticQuantisation(const std::string& model,
                                                   const ModelConfig& config);
// In the order of the model's layers; offsets are 0.
absl::StatusOr<std::vector<SyntheticTensor>> SyntheticTensors(const std::string& model);

}  // namespace thinwire
