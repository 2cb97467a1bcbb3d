// One rank's part of a decoder layer with vector-quantised projections. Private to this folder.
#pragma once

#include "absl/status/status.h"
#include "runtime/model/coded_layer.h"
#include "runtime/model/decoder_weights.h"

namespace thinwire {

// Projections that config.json does not list are dense. Sites only round to their codes, in the
// model's own order of channels. Errors name file and tensor.
absl::Status ReadVptqLayer(const LayerSource& source, LayerWeights& out);

}  // namespace thinwire
