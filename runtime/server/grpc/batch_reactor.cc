#include "runtime/server/grpc/batch_reactor.h"

#include <grpcpp/server_context.h>

#include <deque>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_set.h"
#include "runtime/server/grpc/messages.h"
#include "runtime/server/grpc/stream_reactor.h"
#include "runtime/server/retry_hint.h"

namespace thinwire {
namespace {

constexpr size_t kMaxLive = 1024;

struct Item {
  std::string tag;
  std::shared_ptr<Generation> generation;  // null: refused
  absl::Status refused;
  int64_t next_event = 0;
};

class BatchAnswer final
    : public grpc::ServerBidiReactor<v1::GenerateBatchRequest, v1::GenerateBatchResponse>,
      public std::enable_shared_from_this<BatchAnswer> {
 public:
  BatchAnswer(grpc::CallbackServerContext* context, ServingCore* core, Notifier* notifier)
      : context_(context), core_(core), notifier_(notifier) {
    ++core_->num_calls;
  }
  ~BatchAnswer() override { --core_->num_calls; }

  void Begin() {
    self_ = shared_from_this();
    const std::lock_guard lock(mutex_);
    const absl::Status allowed = CheckToken(*context_, core_->data_token);
    if (!allowed.ok()) {
      finished_ = true;
      Finish(ToGrpcStatus(allowed));
      return;
    }
    reading_ = true;
    StartRead(&request_);
  }

  void OnReadDone(bool ok) override {
    std::shared_ptr<Item> item;
    if (ok) {
      item = std::make_shared<Item>();
      item->tag = request_.tag();
      item->refused = core_->loop.CheckRoom();
      if (item->refused.ok()) item->refused = core_->CheckRate(ClientOf(*context_, *core_));
    }
    if (ok && item->refused.ok()) {
      absl::StatusOr<GenerationRequest> request = FromMessage(request_.request(), *core_);
      if (request.ok()) {
        request->deadline = DeadlineOf(*context_);
        auto generation = core_->loop.Submit(*std::move(request));
        if (generation.ok()) {
          item->generation = *std::move(generation);
        } else {
          item->refused = generation.status();
        }
      } else {
        item->refused = request.status();
        core_->loop.CountRejected(item->refused);
      }
    }
    const bool runs = item != nullptr && item->generation != nullptr;
    {
      const std::lock_guard lock(mutex_);
      reading_ = false;
      no_more_ = !ok;
      if (item != nullptr) {
        live_.insert(item);
        if (!runs) ready_.push_back(item);
        if (left_ && runs) LeaveItem(*item);
      }
      Move();
    }
    if (!runs) return;
    item->generation->WhenAbandoned([weak = weak_from_this()] {
      const std::shared_ptr<BatchAnswer> answer = weak.lock();
      if (answer == nullptr) return;
      const std::lock_guard lock(answer->mutex_);
      if (!answer->gone_) answer->context_->TryCancel();
    });
    Arm(std::move(item));
  }

  void OnWriteDone(bool ok) override {
    std::shared_ptr<Item> again;
    {
      const std::lock_guard lock(mutex_);
      if (!ok) Leave();
      again = std::exchange(writing_, nullptr);
      if (response_.has_error() || response_.event().has_completion()) {
        live_.erase(again);
        again = nullptr;
      }
      Move();
    }
    if (again != nullptr) Arm(std::move(again));
  }

  void OnCancel() override {
    const std::lock_guard lock(mutex_);
    Leave();
  }

  void OnDone() override {
    {
      const std::lock_guard lock(mutex_);
      gone_ = true;
    }
    self_.reset();
  }

 private:
  void Arm(std::shared_ptr<Item> item) {
    Generation& generation = *item->generation;
    generation.WhenReady(
        [notifier = notifier_, self = shared_from_this(), item = std::move(item)]() mutable {
          notifier->Post([self = std::move(self), item = std::move(item)] {
            const std::lock_guard lock(self->mutex_);
            self->ready_.push_back(item);
            self->Move();
          });
        });
  }

  // The following are called with the lock held.

  // Does what can be done now: writes, reads, or ends the call.
  void Move() {
    if (finished_) return;
    if (!reading_ && !no_more_ && !left_ && live_.size() < kMaxLive) {
      reading_ = true;
      StartRead(&request_);
    }
    while (writing_ == nullptr && !ready_.empty()) {
      std::shared_ptr<Item> item = std::move(ready_.front());
      ready_.pop_front();
      Write(std::move(item));
    }
    if (!reading_ && (no_more_ || left_) && live_.empty() && writing_ == nullptr) {
      finished_ = true;
      Finish(left_ ? grpc::Status(grpc::StatusCode::CANCELLED, "the client left")
                   : grpc::Status::OK);
    }
  }

  void Write(std::shared_ptr<Item> item) {
    response_.Clear();
    response_.set_tag(item->tag);
    absl::Status failed = item->refused;
    if (item->generation != nullptr) {
      GenerationDelta delta = item->generation->Take();
      v1::GenerateStreamResponse& event = *response_.mutable_event();
      event.set_request_id(item->generation->id());
      event.set_sequence_number(item->next_event++);
      event.mutable_token_ids()->Add(delta.token_ids.begin(), delta.token_ids.end());
      event.set_text(std::move(delta.text));
      if (delta.end.has_value()) {
        *event.mutable_completion() = ToMessage(*delta.end);
        failed = delta.end->status;
      }
    }
    if (!failed.ok()) {
      v1::BatchError& error = *response_.mutable_error();
      error.set_code(static_cast<int>(failed.code()));
      error.set_message(std::string(failed.message()));
      error.set_retryable(IsRetryable(failed));
    }
    if (left_) {  // nobody reads it
      if (response_.has_error() || response_.event().has_completion()) {
        live_.erase(item);
      } else {
        notifier_->Post([self = shared_from_this(), item] { self->Arm(item); });  // for its end
      }
      return;
    }
    writing_ = std::move(item);
    StartWrite(&response_);
  }

  void Leave() {
    if (std::exchange(left_, true)) return;
    for (const std::shared_ptr<Item>& item : live_) {
      if (item->generation != nullptr) LeaveItem(*item);
    }
  }

  void LeaveItem(const Item& item) {
    core_->loop.Cancel(*item.generation, absl::CancelledError("the client left"));
  }

  grpc::CallbackServerContext* const context_;
  ServingCore* const core_;
  Notifier* const notifier_;
  std::shared_ptr<BatchAnswer> self_;
  std::mutex mutex_;  // guards what follows
  v1::GenerateBatchRequest request_;
  v1::GenerateBatchResponse response_;
  absl::flat_hash_set<std::shared_ptr<Item>> live_;
  std::deque<std::shared_ptr<Item>> ready_;
  std::shared_ptr<Item> writing_;  // null: no write is on its way
  bool reading_ = false;
  bool no_more_ = false;
  bool left_ = false;
  bool finished_ = false;
  bool gone_ = false;
};

}  // namespace

grpc::ServerBidiReactor<v1::GenerateBatchRequest, v1::GenerateBatchResponse>* AnswerBatch(
    grpc::CallbackServerContext* context, ServingCore* core, Notifier* notifier) {
  const auto answer = std::make_shared<BatchAnswer>(context, core, notifier);
  answer->Begin();
  return answer.get();
}

}  // namespace thinwire
