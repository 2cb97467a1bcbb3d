// --config: options of a command in a file.
#pragma once

#include <memory>

namespace CLI {
class App;
class Config;
}  // namespace CLI

namespace thinwire {

// Reads lines `name = value` (`true` for flags, `[a, b]` for what may be given several times, `#`
// before remarks), names as on the command line, into the command that was chosen there, and into
// those above it. What the command line has itself, it decides. Throws CLI::ConfigError, which the
// parser takes for any other mistake in it, for a section and for a name that no option has.
std::shared_ptr<CLI::Config> MakeConfigFormat(const CLI::App* app);

}  // namespace thinwire
