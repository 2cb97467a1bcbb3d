#include "runtime/server/grpc/messages.h"

#include <algorithm>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "kernels/core/status_macros.h"
#include "proto/google/rpc/error_details.pb.h"
#include "proto/google/rpc/status.pb.h"
#include "runtime/server/bearer_token.h"
#include "runtime/server/retry_hint.h"

namespace thinwire {
namespace {

constexpr size_t kMaxIdBytes = 256;
constexpr size_t kMaxSaltBytes = 256;
constexpr int kMaxStops = 64;

v1::FinishReason ToMessage(EndReason reason) {
  switch (reason) {
    case EndReason::kStop:
      return v1::FINISH_REASON_STOP;
    case EndReason::kStopString:
      return v1::FINISH_REASON_STOP_STRING;
    case EndReason::kLength:
      return v1::FINISH_REASON_LENGTH;
    case EndReason::kCancelled:
      return v1::FINISH_REASON_CANCELLED;
    case EndReason::kDeadline:
      return v1::FINISH_REASON_DEADLINE;
    case EndReason::kError:
      return v1::FINISH_REASON_ERROR;
  }
  return v1::FINISH_REASON_UNSPECIFIED;
}

int64_t Nanoseconds(double milliseconds) { return static_cast<int64_t>(milliseconds * 1e6); }

}  // namespace

grpc::Status ToGrpcStatus(const absl::Status& status, absl::string_view request_id,
                          int64_t tokens_emitted) {
  if (status.ok()) return grpc::Status::OK;
  const auto code = static_cast<grpc::StatusCode>(status.code());
  google::rpc::Status details;
  details.set_code(static_cast<int>(code));
  details.set_message(std::string(status.message()));
  google::rpc::ErrorInfo info;
  info.set_reason(absl::StatusCodeToString(status.code()));
  info.set_domain("thinwire");
  (*info.mutable_metadata())["retryable"] = IsRetryable(status) ? "true" : "false";
  (*info.mutable_metadata())["tokens_emitted"] = absl::StrCat(tokens_emitted);
  if (!request_id.empty()) (*info.mutable_metadata())["request_id"] = std::string(request_id);
  details.add_details()->PackFrom(info);
  if (const auto delay = RetryHint(status)) {
    google::rpc::RetryInfo retry;
    const int64_t milliseconds = absl::ToInt64Milliseconds(*delay);
    retry.mutable_retry_delay()->set_seconds(milliseconds / 1000);
    retry.mutable_retry_delay()->set_nanos(static_cast<int32_t>(milliseconds % 1000 * 1000000));
    details.add_details()->PackFrom(retry);
  }
  return grpc::Status(code, details.message(), details.SerializeAsString());
}

absl::StatusOr<GenerationRequest> FromMessage(const v1::GenerateRequest& message,
                                              ServingCore& core) {
  GenerationRequest request;
  if (message.has_model() && message.model() != core.model.name) {
    return absl::NotFoundError(
        absl::StrCat("model '", message.model(), "'; this server has '", core.model.name, "'"));
  }
  if (message.request_id().size() > kMaxIdBytes) {
    return absl::InvalidArgumentError(absl::StrCat("request_id of ", message.request_id().size(),
                                                   " bytes; at most ", kMaxIdBytes));
  }
  request.id = message.request_id().empty() ? core.ids.Next("gen") : message.request_id();
  switch (message.input_case()) {
    case v1::GenerateRequest::kPrompt: {
      TW_ASSIGN_OR_RETURN(request.prompt_ids, core.model.tokenizer->Encode(
                                                  message.prompt(), /*add_special_tokens=*/true));
      break;
    }
    case v1::GenerateRequest::kTokenIds:
      request.prompt_ids.assign(message.token_ids().ids().begin(), message.token_ids().ids().end());
      break;
    case v1::GenerateRequest::INPUT_NOT_SET:
      return absl::InvalidArgumentError("expected one of prompt and token_ids, found neither");
  }
  const v1::SamplingOptions& sampling = message.sampling();
  request.params.sampling.temperature = sampling.temperature();
  request.params.sampling.top_k = sampling.top_k();
  request.params.sampling.seed = sampling.seed();
  if (sampling.has_top_p()) request.params.sampling.top_p = sampling.top_p();
  const v1::StoppingOptions& stopping = message.stopping();
  if (stopping.has_max_tokens()) request.params.max_tokens = stopping.max_tokens();
  if (stopping.stop_size() > kMaxStops || stopping.stop_token_ids_size() > kMaxStops) {
    return absl::InvalidArgumentError(
        absl::StrCat(std::max(stopping.stop_size(), stopping.stop_token_ids_size()),
                     " stops; at most ", kMaxStops));
  }
  request.params.stop.assign(stopping.stop().begin(), stopping.stop().end());
  request.params.ignore_eos = stopping.ignore_eos();
  request.stop_token_ids.assign(stopping.stop_token_ids().begin(), stopping.stop_token_ids().end());
  request.priority = message.priority();
  if (message.cache_salt().size() > kMaxSaltBytes) {
    return absl::InvalidArgumentError(absl::StrCat("cache_salt of ", message.cache_salt().size(),
                                                   " bytes; at most ", kMaxSaltBytes));
  }
  request.share_salt = message.cache_salt();
  request.want_log_probs = message.log_probs();
  request.num_top_log_probs = message.top_log_probs();
  return request;
}

std::string ClientOf(const grpc::CallbackServerContext& context, const ServingCore& core) {
  if (core.client_header.empty()) {
    const std::string peer = context.peer();
    return peer.substr(0, peer.rfind(':'));
  }
  const auto& metadata = context.client_metadata();
  const auto it = metadata.find(core.client_header);
  return it == metadata.end() ? "" : std::string(it->second.data(), it->second.size());
}

absl::Status CheckToken(const grpc::CallbackServerContext& context, const std::string& token) {
  const auto& metadata = context.client_metadata();
  const auto it = metadata.find("authorization");
  const grpc::string_ref given = it == metadata.end() ? grpc::string_ref() : it->second;
  return CheckBearerToken(absl::string_view(given.data(), given.size()), token);
}

v1::Completion ToMessage(const GenerationEnd& end) {
  v1::Completion message;
  message.set_finish_reason(ToMessage(end.reason));
  message.mutable_usage()->set_prompt_tokens(end.num_prompt_tokens);
  message.mutable_usage()->set_completion_tokens(end.num_generated_tokens);
  message.mutable_timing()->set_queue_ns(Nanoseconds(end.queue_ms));
  message.mutable_timing()->set_prefill_ns(Nanoseconds(end.prefill_ms));
  message.mutable_timing()->set_decode_ns(Nanoseconds(end.decode_ms));
  message.mutable_log_probs()->Add(end.log_probs.begin(), end.log_probs.end());
  for (size_t i = 0; i < end.top_log_probs.size(); ++i) {
    // As many for each generated token.
    const size_t num_top = end.top_log_probs.size() / end.log_probs.size();
    v1::TopLogProbs* const top = i % num_top == 0
                                     ? message.add_top_log_probs()
                                     : message.mutable_top_log_probs(static_cast<int>(i / num_top));
    top->add_token_ids(end.top_log_probs[i].token_id);
    top->add_log_probs(end.top_log_probs[i].log_prob);
  }
  return message;
}

v1::ServerState ToMessage(ServingState state) {
  switch (state) {
    case ServingState::kStarting:
      return v1::SERVER_STATE_STARTING;
    case ServingState::kReady:
      return v1::SERVER_STATE_READY;
    case ServingState::kDraining:
      return v1::SERVER_STATE_DRAINING;
    case ServingState::kFailed:
      return v1::SERVER_STATE_FAILED;
    case ServingState::kStopped:
      return v1::SERVER_STATE_STOPPED;
  }
  return v1::SERVER_STATE_UNSPECIFIED;
}

v1::Load ToMessage(const ServingLoad& load) {
  v1::Load message;
  message.set_state(ToMessage(load.state));
  message.set_running_requests(load.num_running);
  message.set_queued_requests(load.num_queued);
  message.set_queued_tokens(load.num_queued_tokens);
  message.set_max_running_requests(load.max_running);
  message.set_kv_pages(load.kv_pages);
  message.set_kv_pages_used(load.kv_pages_used);
  message.set_page_tokens(load.page_size);
  message.set_tokens_per_second(load.tokens_per_second);
  message.set_preemptions(load.totals.engine.num_preemptions);
  message.set_progress(load.progress);
  return message;
}

}  // namespace thinwire
