#include "parallel/wire/ledger.h"

#include <bit>
#include <cstring>
#include <type_traits>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace thinwire {

static_assert(std::endian::native == std::endian::little);
static_assert(std::is_trivially_copyable_v<LedgerEntry> && sizeof(LedgerEntry) == 48);

absl::string_view SiteName(Site site) {
  switch (site) {
    case Site::kEmbedding:
      return "embedding";
    case Site::kAttentionOut:
      return "attention_out";
    case Site::kMlpOut:
      return "mlp_out";
    case Site::kStageHop:
      return "stage_hop";
    case Site::kFinalNorm:
      return "final_norm";
    case Site::kLogits:
      return "logits";
    case Site::kKvHandOff:
      return "kv_handoff";
    case Site::kControl:
      return "control";
  }
  return "unknown";
}

LedgerEntry& LedgerEntry::operator+=(const LedgerEntry& other) {
  logical_bytes += other.logical_bytes;
  payload_bytes += other.payload_bytes;
  metadata_bytes += other.metadata_bytes;
  calls += other.calls;
  codec_ns += other.codec_ns;
  transfer_ns += other.transfer_ns;
  return *this;
}

LedgerEntry Ledger::Total() const {
  LedgerEntry total;
  for (const LedgerEntry& entry : entries_) total += entry;
  return total;
}

Ledger& Ledger::operator+=(const Ledger& other) {
  for (size_t i = 0; i < entries_.size(); ++i) entries_[i] += other.entries_[i];
  return *this;
}

Ledger Ledger::BytesSince(const Ledger& before) const {
  Ledger since;
  for (size_t i = 0; i < entries_.size(); ++i) {
    const LedgerEntry &now = entries_[i], &then = before.entries_[i];
    since.entries_[i] = {.logical_bytes = now.logical_bytes - then.logical_bytes,
                         .payload_bytes = now.payload_bytes - then.payload_bytes,
                         .metadata_bytes = now.metadata_bytes - then.metadata_bytes,
                         .calls = now.calls - then.calls};
  }
  return since;
}

std::string Ledger::Serialize() const {
  std::string bytes(sizeof(entries_), '\0');
  std::memcpy(bytes.data(), entries_.data(), sizeof(entries_));
  return bytes;
}

absl::StatusOr<Ledger> Ledger::Parse(absl::string_view bytes) {
  Ledger ledger;
  if (bytes.size() != sizeof(ledger.entries_)) {
    return absl::InternalError(
        absl::StrCat("ledger of ", bytes.size(), " bytes; expected ", sizeof(ledger.entries_)));
  }
  std::memcpy(ledger.entries_.data(), bytes.data(), bytes.size());
  return ledger;
}

}  // namespace thinwire
