#include "runtime/engine/step_plan.h"

#include "kernels/core/status_macros.h"
#include "runtime/engine/byte_stream.h"

namespace thinwire {

std::string StepPlan::Serialize() const {
  ByteWriter writer;
  writer.Put(kind);
  writer.Put(id);
  writer.Put(static_cast<int64_t>(seqs.size()));
  for (const PlannedSeq& seq : seqs) {
    writer.Put(seq.slot);
    writer.Put(seq.start);
    writer.Put(seq.binds);
    writer.PutArray(seq.token_ids);
    writer.PutArray(seq.new_pages);
    writer.Put(seq.sample);
    if (seq.sample) writer.Put(seq.sampling);
    writer.Put(seq.want_logits);
    writer.PutArray(seq.targets);
    writer.Put(seq.num_top);
  }
  if (moves()) writer.Put(static_cast<int64_t>(moved.size()));
  for (const MovedSeq& seq : moved) {
    writer.Put(seq.id);
    writer.Put(seq.slot);
    writer.Put(seq.num_tokens);
    writer.PutArray(seq.pages);
  }
  return writer.Take();
}

absl::StatusOr<StepPlan> StepPlan::Parse(absl::string_view bytes) {
  ByteReader reader(bytes);
  StepPlan plan;
  plan.kind = reader.Get<Kind>();
  plan.id = reader.Get<int64_t>();
  const auto num_seqs = reader.Get<int64_t>();
  for (int64_t i = 0; i < num_seqs && static_cast<size_t>(i) < bytes.size(); ++i) {
    PlannedSeq seq;
    seq.slot = reader.Get<int32_t>();
    seq.start = reader.Get<int64_t>();
    seq.binds = reader.Get<bool>();
    seq.token_ids = reader.GetArray<int32_t>();
    seq.new_pages = reader.GetArray<int32_t>();
    seq.sample = reader.Get<bool>();
    if (seq.sample) seq.sampling = reader.Get<SamplingParams>();
    seq.want_logits = reader.Get<bool>();
    seq.targets = reader.GetArray<int32_t>();
    seq.num_top = reader.Get<int32_t>();
    plan.seqs.push_back(std::move(seq));
  }
  const auto num_moved = plan.moves() ? reader.Get<int64_t>() : 0;
  for (int64_t i = 0; i < num_moved && static_cast<size_t>(i) < bytes.size(); ++i) {
    MovedSeq seq;
    seq.id = reader.Get<int64_t>();
    seq.slot = reader.Get<int32_t>();
    seq.num_tokens = reader.Get<int64_t>();
    seq.pages = reader.GetArray<int32_t>();
    plan.moved.push_back(std::move(seq));
  }
  TW_RETURN_IF_ERROR(reader.status());
  return plan;
}

std::string StepResult::Serialize() const {
  ByteWriter writer;
  writer.Put(id);
  writer.Put(static_cast<int64_t>(seqs.size()));
  for (const SeqResult& seq : seqs) {
    writer.Put(seq.token_id);
    writer.PutArray(seq.logits);
    writer.PutArray(seq.log_probs);
    writer.PutArray(seq.top);
  }
  return writer.Take();
}

absl::StatusOr<StepResult> StepResult::Parse(absl::string_view bytes) {
  ByteReader reader(bytes);
  StepResult result;
  result.id = reader.Get<int64_t>();
  const auto num_seqs = reader.Get<int64_t>();
  for (int64_t i = 0; i < num_seqs && static_cast<size_t>(i) < bytes.size(); ++i) {
    SeqResult seq;
    seq.token_id = reader.Get<int32_t>();
    seq.logits = reader.GetArray<float>();
    seq.log_probs = reader.GetArray<float>();
    seq.top = reader.GetArray<TokenLogProb>();
    result.seqs.push_back(std::move(seq));
  }
  TW_RETURN_IF_ERROR(reader.status());
  return result;
}

}  // namespace thinwire
