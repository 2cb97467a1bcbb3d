#include "runtime/server/http/openai_handlers.h"

#include <httplib.h>

#include <algorithm>
#include <chrono>
#include <memory>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "kernels/core/status_macros.h"
#include "runtime/server/generation_set.h"
#include "runtime/server/openai/openai_request.h"
#include "runtime/server/openai/openai_response.h"
#include "runtime/server/retry_hint.h"

namespace thinwire {
namespace {

constexpr char kJson[] = "application/json";
// What a client waits for comes by itself; this is how long one wait for it may be.
constexpr std::chrono::seconds kWait(10);

// One HTTP request on its way: all its choices.
struct Exchange {
  Exchange(const HttpContext& context, OpenAiRequest request)
      : core(context.core), hang_ups(context.hang_ups), request(std::move(request)) {
    ++core->num_exchanges;
  }
  Exchange(const Exchange&) = delete;
  ~Exchange() {
    hang_ups->Forget(watch);
    ClientLeft();
    --core->num_exchanges;
  }

  // Ends the request with its client.
  void Watch(int socket) {
    if (socket >= 0) watch = hang_ups->Watch(socket, [this] { ClientLeft(); });
  }

  void ClientLeft() { Cancel(absl::CancelledError("the client left")); }

  // Ends what has not ended.
  void Cancel(const absl::Status& why) {
    if (set == nullptr) return;
    for (const auto& generation : set->generations()) core->loop.Cancel(*generation, why);
  }

  ServingCore* const core;
  HangUpWatch* const hang_ups;
  int64_t watch = 0;
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
                                                 const HttpContext& context) {
  ServingCore& core = *context.core;
  TW_RETURN_IF_ERROR(core.loop.CheckRoom());
  const std::string client =
      core.client_header.empty() ? http.remote_addr : http.get_header_value(core.client_header);
  TW_RETURN_IF_ERROR(core.CheckRate(client));
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
  auto exchange = std::make_shared<Exchange>(context, *std::move(request));
  exchange->answer = {id.empty() ? core.ids.Next(chat ? "chatcmpl" : "cmpl") : id, core.model.name,
                      absl::ToUnixSeconds(absl::Now()), chat};
  std::vector<std::shared_ptr<Generation>> generations;
  const size_t count = exchange->request.generations.size();
  core.ChargeRate(client, static_cast<int64_t>(count));
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
absl::Status Collect(Exchange& exchange) {
  absl::Status error;
  while (!exchange.set->ended()) {
    const auto next = exchange.set->Next(ServingClock::now() + kWait);
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
bool Continue(Exchange& exchange, httplib::DataSink& sink) {
  const auto next = exchange.set->Next(ServingClock::now() + kWait);
  if (!next.has_value()) return true;
  const auto& [index, delta] = *next;
  Note(exchange, index, delta);
  std::string events;
  bool done = false;
  if (delta.end.has_value() && !delta.end->status.ok()) {
    events = OpenAiErrorChunk(delta.end->status);
    exchange.Cancel(delta.end->status);
    done = true;
  } else {
    events = OpenAiChunk(exchange.answer, exchange.request, static_cast<int64_t>(index),
                         exchange.choices[index], delta, !exchange.begun[index],
                         *exchange.core->model.tokenizer);
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
    exchange.ClientLeft();
    return false;
  }
  if (done) sink.done();
  return true;
}

}  // namespace

int64_t RetryAfterSeconds(const absl::Status& status) {
  const absl::Duration delay = RetryHint(status).value_or(absl::ZeroDuration());
  return std::max<int64_t>((absl::ToInt64Milliseconds(delay) + 999) / 1000, 1);
}

void AnswerError(const absl::Status& status, httplib::Response& response) {
  response.status = HttpStatusOf(status);
  if (RetryHint(status).has_value()) {
    response.set_header("Retry-After", absl::StrCat(RetryAfterSeconds(status)));
  }
  response.set_content(OpenAiErrorJson(status), kJson);
}

void AnswerOpenAi(const httplib::Request& http, bool chat, const HttpContext& context,
                  httplib::Response& response) {
  auto submitted = Submit(http, chat, context);
  if (!submitted.ok()) {
    AnswerError(submitted.status(), response);
    return;
  }
  const std::shared_ptr<Exchange> exchange = *std::move(submitted);
  exchange->Watch(context.sockets->Find(http.remote_addr, http.remote_port));
  response.set_header("X-Request-Id", exchange->answer.id);
  if (exchange->request.stream) {
    response.set_header("Cache-Control", "no-cache");
    response.set_chunked_content_provider(
        "text/event-stream",
        [exchange](size_t, httplib::DataSink& sink) { return Continue(*exchange, sink); });
    return;
  }
  const absl::Status status = Collect(*exchange);
  if (!status.ok()) {
    AnswerError(status, response);
    return;
  }
  response.set_content(OpenAiResponseJson(exchange->answer, exchange->request, exchange->choices,
                                          *context.core->model.tokenizer),
                       kJson);
}

}  // namespace thinwire
