// Subcommands of the documented command line that this version or build does not have: a clear
// refusal instead of "unknown argument".
#include <CLI/CLI.hpp>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "launcher/command.h"
#include "launcher/job.h"

namespace thinwire {
namespace {

class UnimplementedCommand : public Command {
 public:
  UnimplementedCommand(CLI::App& app, const std::string& name)
      : app_(app.add_subcommand(name)), name_(name) {
    app_->group("");  // not listed in --help
    app_->allow_extras()->fallthrough(false);
    app_->set_help_flag();
  }

  bool chosen() const override { return app_->parsed(); }

  absl::Status Run(Job&) override {
    return UsageError(absl::UnimplementedError(absl::StrCat("'", name_, "' is not in this build")));
  }

 private:
  CLI::App* app_;
  std::string name_;
};

}  // namespace

std::vector<std::unique_ptr<Command>> MakeUnimplementedCommands([[maybe_unused]] CLI::App& app) {
  std::vector<std::unique_ptr<Command>> commands;
#ifndef THINWIRE_HAS_SERVER
  commands.push_back(std::make_unique<UnimplementedCommand>(app, "serve"));
#endif
  return commands;
}

}  // namespace thinwire
