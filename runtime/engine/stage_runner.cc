#include "runtime/engine/stage_runner.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "kernels/core/copy.h"
#include "kernels/core/status_macros.h"
#include "kernels/core/stream_wait.h"
#include "kernels/sampling/sampling.h"
#include "kernels/sampling/top_log_probs.h"

namespace thinwire {
namespace {

// Calls visit(seq index, token index in the step) for each token whose logits are wanted, in order.
template <typename Visit>
void ForEachOutput(const StepPlan& plan, const Visit& visit) {
  int64_t first = 0;
  for (size_t s = 0; s < plan.seqs.size(); ++s) {
    const PlannedSeq& seq = plan.seqs[s];
    const int64_t n = seq.num_tokens();
    for (int64_t i = 0; i < n; ++i) {
      const bool scored = !seq.targets.empty() && seq.targets[i] >= 0;
      const bool last = i == n - 1 && (seq.sample || seq.want_logits);
      if (scored || last) visit(s, i, first + i);
    }
    first += n;
  }
}

// The operators take consecutive rows: visit(begin, count) is called for each run of the rows below
// `n` that are wanted.
template <typename Wanted, typename Visit>
absl::Status ForEachRun(int64_t n, const Wanted& wanted, const Visit& visit) {
  for (int64_t begin = 0; begin < n;) {
    int64_t end = begin;
    while (end < n && wanted(end)) ++end;
    if (end > begin) TW_RETURN_IF_ERROR(visit(begin, end - begin));
    begin = end + 1;
  }
  return absl::OkStatus();
}

}  // namespace

StageRunner::StageRunner(Decoder* decoder, PagedKvCache* cache, Wire* wire, Stream* stream,
                         int64_t max_seqs, int64_t steps_ahead)
    : decoder_(decoder),
      cache_(cache),
      wire_(wire),
      stream_(stream),
      page_tables_(max_seqs),
      has_sampled_(max_seqs),
      launched_(steps_ahead + 1) {}

bool StageRunner::samples() const {
  return decoder_->plan().last_stage() && decoder_->plan().tp_rank() == 0;
}

absl::Status StageRunner::CheckSlot(int32_t slot) const {
  if (slot >= 0 && static_cast<size_t>(slot) < page_tables_.size()) return absl::OkStatus();
  return absl::InternalError(absl::StrCat("slot ", slot, " of ", page_tables_.size()));
}

absl::StatusOr<KvPlace> StageRunner::PlaceOf(int32_t slot, int64_t num_tokens) const {
  TW_RETURN_IF_ERROR(CheckSlot(slot));
  const std::vector<int32_t>& pages = page_tables_[slot];
  if (num_tokens > static_cast<int64_t>(pages.size()) * cache_->shape().page_size) {
    return absl::InternalError(absl::StrCat("slot ", slot, " has ", pages.size(),
                                            " pages, too few for ", num_tokens, " tokens"));
  }
  return KvPlace{pages, num_tokens, slot};
}

absl::Status StageRunner::Bind(int32_t slot, std::vector<int32_t> pages) {
  TW_RETURN_IF_ERROR(CheckSlot(slot));
  page_tables_[slot] = std::move(pages);
  has_sampled_[slot] = false;
  return absl::OkStatus();
}

absl::Status StageRunner::CheckLateToken(const StepPlan& plan, const PlannedSeq& seq,
                                         int32_t token_id) const {
  const bool whole = decoder_->plan().first_stage() && decoder_->plan().last_stage();
  if (whole && has_sampled_[seq.slot] && token_id == -1 - seq.slot) return absl::OkStatus();
  return absl::InternalError(absl::StrCat(
      "step ", plan.id, ": slot ", seq.slot, " has token id ", token_id,
      whole ? ", and has sampled none" : ", and this rank has but some of the layers"));
}

absl::Status StageRunner::FillBatch(const StepPlan& plan) {
  BatchArrays& batch = batch_;
  batch.token_ids.clear();
  batch.positions.clear();
  batch.slots.clear();
  batch.token_offsets.assign(1, 0);
  batch.context_lens.clear();
  batch.page_offsets.assign(1, 0);
  batch.page_ids.clear();
  batch.exact_rows_of_seqs.clear();
  batch.exact_rows_of_tokens.clear();
  batch.output_tokens.clear();
  batch.has_late_tokens = false;
  const int64_t page_size = cache_->shape().page_size;
  for (const PlannedSeq& seq : plan.seqs) {
    TW_RETURN_IF_ERROR(CheckSlot(seq.slot));
    std::vector<int32_t>& pages = page_tables_[seq.slot];
    if (seq.binds) TW_RETURN_IF_ERROR(Bind(seq.slot, {}));
    pages.insert(pages.end(), seq.new_pages.begin(), seq.new_pages.end());
    const int64_t end = seq.start + seq.num_tokens();
    if (end > static_cast<int64_t>(pages.size()) * page_size || seq.token_ids.empty()) {
      return absl::InternalError(absl::StrCat("step ", plan.id, ": slot ", seq.slot,
                                              " ends at token ", end, " with ", pages.size(),
                                              " pages"));
    }
    for (const int32_t token_id : seq.token_ids) {
      batch.token_ids.push_back(token_id);
      if (token_id >= 0) continue;
      TW_RETURN_IF_ERROR(CheckLateToken(plan, seq, token_id));
      batch.has_late_tokens = true;
    }
    for (int64_t position = seq.start; position < end; ++position) {
      batch.positions.push_back(static_cast<int32_t>(position));
      batch.exact_rows_of_tokens.push_back(position == 0 ? seq.slot : -1);
      batch.slots.push_back(pages[position / page_size] * page_size + position % page_size);
    }
    batch.token_offsets.push_back(static_cast<int32_t>(batch.token_ids.size()));
    batch.context_lens.push_back(static_cast<int32_t>(end));
    batch.exact_rows_of_seqs.push_back(seq.slot);
    const int64_t num_pages = (end + page_size - 1) / page_size;
    batch.page_ids.insert(batch.page_ids.end(), pages.begin(), pages.begin() + num_pages);
    batch.page_offsets.push_back(static_cast<int32_t>(batch.page_ids.size()));
  }
  ForEachOutput(plan, [&](size_t, int64_t, int64_t token) {
    batch.output_tokens.push_back(static_cast<int32_t>(token));
  });
  return absl::OkStatus();
}

absl::Status StageRunner::Allocate() {
  if (!sampled_.empty()) return absl::OkStatus();
  const Device device = stream_->device();
  const auto max_seqs = static_cast<int64_t>(page_tables_.size());
  const int64_t wrong_bytes = decoder_->first_wrong().size_bytes();
  for (LaunchedStep& step : launched_) {
    TW_ASSIGN_OR_RETURN(step.token_ids,
                        PinnedBuffer::Allocate(DTypeBytes(DType::kI32, max_seqs), device));
    if (wrong_bytes > 0) {
      TW_ASSIGN_OR_RETURN(step.first_wrong, PinnedBuffer::Allocate(wrong_bytes, device));
    }
    TW_ASSIGN_OR_RETURN(step.finished, Event::Create(device, Event::Kind::kOrder));
  }
  if (samples()) {
    TW_ASSIGN_OR_RETURN(
        logits_,
        Tensor::Allocate(DType::kF32, {Decoder::kMaxLogitRows, decoder_->config().vocab}, device));
  }
  TW_ASSIGN_OR_RETURN(sampled_, Tensor::Allocate(DType::kI32, {max_seqs}, device));
  return absl::OkStatus();
}

absl::Status StageRunner::SettleOldest() {
  LaunchedStep& step = launched_[oldest_];
  oldest_ = (oldest_ + 1) % launched_.size();
  --num_unsettled_;
  TW_RETURN_IF_ERROR(Await(*step.finished, *stream_));
  TW_RETURN_IF_ERROR(decoder_->CheckKvStored(
      {reinterpret_cast<const int64_t*>(step.first_wrong.data()),
       static_cast<size_t>(step.first_wrong.size_bytes()) / sizeof(int64_t)}));
  if (!samples()) return absl::OkStatus();
  const auto* const token_ids = reinterpret_cast<const int32_t*>(step.token_ids.data());
  for (size_t i = 0; i < step.sampled.size(); ++i) {
    const int32_t token_id = token_ids[step.slots[i]];
    if (token_id < 0) {
      return absl::InternalError(absl::StrCat("step ", step.result.id, ": the logits of slot ",
                                              step.slots[i], " have a NaN or no finite maximum"));
    }
    step.result.seqs[step.sampled[i]].token_id = token_id;
  }
  results_.push_back(std::move(step.result));
  return absl::OkStatus();
}

absl::Status StageRunner::Settle() {
  while (num_unsettled_ > 0) TW_RETURN_IF_ERROR(SettleOldest());
  return absl::OkStatus();
}

absl::StatusOr<StepResult> StageRunner::TakeResult() {
  if (results_.empty()) {
    if (num_unsettled_ == 0 || !samples()) {
      return absl::InternalError("a result is wanted of a rank that has none");
    }
    TW_RETURN_IF_ERROR(SettleOldest());
  }
  StepResult result = std::move(results_.front());
  results_.pop_front();
  return result;
}

StepBatch StageRunner::Batch() const {
  return {.token_ids = batch_.token_ids,
          .positions = batch_.positions,
          .slots = batch_.slots,
          .token_offsets = batch_.token_offsets,
          .context_lens = batch_.context_lens,
          .page_offsets = batch_.page_offsets,
          .page_ids = batch_.page_ids,
          .exact_rows_of_seqs = batch_.exact_rows_of_seqs,
          .exact_rows_of_tokens = batch_.exact_rows_of_tokens,
          .output_tokens = batch_.output_tokens,
          .late_ids = sampled_.view()};
}

absl::Status StageRunner::Finish(LaunchedStep& step) {
  if (!step.sampled.empty()) {
    TW_RETURN_IF_ERROR(CopyPinned(
        sampled_.view(), TensorView(step.token_ids.data(), DType::kI32, {sampled_.view().dim(0)}),
        *stream_));
  }
  const ConstTensorView first_wrong = decoder_->first_wrong();
  if (!first_wrong.empty()) {
    TW_RETURN_IF_ERROR(CopyPinned(
        first_wrong, TensorView(step.first_wrong.data(), DType::kI64, {first_wrong.dim(0)}),
        *stream_));
  }
  return step.finished->Record(*stream_);
}

absl::Status StageRunner::Launch(const StepPlan& plan) {
  while (num_unsettled_ >= launched_.size()) TW_RETURN_IF_ERROR(SettleOldest());
  TW_RETURN_IF_ERROR(Allocate());
  TW_RETURN_IF_ERROR(FillBatch(plan));
  if (batch_.has_late_tokens) {
    // tp_rank 0 alone has sampled them.
    TW_RETURN_IF_ERROR(wire_->BroadcastInGroup(Site::kControl, sampled_.mutable_view(), *stream_));
  }
  TW_RETURN_IF_ERROR(decoder_->Forward(Batch(), *cache_, *wire_, *stream_));
  LaunchedStep& step = launched_[(oldest_ + num_unsettled_) % launched_.size()];
  step.result = StepResult{.id = plan.id, .seqs = {}};
  step.sampled.clear();
  step.slots.clear();
  if (decoder_->plan().last_stage()) TW_RETURN_IF_ERROR(ReadOutputs(plan, step));
  TW_RETURN_IF_ERROR(Finish(step));
  ++num_unsettled_;
  for (const PlannedSeq& seq : plan.seqs) {
    if (seq.sample) has_sampled_[seq.slot] = true;
  }
  return absl::OkStatus();
}

absl::Status StageRunner::ReadOutputs(const StepPlan& plan, LaunchedStep& step) {
  const auto num_outputs = static_cast<int64_t>(batch_.output_tokens.size());
  if (samples()) step.result.seqs.resize(plan.seqs.size());
  std::vector<Output> outputs;
  outputs.reserve(num_outputs);
  ForEachOutput(plan, [&](size_t s, int64_t i, int64_t) { outputs.push_back({s, i}); });
  for (int64_t begin = 0; begin < num_outputs; begin += Decoder::kMaxLogitRows) {
    const int64_t n = std::min(Decoder::kMaxLogitRows, num_outputs - begin);
    const TensorView logits = samples() ? logits_.mutable_view().Rows(0, n) : TensorView();
    TW_RETURN_IF_ERROR(decoder_->Logits(begin, n, logits, *wire_, *stream_));
    if (!samples()) continue;
    const auto part = absl::MakeConstSpan(outputs).subspan(begin, n);
    TW_RETURN_IF_ERROR(ReadLogits(plan, part, logits, step.result));
    TW_RETURN_IF_ERROR(SampleTokens(plan, part, logits, step));
  }
  return absl::OkStatus();
}

absl::Status StageRunner::ReadLogits(const StepPlan& plan, absl::Span<const Output> outputs,
                                     ConstTensorView logits, StepResult& result) {
  const auto n = static_cast<int64_t>(outputs.size());
  const auto target_of = [&](const Output& output) {
    const PlannedSeq& seq = plan.seqs[output.seq];
    return seq.targets.empty() ? -1 : seq.targets[output.token];
  };
  const auto is_last = [&](const Output& output) {
    return output.token + 1 == plan.seqs[output.seq].num_tokens();
  };
  TW_RETURN_IF_ERROR(ForEachRun(
      n, [&](int64_t row) { return target_of(outputs[row]) >= 0; },
      [&](int64_t begin, int64_t count) -> absl::Status {
        std::vector<int32_t> targets(count);
        std::vector<float> log_probs(count);
        for (int64_t i = 0; i < count; ++i) targets[i] = target_of(outputs[begin + i]);
        TW_RETURN_IF_ERROR(LogProbs({.logits = logits.Rows(begin, count),
                                     .targets = targets,
                                     .log_probs = absl::MakeSpan(log_probs)},
                                    *stream_));
        for (int64_t i = 0; i < count; ++i) {
          const Output& output = outputs[begin + i];
          std::vector<float>& out = result.seqs[output.seq].log_probs;
          out.resize(plan.seqs[output.seq].targets.size(), 0.0f);
          out[output.token] = log_probs[i];
        }
        return absl::OkStatus();
      }));
  for (int64_t row = 0; row < n; ++row) {
    const Output& output = outputs[row];
    const PlannedSeq& seq = plan.seqs[output.seq];
    if (seq.num_top == 0 || target_of(output) < 0) continue;
    std::vector<TokenLogProb>& top = result.seqs[output.seq].top;
    top.resize(seq.targets.size() * seq.num_top);
    TW_RETURN_IF_ERROR(
        TopLogProbs({.logits = logits.Rows(row, 1),
                     .k = seq.num_top,
                     .out = absl::MakeSpan(top).subspan(output.token * seq.num_top, seq.num_top)},
                    *stream_));
  }

  for (int64_t row = 0; row < n; ++row) {
    if (!plan.seqs[outputs[row].seq].want_logits || !is_last(outputs[row])) continue;
    if (logits_here_.size_bytes() == 0) {
      TW_ASSIGN_OR_RETURN(
          logits_here_,
          PinnedBuffer::Allocate(DTypeBytes(DType::kF32, logits.dim(1)), stream_->device()));
    }
    const TensorView here(logits_here_.data(), DType::kF32, {1, logits.dim(1)});
    TW_RETURN_IF_ERROR(Copy(logits.Rows(row, 1), here, *stream_));
    TW_RETURN_IF_ERROR(stream_->Synchronize());
    const auto* const values = here.data<float>();
    result.seqs[outputs[row].seq].logits.assign(values, values + logits.dim(1));
  }
  return absl::OkStatus();
}

absl::Status StageRunner::SampleTokens(const StepPlan& plan, absl::Span<const Output> outputs,
                                       ConstTensorView logits, LaunchedStep& step) {
  const auto samples = [&](int64_t row) {
    const PlannedSeq& seq = plan.seqs[outputs[row].seq];
    return seq.sample && outputs[row].token + 1 == seq.num_tokens();
  };
  return ForEachRun(static_cast<int64_t>(outputs.size()), samples,
                    [&](int64_t begin, int64_t count) -> absl::Status {
                      std::vector<SamplingParams> params(count);
                      std::vector<int64_t> positions(count);
                      const size_t first = step.slots.size();
                      for (int64_t i = 0; i < count; ++i) {
                        const size_t index = outputs[begin + i].seq;
                        const PlannedSeq& seq = plan.seqs[index];
                        params[i] = seq.sampling;
                        positions[i] = seq.start + seq.num_tokens();
                        step.sampled.push_back(index);
                        step.slots.push_back(seq.slot);
                      }
                      return SampleThere({.logits = logits.Rows(begin, count),
                                          .params = params,
                                          .positions = positions,
                                          .places = absl::MakeConstSpan(step.slots).subspan(first),
                                          .token_ids = sampled_.mutable_view()},
                                         *stream_);
                    });
}

}  // namespace thinwire
