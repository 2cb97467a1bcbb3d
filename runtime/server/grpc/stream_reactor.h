// Answers one call with one generation: as a stream of deltas, or all at once.
#pragma once

#include <grpcpp/support/server_callback.h>

#include <memory>
#include <mutex>

#include "proto/thinwire/v1/inference.pb.h"
#include "runtime/server/grpc/notifier.h"
#include "runtime/server/serving_core.h"

namespace thinwire {

// Both live until gRPC is done with the call; `core` and `notifier` live longer. The call's
// deadline is the generation's, and when the client leaves, the generation is cancelled.
grpc::ServerWriteReactor<v1::GenerateStreamResponse>* AnswerStream(
    grpc::CallbackServerContext* context, const v1::GenerateRequest* request, ServingCore* core,
    Notifier* notifier);

grpc::ServerUnaryReactor* AnswerOnce(grpc::CallbackServerContext* context,
                                     const v1::GenerateRequest* request,
                                     v1::GenerateResponse* response, ServingCore* core,
                                     Notifier* notifier);

// The deadline of a call on the serving loop's clock.
ServingClock::time_point DeadlineOf(const grpc::CallbackServerContext& context);

}  // namespace thinwire
