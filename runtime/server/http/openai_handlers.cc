#include "runtime/server/http/openai_handlers.h"

#include <httplib.h>

#include <chrono>
#include <memory>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "kernels/core/status_macros.h"
#include "runtime/server/connection.h"
#include "runtime/server/generation_set.h"
#include "runtime/server/openai/openai_request.h"
#include "runtime/server/openai/openai_response.h"
#include "runtime/server/retry_hint.h"

namespace thinwire {
namespace {

constexpr char kJson[] = "application/json";
// How often a client that waits is looked after.
constexpr std::chrono::milliseconds kLook(20);

// One HTTP request on its way: all its choices.
struct Exchange {
  Exchange(ServingCore* core, OpenAiRequest request) : core(core), request(std::move(request)) {
    ++core->num_exchanges;
  }
  Exchange(const Exchange&) = delete;
  ~Exchange() {
    Cancel(absl::CancelledError("the client left"));
    --core->num_exchanges;
  }

  // Ends what has not ended.
  void Cancel(const absl::Status& why) {
    if (set == nullptr) return;
    for (const auto& generation : set->generations()) core->loop.Cancel(*generation, why);
  }

  ServingCore* core;
  OpenAiRequest request;
  OpenAiAnswer answer;
  std::unique_ptr<GenerationSet> set;
  std::vector<OpenAiChoice> choices;
  std::vector<bool> begun;  // choices of which something was sent
};

absl::StatusOr<ServingClock::time_point> DeadlineOf(const httplib::Request& http) {
  if (!http.has_header("X-Request-Timeout-Ms")) return ServingClock::time_point::max();
  const std::string value = http.get_header_value("X-Request-Timeout-Ms");
  int64_t milliseconds = 0;
  if (!absl::SimpleAtoi(value, &milliseconds) || milliseconds < 1 || milliseconds > 86400000) {
    return absl::InvalidArgumentError(absl::StrCat(
        "X-Request-Timeout-Ms: expected 1 to 86400000, found '", value.substr(0, 40), "'"));
  }
  return ServingClock::now() + std::chrono::milliseconds(milliseconds);
}

absl::StatusOr<std::shared_ptr<Exchange>> Submit(const httplib::Request& http, bool chat,
                                                 ServingCore& core) {
  TW_RETURN_IF_ERROR(core.loop.CheckRoom());
  absl::StatusOr<OpenAiRequest> request = ParseOpenAiRequest(http.body, chat, core.model);
  const absl::StatusOr<ServingClock::time_point> deadline = DeadlineOf(http);
  std::string id = http.get_header_value("X-Request-Id");
  absl::Status wrong = request.status();
  wrong.Update(deadline.status());
  if (id.size() > 256) wrong.Update(absl::InvalidArgumentError("X-Request-Id: over 256 bytes"));
  if (!wrong.ok()) {
    core.loop.CountRejected(wrong);
    return wrong;
  }
  auto exchange = std::make_shared<Exchange>(&core, *std::move(request));
  exchange->answer = {id.empty() ? core.ids.Next(chat ? "chatcmpl" : "cmpl") : id, core.model.name,
                      absl::ToUnixSeconds(absl::Now()), chat};
  std::vector<std::shared_ptr<Generation>> generations;
  const size_t count = exchange->request.generations.size();
  absl::Status refused;
  for (size_t i = 0; i < count && refused.ok(); ++i) {
    GenerationRequest generation = exchange->request.generations[i];
    generation.id = count == 1 ? exchange->answer.id : absl::StrCat(exchange->answer.id, "/", i);
    generation.deadline = *deadline;
    auto submitted = core.loop.Submit(std::move(generation));
    if (submitted.ok()) {
      generations.push_back(*std::move(submitted));
    } else {
      refused = submitted.status();
    }
  }
  exchange->set = std::make_unique<GenerationSet>(std::move(generations));
  exchange->choices.resize(count);
  exchange->begun.resize(count);
  TW_RETURN_IF_ERROR(refused);
  return exchange;
}

void Note(Exchange& exchange, size_t index, const GenerationDelta& delta) {
  OpenAiChoice& choice = exchange.choices[index];
  choice.token_ids.insert(choice.token_ids.end(), delta.token_ids.begin(), delta.token_ids.end());
  if (!exchange.request.stream) choice.text += delta.text;
  if (delta.end.has_value()) choice.end = *delta.end;
}

// Waits for all choices; their first error.
absl::Status Collect(Exchange& exchange, const Connection& connection) {
  absl::Status error;
  while (!exchange.set->ended()) {
    if (connection.closed()) exchange.Cancel(absl::CancelledError("the client left"));
    const auto next = exchange.set->Next(ServingClock::now() + kLook);
    if (!next.has_value()) continue;
    Note(exchange, next->first, next->second);
    if (next->second.end.has_value() && !next->second.end->status.ok()) {
      error.Update(next->second.end->status);
      exchange.Cancel(error);
    }
  }
  return error;
}

// Sends what came next; false ends the connection.
bool Continue(Exchange& exchange, const Connection& connection, httplib::DataSink& sink) {
  const auto next = exchange.set->Next(ServingClock::now() + kLook);
  if (!next.has_value()) {
    if (!connection.closed()) return true;
    exchange.Cancel(absl::CancelledError("the client left"));
    return false;
  }
  const auto& [index, delta] = *next;
  Note(exchange, index, delta);
  std::string events;
  bool done = false;
  if (delta.end.has_value() && !delta.end->status.ok()) {
    events = OpenAiErrorChunk(delta.end->status);
    exchange.Cancel(delta.end->status);
    done = true;
  } else {
    events =
        OpenAiChunk(exchange.answer, static_cast<int64_t>(index), delta, !exchange.begun[index]);
    exchange.begun[index] = true;
    if (exchange.set->ended()) {
      if (exchange.request.include_usage) {
        events += OpenAiUsageChunk(exchange.answer, exchange.request, exchange.choices);
      }
      events += OpenAiDone();
      done = true;
    }
  }
  if (!sink.write(events.data(), events.size())) {
    exchange.Cancel(absl::CancelledError("the client left"));
    return false;
  }
  if (done) sink.done();
  return true;
}

}  // namespace

void AnswerError(const absl::Status& status, httplib::Response& response) {
  response.status = HttpStatusOf(status);
  if (const auto delay = RetryHint(status)) {
    const int64_t seconds = (absl::ToInt64Milliseconds(*delay) + 999) / 1000;
    response.set_header("Retry-After", absl::StrCat(seconds));
  }
  response.set_content(OpenAiErrorJson(status), kJson);
}

void AnswerOpenAi(const httplib::Request& http, bool chat, ServingCore& core,
                  httplib::Response& response) {
  auto submitted = Submit(http, chat, core);
  if (!submitted.ok()) {
    AnswerError(submitted.status(), response);
    return;
  }
  const std::shared_ptr<Exchange> exchange = *std::move(submitted);
  const Connection connection(http.remote_addr, http.remote_port, http.local_port);
  response.set_header("X-Request-Id", exchange->answer.id);
  if (exchange->request.stream) {
    response.set_header("Cache-Control", "no-cache");
    response.set_chunked_content_provider("text/event-stream",
                                          [exchange, connection](size_t, httplib::DataSink& sink) {
                                            return Continue(*exchange, connection, sink);
                                          });
    return;
  }
  const absl::Status status = Collect(*exchange, connection);
  if (!status.ok()) {
    AnswerError(status, response);
    return;
  }
  response.set_content(OpenAiResponseJson(exchange->answer, exchange->request, exchange->choices,
                                          *core.model.tokenizer),
                       kJson);
}

}  // namespace thinwire
