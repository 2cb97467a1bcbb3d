#include "runtime/batch/text_batch.h"

#include <algorithm>
#include <deque>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/core/status_macros.h"
#include "runtime/batch/stop_text.h"
#include "runtime/tokenizer/stream_decoder.h"

namespace thinwire {
namespace {

// One prompt on its way through the engine.
struct Job {
  explicit Job(const Tokenizer& tokenizer) : decoder(tokenizer, /*skip_special_tokens=*/true) {}

  StreamDecoder decoder;
  StopText stop{{}};
  int64_t request_id = -1;  // the engine's
  bool done = false;
  TextResult result;
};

void Fail(Job& job, const absl::Status& status) {
  job.result.status = status;
  job.result.finish_reason = "error";
  job.done = true;
}

class TextBatch {
 public:
  TextBatch(Engine& engine, const Tokenizer& tokenizer, const TextBatchCallbacks& callbacks)
      : engine_(engine), tokenizer_(tokenizer), callbacks_(callbacks) {}

  absl::Status Run(const PromptSource& source) {
    // Enough waiting requests that the scheduler never runs dry.
    const int64_t max_live =
        2 * engine_.rank().options().max_seqs * engine_.rank().layout().num_groups();
    bool exhausted = false;
    while (true) {
      while (!exhausted && callback_status_.ok() && engine_.num_live() < max_live) {
        std::optional<PromptFile::Line> line = source();
        if (line.has_value()) {
          Start(*std::move(line));
          Emit();  // a line that cannot run is answered at once
        } else {
          exhausted = true;
        }
      }
      Emit();
      if (!callback_status_.ok()) return CancelAll();
      if (!engine_.HasWork() && exhausted) return absl::OkStatus();
      TW_RETURN_IF_ERROR(engine_.Step());
    }
  }

 private:
  void Start(PromptFile::Line line) {
    jobs_.push_back(std::make_unique<Job>(tokenizer_));
    Job& job = *jobs_.back();
    job.result.id = line.id;
    if (!line.prompt.ok()) {
      Fail(job, line.prompt.status());
      return;
    }
    const absl::Status status = Submit(*std::move(line.prompt), job);
    if (!status.ok()) Fail(job, Annotate(status, absl::StrCat("prompt '", job.result.id, "'")));
  }

  absl::Status Submit(Prompt prompt, Job& job) {
    Request request;
    if (prompt.text.has_value()) {
      TW_ASSIGN_OR_RETURN(request.prompt_ids,
                          tokenizer_.Encode(*prompt.text, /*add_special_tokens=*/true));
    } else {
      request.prompt_ids = std::move(prompt.token_ids);
    }
    job.result.num_prompt_tokens = static_cast<int64_t>(request.prompt_ids.size());
    job.stop = StopText(std::move(prompt.params.stop));
    request.max_new_tokens = prompt.params.max_tokens;
    request.sampling = prompt.params.sampling;
    if (!prompt.params.ignore_eos) request.stop_token_ids = engine_.rank().config().eos_token_ids;
    request.on_token = [this, &job](int32_t token_id) {
      return Take(job, job.decoder.Push(token_id));
    };
    request.on_done = [this, &job](Completion completion) {
      Take(job, job.decoder.Flush());
      Show(job, job.stop.Flush());
      job.result.token_ids = std::move(completion.token_ids);
      job.result.finish_reason = std::string(
          FinishReasonName(job.stop.stopped() ? FinishReason::kStop : completion.finish_reason));
      job.result.ttft_ms = completion.ttft_ms;
      job.done = true;
    };
    TW_ASSIGN_OR_RETURN(job.request_id, engine_.Submit(std::move(request)));
    return absl::OkStatus();
  }

  // Takes decoded text; false when a stop string has ended it, or nobody wants it any more.
  bool Take(Job& job, const std::string& piece) {
    Show(job, job.stop.Push(piece));
    return !job.stop.stopped() && callback_status_.ok();
  }

  void Show(Job& job, const std::string& text) {
    if (text.empty()) return;
    job.result.text += text;
    if (callbacks_.on_text != nullptr) Note(callbacks_.on_text(job.result.id, text));
  }

  void Emit() {
    while (callback_status_.ok() && !jobs_.empty() && jobs_.front()->done) {
      Note(callbacks_.on_result(jobs_.front()->result));
      jobs_.pop_front();
    }
  }

  void Note(const absl::Status& status) { callback_status_.Update(status); }

  // Leaves the engine idle.
  absl::Status CancelAll() {
    for (const std::unique_ptr<Job>& job : jobs_) {
      if (!job->done) engine_.Cancel(job->request_id);
    }
    while (engine_.HasWork()) TW_RETURN_IF_ERROR(engine_.Step());
    return callback_status_;
  }

  Engine& engine_;
  const Tokenizer& tokenizer_;
  const TextBatchCallbacks& callbacks_;
  std::deque<std::unique_ptr<Job>> jobs_;  // in the order of the source
  absl::Status callback_status_;           // the first error of a callback
};

}  // namespace

absl::Status RunTextBatch(Engine& engine, const Tokenizer& tokenizer, const PromptSource& source,
                          const TextBatchCallbacks& callbacks) {
  return TextBatch(engine, tokenizer, callbacks).Run(source);
}

}  // namespace thinwire
