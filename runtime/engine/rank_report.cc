#include "runtime/engine/rank_report.h"

#include "kernels/core/status_macros.h"
#include "runtime/engine/byte_stream.h"

namespace thinwire {

std::string RankReport::Serialize() const {
  ByteWriter writer;
  writer.PutString(ledger.Serialize());
  writer.Put(memory);
  return writer.Take();
}

absl::StatusOr<RankReport> RankReport::Parse(absl::string_view bytes) {
  ByteReader reader(bytes);
  RankReport report;
  const std::string ledger = reader.GetString();
  report.memory = reader.Get<MemoryReport>();
  TW_RETURN_IF_ERROR(reader.status());
  TW_ASSIGN_OR_RETURN(report.ledger, Ledger::Parse(ledger));
  return report;
}

}  // namespace thinwire
