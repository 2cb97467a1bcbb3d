// A subcommand of thinwire.
#pragma once

#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace CLI {
class App;
}

namespace thinwire {

class Job;

// Each subcommand is one file that defines its class and a Make function.
class Command {
 public:
  virtual ~Command() = default;

  // Whether the command line named this subcommand.
  virtual bool chosen() const = 0;

  // Does the work, on every rank. On success what was asked for is on standard output (rank 0).
  virtual absl::Status Run(Job& job) = 0;
};

// Each adds its flags to `app`, which outlives the command.
std::unique_ptr<Command> MakeRunCommand(CLI::App& app);
std::unique_ptr<Command> MakeEvalCommand(CLI::App& app);
std::unique_ptr<Command> MakeQuantizeCommand(CLI::App& app);
std::unique_ptr<Command> MakeInspectCommand(CLI::App& app);
std::unique_ptr<Command> MakePlanCommand(CLI::App& app);
std::unique_ptr<Command> MakeReportCommand(CLI::App& app);
std::unique_ptr<Command> MakeCheckCommand(CLI::App& app);
std::unique_ptr<Command> MakeBenchCommand(CLI::App& app);
std::unique_ptr<Command> MakeServeCommand(CLI::App& app);  // in builds with a server

// Hidden from --help: names of the command line that this version refuses.
std::vector<std::unique_ptr<Command>> MakeUnimplementedCommands(CLI::App& app);

// Marks an error as wrong usage: exit code 2 instead of 1.
absl::Status UsageError(const absl::Status& status);
bool IsUsageError(const absl::Status& status);

// Marks an error as one that standard error has shown already.
absl::Status AlreadyPrinted(const absl::Status& status);
bool IsAlreadyPrinted(const absl::Status& status);

}  // namespace thinwire
