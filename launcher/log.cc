#include "launcher/log.h"

#include <spdlog/sinks/stdout_color_sinks.h>
#include <spdlog/spdlog.h>

#include <cstdio>
#include <memory>
#include <string>

#include "absl/strings/str_cat.h"

namespace thinwire {
namespace {

spdlog::string_view_t View(absl::string_view text) { return {text.data(), text.size()}; }

}  // namespace

void SetUpLog(int rank, absl::string_view level) {
  auto logger = spdlog::stderr_color_mt("thinwire");
  logger->set_pattern("%H:%M:%S %^%l%$ %v");
  logger->set_level(rank == 0 ? spdlog::level::from_str(std::string(level)) : spdlog::level::off);
  spdlog::set_default_logger(std::move(logger));
}

void LogDebug(absl::string_view message) { spdlog::debug(View(message)); }
void LogInfo(absl::string_view message) { spdlog::info(View(message)); }
void LogWarning(absl::string_view message) { spdlog::warn(View(message)); }

void PrintError(absl::string_view message) {
  std::string line = absl::StrCat("thinwire: ", message);
  for (char& c : line) {
    if (c == '\n' || c == '\r') c = ' ';
  }
  line += '\n';
  std::fputs(line.c_str(), stderr);  // one write: lines of several ranks do not mix
  std::fflush(stderr);
}

}  // namespace thinwire
