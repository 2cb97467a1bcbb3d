// How an engine runs a model: the same values on all ranks, but for which GPU a rank has.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "kernels/core/device.h"
#include "kernels/core/dtype.h"
#include "parallel/wire/strategy.h"
#include "runtime/engine/strategy_cache.h"

namespace thinwire {

struct EngineOptions {
  std::string model_dir;
  DType dtype = DType::kF32;   // of activations and the KV cache
  Device device;               // of this rank: what its tensors are on and its kernels run on
  bool share_gpus = false;     // several ranks may have one GPU; the environment tells NCCL so
  bool captures_steps = true;  // on a GPU, decode steps are CUDA graphs
  WireOptions wire;
  StrategyCacheOptions strategy_cache;  // of --wire auto
  int64_t page_size = 16;               // tokens of a KV page
  int64_t max_seqs = 64;                // sequences that run at the same time
  int64_t max_step_tokens = 512;        // tokens of one step
  bool share_pages = false;             // requests that begin alike read the same KV pages
  // 1: a step is launched before the tokens of the last one are known. 0 with several stages, or
  // groups of ranks.
  int64_t steps_ahead = 0;
  int64_t kv_cache_bytes = 0;  // per rank; 0: what max_seqs full contexts need, at most a quarter
                               // of this rank's share of the host's free memory, or nine tenths of
                               // what weights and activations leave of a GPU's
  absl::Duration load_timeout = absl::Minutes(60);
  absl::Duration step_timeout = absl::Minutes(10);
  // Called in a thread of its own when a step on a GPU hangs in a call that has no bound: to end
  // the process, which nothing else can. Null: it goes on hanging.
  std::function<void(const absl::Status&)> on_hang;
};

}  // namespace thinwire
