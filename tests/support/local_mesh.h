// An engine whose ranks are threads of this process, for tests.
#pragma once

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "parallel/plan/mesh.h"
#include "runtime/engine/engine.h"
#include "runtime/engine/engine_options.h"
#include "runtime/engine/rank_layout.h"

namespace thinwire {

// Starts the ranks of `layout`, one thread of work each, and calls `lead` with rank 0's engine on
// the calling thread; the other ranks follow. Afterwards stops the engine and waits for all ranks.
// Returns the first of: why a rank could not be created, what `lead` returned, the error of Stop,
// the error of the lowest other rank.
absl::Status RunOnLocalRanks(const EngineOptions& options, const RankLayout& layout,
                             absl::FunctionRef<absl::Status(Engine& engine)> lead);

// The same, in one mesh.
absl::Status RunOnLocalMesh(const EngineOptions& options, const Mesh& mesh,
                            absl::FunctionRef<absl::Status(Engine& engine)> lead);

}  // namespace thinwire
