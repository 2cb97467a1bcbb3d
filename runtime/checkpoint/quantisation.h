// What quantisation left in a model folder: its files, checked against each other, and what K and V
// cost with them.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "parallel/plan/shard_plan.h"
#include "runtime/checkpoint/model_config.h"
#include "runtime/checkpoint/rptq_file.h"
#include "runtime/checkpoint/thinwire_file.h"

namespace thinwire {

struct Quantisation {
  // None: the folder was not made by thinwire. Both are there, or none.
  std::optional<ThinwireFile> made;
  std::optional<RptqFile> rptq;

  // Of layer `layer`; null where nothing is reordered or coded.
  const LayerCodes* layer(int64_t layer) const {
    return rptq.has_value() ? &rptq->layers[static_cast<size_t>(layer)] : nullptr;
  }
};

// Reads dir/thinwire.json and dir/rptq.safetensors, where they are. Errors: theirs, of which
// NotFound is left for one that lies there without the other; InvalidArgument names both files
// where they contradict each other: a scheme whose activations are not those that have codes,
// weights of another width than config.json says, another tp. `dir` may name a synthetic model.
absl::StatusOr<Quantisation> ReadQuantisation(const std::string& dir, const ModelConfig& config);

// What quantisation is called: SchemeName of thinwire.json; "gptq4" of a published GPTQ folder;
// "vptq-v8-k4096-r256"; "w16a16".
std::string SchemeOf(const ModelConfig& config, const Quantisation& quantisation);

// What K and V of some KV heads take, in all layers.
struct KvFootprint {
  struct Layer {
    // Bits of an element on average, as coded; 16 where K and V stay as they are.
    double k_bits = 16.0;
    double v_bits = 16.0;
    int64_t bytes_per_token = 0;  // as the cache allocates them: rows of a layer are equally long
  };
  std::vector<Layer> layers;
  bool coded = false;
  int64_t first_token_bytes = 0;  // of each sequence besides: its first token's exact K and V

  double k_bits() const;  // mean over layers
  double v_bits() const;
  int64_t bytes_per_token() const;
};

// fp16 where K and V are not coded.
KvFootprint KvFootprintOf(const ModelConfig& config, const Quantisation& quantisation,
                          Range kv_heads);

}  // namespace thinwire
