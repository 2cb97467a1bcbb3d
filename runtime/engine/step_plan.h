// What the leader tells all ranks to compute, and what the last stage answers.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "kernels/sampling/sampling.h"
#include "kernels/sampling/top_log_probs.h"

namespace thinwire {

// One sequence's part of a step: tokens at positions [start, start + token_ids.size()). Every rank
// keeps a page table per slot: `binds` empties it, then new_pages are appended. What lies before
// start is in the table's pages: of this sequence's parts before, or of other sequences. The token
// id -1 - slot, of a mesh of one stage, stands for the token that the slot has sampled last.
struct PlannedSeq {
  int32_t slot = 0;
  int64_t start = 0;
  bool binds = false;
  std::vector<int32_t> token_ids;
  std::vector<int32_t> new_pages;

  // Sample the token that follows the last one of this part.
  bool sample = false;
  SamplingParams sampling;

  // Return the logits that follow the last token of this part.
  bool want_logits = false;

  // Return log p(targets[i] | everything up to token_ids[i]); empty, or as long as token_ids, -1
  // for none.
  std::vector<int32_t> targets;
  int32_t num_top = 0;  // with each target, the most probable tokens in its place

  int64_t num_tokens() const { return static_cast<int64_t>(token_ids.size()); }
};

// A sequence that moves between groups of ranks: its first num_tokens tokens, which are in `slot`
// of the ranks that are told. Those that receive (or assume) bind the slot to `pages`, those that
// send have it.
struct MovedSeq {
  int64_t id = 0;
  int32_t slot = 0;
  int64_t num_tokens = 0;
  std::vector<int32_t> pages;
};

struct StepPlan {
  enum class Kind : uint8_t {
    kRun,      // compute seqs
    kSend,     // send `moved` to the decode group
    kReceive,  // receive `moved` from the prefill group
    kAssume,   // bind `moved` to its pages, whatever these hold
    kIdle,     // answer with no bytes: leader and ranks know that they are still there
    kReport,   // send ledger and memory figures to the leader
    kReset,    // clear the ledger
    kStop,     // leave the loop
  };

  Kind kind = Kind::kRun;
  int64_t id = 0;
  std::vector<PlannedSeq> seqs;
  std::vector<MovedSeq> moved;

  bool moves() const {
    return kind == Kind::kSend || kind == Kind::kReceive || kind == Kind::kAssume;
  }

  std::string Serialize() const;
  static absl::StatusOr<StepPlan> Parse(absl::string_view bytes);
};

struct SeqResult {
  int32_t token_id = -1;          // where sampled
  std::vector<float> logits;      // [vocab] where wanted
  std::vector<float> log_probs;   // [targets] where given; 0 for target -1
  std::vector<TokenLogProb> top;  // [targets, num_top], the same
};

struct StepResult {
  int64_t id = 0;
  std::vector<SeqResult> seqs;  // as planned

  std::string Serialize() const;
  static absl::StatusOr<StepResult> Parse(absl::string_view bytes);
};

}  // namespace thinwire
