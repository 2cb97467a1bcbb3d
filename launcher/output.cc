#include "launcher/output.h"

#include <cerrno>
#include <cstdio>

namespace thinwire {

absl::Status WriteOutput(absl::string_view text) {
  const bool written = std::fwrite(text.data(), 1, text.size(), stdout) == text.size();
  if (!written || std::fflush(stdout) != 0) {
    return absl::ErrnoToStatus(errno, "writing to standard output");
  }
  return absl::OkStatus();
}

}  // namespace thinwire
