#include "runtime/server/grpc/inference_service.h"

#include <string>
#include <vector>

#include "runtime/server/grpc/batch_reactor.h"
#include "runtime/server/grpc/messages.h"
#include "runtime/server/grpc/stream_reactor.h"

namespace thinwire {
namespace {

grpc::ServerUnaryReactor* Reply(grpc::CallbackServerContext* context, const absl::Status& status) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  reactor->Finish(ToGrpcStatus(status));
  return reactor;
}

}  // namespace

grpc::ServerUnaryReactor* InferenceService::Generate(grpc::CallbackServerContext* context,
                                                     const v1::GenerateRequest* request,
                                                     v1::GenerateResponse* response) {
  return AnswerOnce(context, request, response, core_, notifier_);
}

grpc::ServerWriteReactor<v1::GenerateStreamResponse>* InferenceService::GenerateStream(
    grpc::CallbackServerContext* context, const v1::GenerateRequest* request) {
  return AnswerStream(context, request, core_, notifier_);
}

grpc::ServerBidiReactor<v1::GenerateBatchRequest, v1::GenerateBatchResponse>*
InferenceService::GenerateBatch(grpc::CallbackServerContext* context) {
  return AnswerBatch(context, core_, notifier_);
}

grpc::ServerUnaryReactor* InferenceService::Tokenize(grpc::CallbackServerContext* context,
                                                     const v1::TokenizeRequest* request,
                                                     v1::TokenizeResponse* response) {
  const absl::Status allowed = CheckToken(*context, core_->data_token);
  if (!allowed.ok()) return Reply(context, allowed);
  const bool add_special = !request->has_add_special_tokens() || request->add_special_tokens();
  const auto ids = core_->model.tokenizer->Encode(request->text(), add_special);
  if (ids.ok()) response->mutable_token_ids()->Add(ids->begin(), ids->end());
  return Reply(context, ids.status());
}

grpc::ServerUnaryReactor* InferenceService::Detokenize(grpc::CallbackServerContext* context,
                                                       const v1::DetokenizeRequest* request,
                                                       v1::DetokenizeResponse* response) {
  const absl::Status allowed = CheckToken(*context, core_->data_token);
  if (!allowed.ok()) return Reply(context, allowed);
  const std::vector<int32_t> ids(request->token_ids().begin(), request->token_ids().end());
  const bool skip = !request->has_skip_special_tokens() || request->skip_special_tokens();
  response->set_text(core_->model.tokenizer->Decode(ids, skip));
  return Reply(context, absl::OkStatus());
}

grpc::ServerUnaryReactor* InferenceService::GetModelInfo(grpc::CallbackServerContext* context,
                                                         const v1::GetModelInfoRequest*,
                                                         v1::GetModelInfoResponse* response) {
  const absl::Status allowed = CheckToken(*context, core_->data_token);
  if (!allowed.ok()) return Reply(context, allowed);
  const ModelConfig& config = core_->model.config;
  response->set_model(core_->model.name);
  response->set_architecture(config.architecture);
  response->set_max_context_tokens(config.max_positions);
  response->set_vocab_size(config.vocab);
  response->mutable_eos_token_ids()->Add(config.eos_token_ids.begin(), config.eos_token_ids.end());
  if (config.bos_token_id >= 0) response->set_bos_token_id(config.bos_token_id);
  response->set_num_layers(config.num_layers);
  response->set_hidden_size(config.hidden);
  response->set_has_chat_template(core_->model.chat_template.has_value());
  return Reply(context, absl::OkStatus());
}

}  // namespace thinwire
