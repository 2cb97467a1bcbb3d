// One rank's part of a quantised decoder layer. Private to this folder.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "kernels/core/thread_pool.h"
#include "parallel/plan/shard_plan.h"
#include "runtime/checkpoint/model_config.h"
#include "runtime/checkpoint/rptq_file.h"
#include "runtime/model/decoder_spec.h"
#include "runtime/model/decoder_weights.h"
#include "runtime/model/weight_reader.h"

namespace thinwire {

// What the readers of a layer share; everything borrowed.
struct LayerSource {
  const WeightReader* reader = nullptr;
  const ModelConfig* config = nullptr;
  const DecoderSpec* spec = nullptr;
  const ShardPlan* plan = nullptr;
  std::string prefix;                 // of the layer's tensors
  const LayerCodes* codes = nullptr;  // null: sites are neither reordered nor coded
  ThreadPool* pool = nullptr;         // null: the calling thread alone
};

// A layer whose projections are in the GPTQ format. Sites are put into their run-time order here,
// for good: norms write it, the columns of the projections are sorted by it, and the rows of v_proj
// and of fc1 (gate, up) are sorted so that o_proj and fc2 (down) find theirs. Errors name file and
// tensor.
absl::Status ReadCodedLayer(const LayerSource& source, LayerWeights& out);

// Lets the sites of a layer with dense projections round to their codes, in the model's own order
// of channels: there is nothing that a reordering would gain.
absl::Status ReadSitesOfDenseLayer(const LayerSource& source, LayerWeights& out);

}  // namespace thinwire
