// What a model's config says that decides how it is cut over ranks.
#pragma once

#include "parallel/plan/shard_plan.h"
#include "runtime/checkpoint/model_config.h"

namespace thinwire {

DecoderShape ShapeOf(const ModelConfig& config);

}  // namespace thinwire
