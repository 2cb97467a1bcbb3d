#include "runtime/server/grpc/stream_reactor.h"

#include <grpcpp/server_context.h>

#include <atomic>
#include <chrono>
#include <utility>

#include "kernels/core/status_macros.h"
#include "runtime/server/grpc/messages.h"

namespace thinwire {
namespace {

absl::StatusOr<std::shared_ptr<Generation>> Submit(const grpc::CallbackServerContext& context,
                                                   const v1::GenerateRequest& message,
                                                   ServingCore& core) {
  TW_RETURN_IF_ERROR(CheckToken(context, core.data_token));
  TW_RETURN_IF_ERROR(core.loop.CheckRoom());
  TW_RETURN_IF_ERROR(core.CheckRate(ClientOf(context, core)));
  absl::StatusOr<GenerationRequest> request = FromMessage(message, core);
  if (!request.ok()) {
    core.loop.CountRejected(request.status());
    return request.status();
  }
  request->deadline = DeadlineOf(context);
  return core.loop.Submit(*std::move(request));
}

// What both kinds of answer do. Owns itself until gRPC is done; a wake-up that comes later finds
// `closed_`.
class Answer {
 public:
  Answer(grpc::CallbackServerContext* context, ServingCore* core, Notifier* notifier)
      : context_(context), core_(core), notifier_(notifier) {
    ++core_->num_calls;
  }
  virtual ~Answer() { --core_->num_calls; }

 protected:
  // Something may be there to take, or a write is done.
  virtual void Pump() = 0;

  // Arms the next Pump. `self` keeps this object alive.
  void Arm(std::shared_ptr<Answer> self) {
    Notifier* notifier = notifier_;
    generation_->WhenReady([notifier, self = std::move(self)]() mutable {
      notifier->Post([self = std::move(self)] { self->Pump(); });
    });
  }

  void GiveUpWhenAbandoned(const std::weak_ptr<Answer>& self) {
    generation_->WhenAbandoned([self] {
      const std::shared_ptr<Answer> answer = self.lock();
      if (answer == nullptr) return;
      const std::lock_guard lock(answer->mutex_);
      if (!answer->gone_) answer->context_->TryCancel();
    });
  }

  void ClientLeft() {
    if (generation_ != nullptr) {
      core_->loop.Cancel(*generation_, absl::CancelledError("the client left"));
    }
  }

  void Forget() {
    const std::lock_guard lock(mutex_);
    gone_ = true;
  }

