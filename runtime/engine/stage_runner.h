// Executes step plans on one rank: page tables, the model's stage, sampling where logits are.
#pragma once

#include <cstdint>
#include <deque>
#include <optional>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/core/event.h"
#include "kernels/core/pinned_buffer.h"
#include "kernels/core/stream.h"
#include "kernels/core/tensor.h"
#include "parallel/wire/wire.h"
#include "runtime/cache/kv_part.h"
#include "runtime/cache/paged_kv_cache.h"
#include "runtime/engine/step_plan.h"
#include "runtime/model/decoder.h"

namespace thinwire {

// Borrows everything it is made of. Thread-compatible.
//
// A token that a step samples stays on the device, too, in its slot's place, so that the next step
// can be launched before anyone has seen it.
class StageRunner {
 public:
  // `max_seqs`: slots that plans may name. `steps_ahead` (0 or 1): launched steps that may run
  // while the next is launched.
  StageRunner(Decoder* decoder, PagedKvCache* cache, Wire* wire, Stream* stream, int64_t max_seqs,
              int64_t steps_ahead);

  // Runs a plan of kind kRun, on a GPU by enqueueing it; collective over the mesh. Waits for all
  // steps before the last `steps_ahead`, as long as the stream's waits last; and for this one,
  // where logits or log probabilities are wanted. Errors also of earlier steps: values that could
  // not be stored, logits without a softmax.
  absl::Status Launch(const StepPlan& plan);

  // tp_rank 0 of the last stage: the result of the oldest step launched that has not been taken.
  // Waits for it; errors as Launch.
  absl::StatusOr<StepResult> TakeResult();
  // Its id.
  int64_t oldest_step() const {
    return results_.empty() ? launched_[oldest_].result.id : results_.front().id;
  }

  // Waits for all steps; errors as Launch. Their results may still be taken.
  absl::Status Settle();

  // Where the first num_tokens tokens of a slot lie, until the next call. Internal where it has not
  // as many.
  absl::StatusOr<KvPlace> PlaceOf(int32_t slot, int64_t num_tokens) const;
  // Gives a slot other pages.
  absl::Status Bind(int32_t slot, std::vector<int32_t> pages);

 private:
  // The batch's arrays, kept from step to step to keep their memory.
  struct BatchArrays {
    std::vector<int32_t> token_ids, positions;
    std::vector<int64_t> slots;
    std::vector<int32_t> token_offsets, context_lens, page_offsets, page_ids;
    std::vector<int32_t> exact_rows_of_seqs, exact_rows_of_tokens;
    std::vector<int32_t> output_tokens;
    bool has_late_tokens = false;
  };

  absl::Status CheckSlot(int32_t slot) const;
  // Internal when the plan contradicts this rank's tables: ranks have lost step.
  absl::Status FillBatch(const StepPlan& plan);
  absl::Status CheckLateToken(const StepPlan& plan, const PlannedSeq& seq, int32_t token_id) const;
  // A token whose logits are wanted: index of its sequence in the plan, and in its sequence's part.
  struct Output {
    size_t seq;
    int64_t token;
  };

  // What a step leaves to look at when it is done, and where the host finds it.
  struct LaunchedStep {
    StepResult result;              // but its tokens
    std::vector<size_t> sampled;    // indexes of sequences with a token to come,
    std::vector<int32_t> slots;     // and their slots
    PinnedBuffer token_ids;         // int32 [max_seqs]: a copy of sampled_
    PinnedBuffer first_wrong;       // int64 [layers]: a copy of the decoder's, on a GPU
    std::optional<Event> finished;  // after the copies
  };

  absl::Status Allocate();
  StepBatch Batch() const;
  // Enqueues the copies that the host will look at.
  absl::Status Finish(LaunchedStep& step);
  absl::Status SettleOldest();
  absl::Status ReadOutputs(const StepPlan& plan, LaunchedStep& step);
  // Takes what the plan wants of `outputs` from their `logits`, [outputs.size(), vocab].
  absl::Status ReadLogits(const StepPlan& plan, absl::Span<const Output> outputs,
                          ConstTensorView logits, StepResult& result);
  absl::Status SampleTokens(const StepPlan& plan, absl::Span<const Output> outputs,
                            ConstTensorView logits, LaunchedStep& step);
  bool samples() const;

  Decoder* decoder_;
  PagedKvCache* cache_;
  Wire* wire_;
  Stream* stream_;
  std::vector<std::vector<int32_t>> page_tables_;  // by slot
  std::vector<bool> has_sampled_;                  // by slot, since it was bound
  BatchArrays batch_;
  Tensor sampled_;                      // int32 [max_seqs]: the last token of each slot
  std::vector<LaunchedStep> launched_;  // steps_ahead + 1, in turns
  size_t oldest_ = 0;                   // in launched_
  size_t num_unsettled_ = 0;            // from there on
  std::deque<StepResult> results_;      // of settled steps where this rank samples
  PinnedBuffer logits_here_;            // [vocab] fp32, from the first logits that are wanted on
  Tensor logits_;                       // [kMaxLogitRows, vocab] fp32 where this rank samples
};

}  // namespace thinwire
