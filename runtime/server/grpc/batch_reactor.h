// Answers one call with many generations.
#pragma once

#include <grpcpp/support/server_callback.h>

#include "proto/thinwire/v1/inference.pb.h"
#include "runtime/server/grpc/notifier.h"
#include "runtime/server/serving_core.h"

namespace thinwire {

// Lives until gRPC is done with the call; `core` and `notifier` live longer. No more than a bounded
// number of the call's requests are live at a time: then it is not read any further.
grpc::ServerBidiReactor<v1::GenerateBatchRequest, v1::GenerateBatchResponse>* AnswerBatch(
    grpc::CallbackServerContext* context, ServingCore* core, Notifier* notifier);

}  // namespace thinwire
