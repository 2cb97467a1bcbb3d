// Messages for people, on standard error.
#pragma once

#include "absl/strings/string_view.h"

namespace thinwire {

// Only rank 0 logs. Levels: debug, info, warning, error, off.
void SetUpLog(int rank, absl::string_view level);

void LogDebug(absl::string_view message);
void LogInfo(absl::string_view message);
void LogWarning(absl::string_view message);

// "thinwire: message", always, in one line, without time or level: why the program fails.
void PrintError(absl::string_view message);

}  // namespace thinwire