  grpc::CallbackServerContext* const context_;
  ServingCore* const core_;
  Notifier* const notifier_;
  std::shared_ptr<Generation> generation_;
  std::mutex mutex_;  // guards what follows, and what derived classes say
  bool closed_ = false;
  bool gone_ = false;  // the context is
};

class StreamAnswer final : public grpc::ServerWriteReactor<v1::GenerateStreamResponse>,
                           public Answer,
                           public std::enable_shared_from_this<StreamAnswer> {
 public:
  using Answer::Answer;

  void Begin(const v1::GenerateRequest& message) {
    self_ = shared_from_this();
    auto generation = Submit(*context_, message, *core_);
    if (!generation.ok()) {
      Finish(ToGrpcStatus(generation.status(), message.request_id()));
      return;
    }
    generation_ = *std::move(generation);
    started_ = true;
    if (context_->IsCancelled()) ClientLeft();
    StartSendInitialMetadata();
    GiveUpWhenAbandoned(weak_from_this());
    Pump();
  }

  void OnWriteDone(bool ok) override {
    {
      const std::lock_guard lock(mutex_);
      writing_ = false;
    }
    if (!ok) ClientLeft();
    Pump();
  }

  void OnCancel() override {
    if (started_) ClientLeft();
  }

  void OnDone() override {
    Forget();
    self_.reset();
  }

 private:
  void Pump() override {
    {
      const std::lock_guard lock(mutex_);
      if (writing_ || closed_) return;
      GenerationDelta delta = generation_->Take();
      if (!delta.empty()) {
        Send(std::move(delta));
        return;
      }
    }
    Arm(shared_from_this());
  }

  void Send(GenerationDelta delta) {
    num_sent_ += static_cast<int64_t>(delta.token_ids.size());
    event_.Clear();
    event_.set_request_id(generation_->id());
    event_.set_sequence_number(next_event_++);
    event_.mutable_token_ids()->Add(delta.token_ids.begin(), delta.token_ids.end());
    event_.set_text(std::move(delta.text));
    if (!delta.end.has_value()) {
      writing_ = true;
      StartWrite(&event_);
      return;
    }
    closed_ = true;
    const absl::Status& status = delta.end->status;
    if (status.ok()) *event_.mutable_completion() = ToMessage(*delta.end);
    const grpc::Status last = ToGrpcStatus(status, generation_->id(), num_sent_);
    if (!status.ok() && event_.text().empty() && event_.token_ids().empty()) {
      Finish(last);
    } else {
      StartWriteAndFinish(&event_, grpc::WriteOptions(), last);
    }
  }

  std::shared_ptr<StreamAnswer> self_;
  std::atomic<bool> started_ = false;
  bool writing_ = false;
  v1::GenerateStreamResponse event_;
  int64_t next_event_ = 0;
  int64_t num_sent_ = 0;
};

class OneAnswer final : public grpc::ServerUnaryReactor,
                        public Answer,
                        public std::enable_shared_from_this<OneAnswer> {
 public:
  OneAnswer(grpc::CallbackServerContext* context, v1::GenerateResponse* response, ServingCore* core,
            Notifier* notifier)
      : Answer(context, core, notifier), response_(response) {}

  void Begin(const v1::GenerateRequest& message) {
    self_ = shared_from_this();
    auto generation = Submit(*context_, message, *core_);
    if (!generation.ok()) {
      Finish(ToGrpcStatus(generation.status(), message.request_id()));
      return;
    }
    generation_ = *std::move(generation);
    started_ = true;
    if (context_->IsCancelled()) ClientLeft();
    response_->set_request_id(generation_->id());
    Pump();
  }

  void OnCancel() override {
    if (started_) ClientLeft();
  }

  void OnDone() override {
    Forget();
    self_.reset();
  }

 private:
  void Pump() override {
    {
      const std::lock_guard lock(mutex_);
      if (closed_) return;
      const GenerationDelta delta = generation_->Take();
      response_->mutable_text()->append(delta.text);
      response_->mutable_token_ids()->Add(delta.token_ids.begin(), delta.token_ids.end());
      if (delta.end.has_value()) {
        closed_ = true;
        *response_->mutable_completion() = ToMessage(*delta.end);
        Finish(ToGrpcStatus(delta.end->status, generation_->id(), response_->token_ids_size()));
        return;
      }
    }
    Arm(shared_from_this());
  }

  std::shared_ptr<OneAnswer> self_;
  std::atomic<bool> started_ = false;
  v1::GenerateResponse* const response_;
};

}  // namespace

ServingClock::time_point DeadlineOf(const grpc::CallbackServerContext& context) {
  const std::chrono::system_clock::time_point deadline = context.deadline();
  const std::chrono::system_clock::time_point now = std::chrono::system_clock::now();
  if (deadline > now + std::chrono::hours(24 * 365)) return ServingClock::time_point::max();
  return ServingClock::now() + std::chrono::duration_cast<ServingClock::duration>(deadline - now);
}

grpc::ServerWriteReactor<v1::GenerateStreamResponse>* AnswerStream(
    grpc::CallbackServerContext* context, const v1::GenerateRequest* request, ServingCore* core,
    Notifier* notifier) {
  const auto answer = std::make_shared<StreamAnswer>(context, core, notifier);
  answer->Begin(*request);
  return answer.get();
}

grpc::ServerUnaryReactor* AnswerOnce(grpc::CallbackServerContext* context,
                                     const v1::GenerateRequest* request,
                                     v1::GenerateResponse* response, ServingCore* core,
                                     Notifier* notifier) {
  const auto answer = std::make_shared<OneAnswer>(context, response, core, notifier);
  answer->Begin(*request);
  return answer.get();
}

}  // namespace thinwire
