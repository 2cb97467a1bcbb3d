// What a rank tells about itself at the end.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "parallel/wire/ledger.h"
#include "runtime/engine/memory_report.h"

namespace thinwire {

struct RankReport {
  Ledger ledger;
  MemoryReport memory;

  std::string Serialize() const;
  static absl::StatusOr<RankReport> Parse(absl::string_view bytes);
};

}  // namespace thinwire
