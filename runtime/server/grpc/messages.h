// Between protocol messages and what the serving loop knows.
#pragma once

#include <grpcpp/server_context.h>
#include <grpcpp/support/status.h>

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "proto/thinwire/v1/control.pb.h"
#include "proto/thinwire/v1/inference.pb.h"
#include "runtime/server/generation.h"
#include "runtime/server/serving_core.h"

namespace thinwire {

// With google.rpc.Status details: ErrorInfo (retryable, tokens_emitted, request_id), RetryInfo.
grpc::Status ToGrpcStatus(const absl::Status& status, absl::string_view request_id = "",
                          int64_t tokens_emitted = 0);

// A request for the loop; the deadline is left open. NotFound: it names another model.
// InvalidArgument: no input, or a number out of range.
absl::StatusOr<GenerationRequest> FromMessage(const v1::GenerateRequest& message,
                                              ServingCore& core);

// Unauthenticated unless the call brings the token.
// Whom rate limits count a call to: the address of the peer without its port, or what the metadata
// say where core.client_header names one.
std::string ClientOf(const grpc::CallbackServerContext& context, const ServingCore& core);

absl::Status CheckToken(const grpc::CallbackServerContext& context, const std::string& token);

v1::Completion ToMessage(const GenerationEnd& end);
v1::Load ToMessage(const ServingLoad& load);
v1::ServerState ToMessage(ServingState state);

}  // namespace thinwire
