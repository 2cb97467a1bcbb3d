// thinwire: one program, one subcommand per file.
#include <CLI/CLI.hpp>
#include <csignal>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/cord.h"
#include "launcher/command.h"
#include "launcher/job.h"
#include "launcher/log.h"

namespace thinwire {
namespace {

constexpr char kUsageUrl[] = "thinwire/usage";

constexpr char kDescription[] =
    "thinwire: tensor- and pipeline-parallel inference that moves few bits.\n"
    "One process is one rank; start several with mpirun or srun:\n"
    "  thinwire run --model DIR --prompt \"Once upon a time\"\n"
    "  mpirun -np 4 thinwire run --model DIR --tp 2 --pp 2 --prompts prompts.jsonl --json";

int ExitCode(const absl::Status& status) { return status.ok() ? 0 : IsUsageError(status) ? 2 : 1; }

// Parses the command line; false when the program is to exit with `exit_code` after rank 0 printed
// `text`.
bool Parse(CLI::App& app, int argc, char** argv, std::string& text, int& exit_code) {
  try {
    app.parse(argc, argv);
    return true;
  } catch (const CLI::CallForHelp&) {
    // CLI11 unwinds out of the subcommand that was asked about.
    const std::vector<CLI::App*> chosen = app.get_subcommands();
    const CLI::App* topic = &app;
    for (const CLI::App* sub : chosen) {
      topic = sub;
      if (!sub->get_subcommands().empty()) topic = sub->get_subcommands().front();
    }
    text = topic->help();
    exit_code = 0;
  } catch (const CLI::CallForVersion& version) {
    text = std::string(version.what()) + "\n";
    exit_code = 0;
  } catch (const CLI::ParseError& error) {
    text = error.what();
    exit_code = 2;
  }
  return false;
}

int Main(int argc, char** argv) {
  CLI::App app(kDescription, "thinwire");
  app.require_subcommand(1);
  app.set_version_flag("--version", "thinwire " THINWIRE_VERSION);
  app.get_formatter()->column_width(34);
  std::string log_level = "info";
  app.add_option("--log-level", log_level, "Messages on standard error")
      ->check(CLI::IsMember({"debug", "info", "warning", "error", "off"}))
      ->capture_default_str();
  std::vector<std::unique_ptr<Command>> commands;
  commands.push_back(MakeRunCommand(app));
  commands.push_back(MakeEvalCommand(app));
  commands.push_back(MakeInspectCommand(app));
  commands.push_back(MakeCheckCommand(app));
  commands.push_back(MakeBenchCommand(app));
  for (auto& command : MakeUnimplementedCommands(app)) commands.push_back(std::move(command));

  std::string text;
  int exit_code = 0;
  const bool parsed = Parse(app, argc, argv, text, exit_code);
  const int environment_rank = RankFromEnvironment();
  if (!parsed && exit_code == 0) {
    if (environment_rank == 0) std::fputs(text.c_str(), stdout);
    return 0;
  }
  SetUpLog(environment_rank, log_level);
  std::signal(SIGPIPE, SIG_IGN);  // a closed standard output is an error of the write

  // Even to fail, ranks join and leave together: a launcher kills the others when the first one
  // exits, maybe before rank 0 has said why.
  absl::StatusOr<Job> job = Job::Join();
  if (!job.ok()) {
    if (environment_rank == 0) PrintError(job.status().message());
    return 1;
  }
  if (!parsed) {
    if (job->leader()) {
      PrintError(text + " (see thinwire --help)");
    }
    return job->Leave(exit_code);
  }
  for (const std::unique_ptr<Command>& command : commands) {
    if (!command->chosen()) continue;
    const absl::Status status = command->Run(*job);
    if (!status.ok() && job->leader()) PrintError(status.message());
    return job->Leave(ExitCode(status));
  }
  return 2;
}

}  // namespace

absl::Status UsageError(const absl::Status& status) {
  absl::Status usage = status;
  if (!usage.ok()) usage.SetPayload(kUsageUrl, absl::Cord());
  return usage;
}

bool IsUsageError(const absl::Status& status) { return status.GetPayload(kUsageUrl).has_value(); }

}  // namespace thinwire

int main(int argc, char** argv) { return thinwire::Main(argc, argv); }
