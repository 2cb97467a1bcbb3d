#include "runtime/server/grpc/control_service.h"

#include <grpcpp/alarm.h>

#include <chrono>
#include <functional>
#include <memory>
#include <mutex>
#include <utility>

#include "absl/strings/str_cat.h"
#include "runtime/server/grpc/messages.h"

namespace thinwire {
namespace {

// Sends an event every `interval` until `fill` says that it was the last, or the client leaves.
template <typename Event>
class PeriodicAnswer final : public grpc::ServerWriteReactor<Event>,
                             public std::enable_shared_from_this<PeriodicAnswer<Event>> {
 public:
  PeriodicAnswer(std::chrono::milliseconds interval, std::function<bool(Event&)> fill)
      : interval_(interval), fill_(std::move(fill)) {}

  void Begin() {
    self_ = this->shared_from_this();
    Send();
  }

  void OnWriteDone(bool ok) override {
    const std::lock_guard lock(mutex_);
    if (!ok || left_ || last_) {
      Close();
      return;
    }
    waiting_ = true;
    // A new one each time: the last one's callback may be running still. It keeps what it captured
    // for as long as it lives, hence does not own this.
    alarm_ = std::make_unique<grpc::Alarm>();
    alarm_->Set(std::chrono::system_clock::now() + interval_,
                [weak = this->weak_from_this()](bool) {
                  if (const auto self = weak.lock()) self->Wake();
                });
  }

  void OnCancel() override {
    const std::lock_guard lock(mutex_);
    left_ = true;
    if (waiting_) alarm_->Cancel();
  }

  void OnDone() override { self_.reset(); }

 private:
  void Wake() {
    const std::lock_guard lock(mutex_);
    waiting_ = false;
    if (left_) {
      Close();
    } else {
      Send();
    }
  }

  void Send() {
    event_.Clear();
    last_ = fill_(event_);
    this->StartWrite(&event_);
  }

  void Close() {
    this->Finish(left_ ? grpc::Status(grpc::StatusCode::CANCELLED, "the client left")
                       : grpc::Status::OK);
  }

  const std::chrono::milliseconds interval_;
  const std::function<bool(Event&)> fill_;
  std::shared_ptr<PeriodicAnswer> self_;  // until gRPC is done with the call
  std::mutex mutex_;                      // guards what follows
  std::unique_ptr<grpc::Alarm> alarm_;
  Event event_;
  bool waiting_ = false;
  bool last_ = false;
  bool left_ = false;
};

template <typename Event>
grpc::ServerWriteReactor<Event>* Periodically(std::chrono::milliseconds interval,
                                              std::function<bool(Event&)> fill) {
  const auto answer = std::make_shared<PeriodicAnswer<Event>>(interval, std::move(fill));
  answer->Begin();
  return answer.get();
}

template <typename Event>
grpc::ServerWriteReactor<Event>* Refuse(const absl::Status& why) {
  class Refusal final : public grpc::ServerWriteReactor<Event> {
   public:
    explicit Refusal(const absl::Status& why) { this->Finish(ToGrpcStatus(why)); }
    void OnDone() override { delete this; }
  };
  return new Refusal(why);
}

grpc::ServerUnaryReactor* Reply(grpc::CallbackServerContext* context, const absl::Status& status) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  reactor->Finish(ToGrpcStatus(status));
  return reactor;
}

}  // namespace

grpc::ServerUnaryReactor* ControlService::GetServerInfo(grpc::CallbackServerContext* context,
                                                        const v1::GetServerInfoRequest*,
                                                        v1::GetServerInfoResponse* response) {
  const absl::Status allowed = CheckToken(*context, core_->admin_token);
  if (!allowed.ok()) return Reply(context, allowed);
  const ServingLoad load = core_->loop.load();
  const JobInfo job = core_->job();
  response->set_version(core_->version);
  response->set_model(core_->model.name);
  response->set_layout(job.layout);
  response->set_transport(job.transport);
  response->set_state(ToMessage(load.state));
  for (size_t i = 0; i < job.ranks.size(); ++i) {
    const RankInfo& info = job.ranks[i];
    v1::Rank& rank = *response->add_ranks();
    rank.set_rank(static_cast<int32_t>(i));
    rank.set_host(info.place.host);
    rank.set_process_id(info.place.process_id);
    rank.set_device(info.place.device);
    rank.set_tp_rank(info.tp_rank);
    rank.set_pp_rank(info.pp_rank);
    if (i >= load.memory.size()) continue;
    v1::Memory& memory = *rank.mutable_memory();
    memory.set_weight_bytes(load.memory[i].weight_bytes);
    memory.set_kv_cache_bytes(load.memory[i].kv_cache_bytes);
    memory.set_activation_bytes(load.memory[i].activation_bytes);
    memory.set_peak_resident_bytes(load.memory[i].peak_resident_bytes);
  }
  return Reply(context, absl::OkStatus());
}

