// Every byte that crosses ranks, by site, against what fp16 would have sent.
#pragma once

#include <array>
#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace thinwire {

// Where in a step bytes are sent.
enum class Site : int {
  kEmbedding,     // sum of the vocabulary shards' embeddings
  kAttentionOut,  // sum of o_proj's partial outputs
  kMlpOut,        // sum of fc2's or down_proj's partial outputs
  kStageHop,      // the residual, from one pipeline stage to the next
  kFinalNorm,     // rows that the last norm takes, where ranks keep only their own tokens
  kLogits,        // vocabulary shards' logits, to the rank that samples
  kKvHandOff,     // K and V of a sequence, from the ranks that computed them to those that decode
  kControl,       // step plans, sampled tokens, reports
};
inline constexpr int kNumSites = 8;

// "embedding", "attention_out", "mlp_out", "stage_hop", "final_norm", "logits", "kv_handoff",
// "control".
absl::string_view SiteName(Site site);

// One rank's traffic at one site.
struct LedgerEntry {
  int64_t logical_bytes = 0;   // what this rank would have sent had every element been fp16 and
                               // every sum a ring all-reduce (2 (p-1)/p n elements per rank);
                               // messages that are not activations count as they are
  int64_t payload_bytes = 0;   // elements or codes that this rank handed to the transport
  int64_t metadata_bytes = 0;  // gains, scales, lengths and checks that travel beside them
  int64_t calls = 0;
  int64_t codec_ns = 0;     // encoding, decoding and adding up
  int64_t transfer_ns = 0;  // time inside the communicator, waiting for peers included

  LedgerEntry& operator+=(const LedgerEntry& other);
};

// The traffic of one rank. Thread-compatible.
class Ledger {
 public:
  void Record(Site site, const LedgerEntry& entry) { entries_[Index(site)] += entry; }
  const LedgerEntry& at(Site site) const { return entries_[Index(site)]; }
  LedgerEntry Total() const;
  Ledger& operator+=(const Ledger& other);
  // What has been recorded since this was `before`, but for times.
  Ledger BytesSince(const Ledger& before) const;
  void Clear() { entries_ = {}; }

  // The entries as little-endian int64, in the order of Site and of LedgerEntry's members.
  std::string Serialize() const;
  // Internal when `bytes` is not what Serialize writes.
  static absl::StatusOr<Ledger> Parse(absl::string_view bytes);

 private:
  static size_t Index(Site site) { return static_cast<size_t>(site); }

  std::array<LedgerEntry, kNumSites> entries_ = {};
};

}  // namespace thinwire
