// POST /v1/completions and /v1/chat/completions. Private to http_server.cc.
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "runtime/server/hang_up_watch.h"
#include "runtime/server/http/open_sockets.h"
#include "runtime/server/serving_core.h"

namespace httplib {
struct Request;
struct Response;
}  // namespace httplib

namespace thinwire {

// What handlers share; borrowed.
struct HttpContext {
  ServingCore* core;
  const OpenSockets* sockets;
  HangUpWatch* hang_ups;
};

// Answers on the calling thread, which waits for the engine; streams go on when it has returned.
// The client's leaving cancels what was asked. Header "X-Request-Timeout-Ms": how long it may take.
void AnswerOpenAi(const httplib::Request& http, bool chat, const HttpContext& context,
                  httplib::Response& response);

// The hint of a status in the whole seconds of Retry-After, at least one.
int64_t RetryAfterSeconds(const absl::Status& status);

// A body in OpenAI's form, the status code, and Retry-After where there is advice.
void AnswerError(const absl::Status& status, httplib::Response& response);

}  // namespace thinwire
