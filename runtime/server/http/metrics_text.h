// What a server does, as Prometheus scrapes it.
#pragma once

#include <string>

#include "runtime/server/serving_core.h"

namespace thinwire {

// Text exposition format. With `vllm_names`, also the three gauges that the endpoint picker of the
// Kubernetes Gateway API looks for under vLLM's names.
std::string MetricsText(const ServingCore& core, bool vllm_names);

}  // namespace thinwire
