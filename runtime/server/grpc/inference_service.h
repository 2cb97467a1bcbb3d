// thinwire.v1.Inference. Private to grpc_server.cc.
#pragma once

#include "proto/thinwire/v1/inference.grpc.pb.h"
#include "runtime/server/grpc/notifier.h"
#include "runtime/server/serving_core.h"

namespace thinwire {

class InferenceService final : public v1::Inference::CallbackService {
 public:
  InferenceService(ServingCore* core, Notifier* notifier) : core_(core), notifier_(notifier) {}

  grpc::ServerUnaryReactor* Generate(grpc::CallbackServerContext* context,
                                     const v1::GenerateRequest* request,
                                     v1::GenerateResponse* response) override;
  grpc::ServerWriteReactor<v1::GenerateStreamResponse>* GenerateStream(
      grpc::CallbackServerContext* context, const v1::GenerateRequest* request) override;
  grpc::ServerBidiReactor<v1::GenerateBatchRequest, v1::GenerateBatchResponse>* GenerateBatch(
      grpc::CallbackServerContext* context) override;
  grpc::ServerUnaryReactor* Tokenize(grpc::CallbackServerContext* context,
                                     const v1::TokenizeRequest* request,
                                     v1::TokenizeResponse* response) override;
  grpc::ServerUnaryReactor* Detokenize(grpc::CallbackServerContext* context,
                                       const v1::DetokenizeRequest* request,
                                       v1::DetokenizeResponse* response) override;
  grpc::ServerUnaryReactor* GetModelInfo(grpc::CallbackServerContext* context,
                                         const v1::GetModelInfoRequest* request,
                                         v1::GetModelInfoResponse* response) override;

 private:
  ServingCore* const core_;
  Notifier* const notifier_;
};

}  // namespace thinwire
