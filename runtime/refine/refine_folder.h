// End-to-end refinement of a vector-quantised model: centroids, scales, offsets, norms and biases
// are fitted together, so that its predictions become those of the model that it was made from.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "kernels/core/thread_pool.h"
#include "runtime/checkpoint/quant_scheme.h"

namespace thinwire {

struct RefineOptions {
  std::string model_dir;  // the model as it came
  std::string folder;     // what quantisation made of it
  std::string out;        // the refined folder: made, or made whole where it is there in part
  std::vector<std::vector<int32_t>> windows;  // token ids, all as many
  int64_t num_steps = 150;
  int64_t batch = 8;   // windows of a step; all, where there are fewer
  double rate = 2e-3;  // of the first step, falling to 0 as a half cosine
  uint64_t seed = 0;   // of the order of windows
};

// loss: the mean divergence of the step's predictions from the model's, in nats a token, before the
// step's change.
using RefineProgress = std::function<void(int64_t step, int64_t num_steps, double loss)>;

// OK if what `scheme` makes of a model can be refined: Unimplemented where weights are no vectors
// of codebooks or the model's norms come behind the residual sums.
absl::Status CheckRefinable(const std::string& model_dir, const QuantScheme& scheme);

// Minimises the Kullback-Leibler divergence of the model's predictions from the folder's by Adam.
// The same bytes with any number of threads. Holds the windows' residuals of the model before its
// first layer and behind its last, the indices, and of each layer the residuals of a batch; layers
// are expanded one at a time. Errors: CheckRefinable's, those of loading and writing;
// FailedPrecondition: the loss is not finite. thinwire.json says "refine_steps" then.
absl::Status RefineFolder(const RefineOptions& options, ThreadPool& pool,
                          const RefineProgress& on_step = nullptr);

}  // namespace thinwire
