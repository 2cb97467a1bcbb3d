// Executes step plans on one rank: page tables, the model's stage, sampling where logits are.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
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
class StageRunner {
 public:
  // `max_seqs`: slots that plans may name.
  StageRunner(Decoder* decoder, PagedKvCache* cache, Wire* wire, Stream* stream, int64_t max_seqs);

  // Runs a plan of kind kRun; collective over the mesh. The result is filled on the last stage's
  // tp_rank 0 and empty elsewhere.
  absl::StatusOr<StepResult> Run(const StepPlan& plan);

  // Waits for what the last step has enqueued, as long as the stream's waits last, and returns the
  // error of values that it could not store. Run begins with it, and ends with it where it samples.
  // Nothing on the CPU.
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
  };

  absl::Status CheckSlot(int32_t slot) const;
  // Internal when the plan contradicts this rank's tables: ranks have lost step.
  absl::Status FillBatch(const StepPlan& plan);
  // A token whose logits are wanted: index of its sequence in the plan, and in its sequence's part.
  struct Output {
    size_t seq;
    int64_t token;
  };

  // After a step's last call on a GPU: what Settle will look at.
  absl::Status LeaveUnsettled();
  absl::StatusOr<StepResult> ReadOutputs(const StepPlan& plan);
  // Takes what the plan wants of `outputs` from their `logits`, [outputs.size(), vocab].
  absl::Status ReadLogits(const StepPlan& plan, absl::Span<const Output> outputs,
                          ConstTensorView logits, StepResult& result);
  bool samples() const;

  Decoder* decoder_;
  PagedKvCache* cache_;
  Wire* wire_;
  Stream* stream_;
  std::vector<std::vector<int32_t>> page_tables_;  // by slot
  BatchArrays batch_;
  bool unsettled_ = false;    // a step's work may not have ended on the GPU
  PinnedBuffer first_wrong_;  // a copy of the decoder's
  PinnedBuffer logits_here_;  // [vocab] fp32, from the first logits that are wanted on
  Tensor logits_;             // [kMaxLogitRows, vocab] fp32 where this rank samples
};

}  // namespace thinwire
