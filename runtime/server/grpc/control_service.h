// thinwire.v1.Control. Private to grpc_server.cc.
#pragma once

#include "proto/thinwire/v1/control.grpc.pb.h"
#include "runtime/server/serving_core.h"

namespace thinwire {

class ControlService final : public v1::Control::CallbackService {
 public:
  explicit ControlService(ServingCore* core) : core_(core) {}

  grpc::ServerUnaryReactor* GetServerInfo(grpc::CallbackServerContext* context,
                                          const v1::GetServerInfoRequest* request,
                                          v1::GetServerInfoResponse* response) override;
  grpc::ServerUnaryReactor* GetLoad(grpc::CallbackServerContext* context,
                                    const v1::GetLoadRequest* request,
                                    v1::GetLoadResponse* response) override;
  grpc::ServerWriteReactor<v1::WatchLoadResponse>* WatchLoad(
      grpc::CallbackServerContext* context, const v1::WatchLoadRequest* request) override;
  grpc::ServerUnaryReactor* Abort(grpc::CallbackServerContext* context,
                                  const v1::AbortRequest* request,
                                  v1::AbortResponse* response) override;
  grpc::ServerWriteReactor<v1::DrainResponse>* Drain(grpc::CallbackServerContext* context,
                                                     const v1::DrainRequest* request) override;
  grpc::ServerUnaryReactor* RankStatus(grpc::CallbackServerContext* context,
                                       const v1::RankStatusRequest* request,
                                       v1::RankStatusResponse* response) override;

 private:
  ServingCore* const core_;
};

}  // namespace thinwire