grpc::ServerUnaryReactor* ControlService::GetLoad(grpc::CallbackServerContext* context,
                                                  const v1::GetLoadRequest*,
                                                  v1::GetLoadResponse* response) {
  const absl::Status allowed = CheckToken(*context, core_->admin_token);
  if (!allowed.ok()) return Reply(context, allowed);
  *response->mutable_load() = ToMessage(core_->loop.load());
  return Reply(context, absl::OkStatus());
}

grpc::ServerWriteReactor<v1::WatchLoadResponse>* ControlService::WatchLoad(
    grpc::CallbackServerContext* context, const v1::WatchLoadRequest* request) {
  const absl::Status allowed = CheckToken(*context, core_->admin_token);
  if (!allowed.ok()) return Refuse<v1::WatchLoadResponse>(allowed);
  const int64_t interval = request->has_interval_ms() ? request->interval_ms() : 1000;
  if (interval < 10 || interval > 3600000) {
    return Refuse<v1::WatchLoadResponse>(absl::InvalidArgumentError(
        absl::StrCat("interval_ms ", interval, "; expected 10 to 3600000")));
  }
  return Periodically<v1::WatchLoadResponse>(
      std::chrono::milliseconds(interval), [core = core_](v1::WatchLoadResponse& event) {
        *event.mutable_load() = ToMessage(core->loop.load());
        return event.load().state() == v1::SERVER_STATE_STOPPED ||
               event.load().state() == v1::SERVER_STATE_FAILED;
      });
}

grpc::ServerUnaryReactor* ControlService::Abort(grpc::CallbackServerContext* context,
                                                const v1::AbortRequest* request,
                                                v1::AbortResponse* response) {
  const absl::Status allowed = CheckToken(*context, core_->admin_token);
  if (!allowed.ok()) return Reply(context, allowed);
  switch (request->which_case()) {
    case v1::AbortRequest::kRequestId:
      response->set_aborted(core_->loop.Abort(request->request_id(), /*prefix=*/false));
      break;
    case v1::AbortRequest::kRequestIdPrefix:
      response->set_aborted(core_->loop.Abort(request->request_id_prefix(), /*prefix=*/true));
      break;
    case v1::AbortRequest::kAll:
      if (request->all()) response->set_aborted(core_->loop.Abort("", /*prefix=*/true));
      break;
    case v1::AbortRequest::WHICH_NOT_SET:
      return Reply(context, absl::InvalidArgumentError(
                                "expected request_id, request_id_prefix or all, found none"));
  }
  return Reply(context, absl::OkStatus());
}

grpc::ServerWriteReactor<v1::DrainResponse>* ControlService::Drain(
    grpc::CallbackServerContext* context, const v1::DrainRequest* request) {
  const absl::Status allowed = CheckToken(*context, core_->admin_token);
  if (!allowed.ok()) return Refuse<v1::DrainResponse>(allowed);
  absl::Duration timeout = core_->drain_timeout;
  if (request->has_timeout_ms()) {
    if (request->timeout_ms() < 0) {
      return Refuse<v1::DrainResponse>(absl::InvalidArgumentError(
          absl::StrCat("timeout_ms ", request->timeout_ms(), "; expected at least 0")));
    }
    timeout = absl::Milliseconds(request->timeout_ms());
  }
  core_->loop.Drain(timeout);
  return Periodically<v1::DrainResponse>(
      std::chrono::milliseconds(100), [core = core_](v1::DrainResponse& event) {
        const ServingLoad load = core->loop.load();
        event.set_state(ToMessage(load.state));
        event.set_running_requests(load.num_running);
        event.set_queued_requests(load.num_queued);
        return load.state == ServingState::kStopped || load.state == ServingState::kFailed;
      });
}

grpc::ServerUnaryReactor* ControlService::RankStatus(grpc::CallbackServerContext* context,
                                                     const v1::RankStatusRequest*,
                                                     v1::RankStatusResponse* response) {
  const absl::Status allowed = CheckToken(*context, core_->admin_token);
  if (!allowed.ok()) return Reply(context, allowed);
  const ServingLoad load = core_->loop.load();
  const size_t num_ranks = core_->job().ranks.size();
  for (size_t i = 0; i < num_ranks; ++i) {
    v1::RankState& rank = *response->add_ranks();
    rank.set_rank(static_cast<int32_t>(i));
    rank.set_up(load.state == ServingState::kReady || load.state == ServingState::kDraining);
    rank.set_seconds_since_sign_of_life(load.seconds_since_step);
  }
  return Reply(context, absl::OkStatus());
}

}  // namespace thinwire
