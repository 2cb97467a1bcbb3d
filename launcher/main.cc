// thinwire: one program, one subcommand per file.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <csignal>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/cord.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "launcher/command.h"
#include "launcher/config_file.h"
#include "launcher/job.h"
#include "launcher/log.h"
#include "launcher/output.h"

namespace thinwire {
namespace {

constexpr char kUsageUrl[] = "thinwire/usage";
constexpr char kPrintedUrl[] = "thinwire/printed";

constexpr char kDescription[] =
    "thinwire: tensor- and pipeline-parallel inference that moves few bits.\n"
    "One process is one rank; start several with mpirun or srun:\n"
    "  thinwire run --model DIR --prompt \"Once upon a time\"\n"
    "  mpirun -np 4 thinwire run --model DIR --tp 2 --pp 2 --prompts prompts.jsonl --json";

absl::Status Marked(absl::Status status, absl::string_view url) {
  if (!status.ok()) status.SetPayload(url, absl::Cord());
  return status;
}

int ExitCode(const absl::Status& status) { return status.ok() ? 0 : IsUsageError(status) ? 2 : 1; }

// The innermost subcommand that was named: CLI11 unwinds out of it.
const CLI::App* Topic(const CLI::App& app) {
  const CLI::App* topic = &app;
  while (!topic->get_subcommands().empty()) topic = topic->get_subcommands().back();
  return topic;
}

// "thinwire bench engine"
std::string TopicName(const CLI::App& app) {
  std::string name = app.get_name();
  for (const CLI::App* topic = &app; !topic->get_subcommands().empty();) {
    topic = topic->get_subcommands().back();
    absl::StrAppend(&name, " ", topic->get_name());
  }
  return name;
}

std::vector<std::string> VisibleSubcommands(const CLI::App& app) {
  std::vector<std::string> names;
  for (const CLI::App* sub : app.get_subcommands(nullptr)) {
    if (!sub->get_group().empty() && !sub->get_name().empty()) names.push_back(sub->get_name());
  }
  return names;
}

// What nobody took, in the order of the command line; empty if there is nothing.
std::string FirstUnexpected(const CLI::App& app, int argc, char** argv) {
  const std::vector<std::string> unexpected = app.remaining(/*recurse=*/true);
  for (int i = 1; i < argc; ++i) {
    if (std::find(unexpected.begin(), unexpected.end(), argv[i]) != unexpected.end()) {
      return argv[i];
    }
  }
  return unexpected.empty() ? "" : unexpected.front();
}

// Parses the command line; false when the program is to exit with `exit_code` after rank 0 printed
// `text`.
bool Parse(CLI::App& app, int argc, char** argv, std::string& text, int& exit_code) {
  try {
    app.parse(argc, argv);
    return true;
  } catch (const CLI::CallForHelp&) {
    text = Topic(app)->help();
    exit_code = 0;
  } catch (const CLI::CallForVersion& version) {
    text = std::string(version.what()) + "\n";
    exit_code = 0;
  } catch (const CLI::ParseError& error) {
    text = error.what();
    // CLI11 sees what is missing before the misspelt argument that was to be it.
    const std::string unexpected = FirstUnexpected(app, argc, argv);
    if (!unexpected.empty()) text = absl::StrCat("unexpected argument '", unexpected, "'");
    const CLI::App* topic = Topic(app);
    if (topic->get_require_subcommand_min() > 0 && topic->get_subcommands().empty()) {
      absl::StrAppend(&text, "; expected one of ", absl::StrJoin(VisibleSubcommands(*topic), ", "));
    }
    exit_code = 2;
  }
  return false;
}

int Main(int argc, char** argv) {
  CLI::App app(kDescription, "thinwire");
  app.require_subcommand(1);
  app.fallthrough();  // --log-level may stand anywhere
  app.set_version_flag("--version", "thinwire " THINWIRE_VERSION);
  app.get_formatter()->column_width(34);
  app.set_config("--config", "",
                 "Options of the command, a line each: name = value; what is given here counts")
      ->type_name("FILE");
  app.config_formatter(MakeConfigFormat(&app));
  std::string log_level = "info";
  app.add_option("--log-level", log_level, "Messages on standard error")
      ->check(CLI::IsMember({"debug", "info", "warning", "error", "off"}))
      ->capture_default_str();
  std::vector<std::unique_ptr<Command>> commands;
  commands.push_back(MakeRunCommand(app));
  commands.push_back(MakeEvalCommand(app));
  commands.push_back(MakeQuantizeCommand(app));
  commands.push_back(MakeInspectCommand(app));
  commands.push_back(MakePlanCommand(app));
  commands.push_back(MakeReportCommand(app));
  commands.push_back(MakeCheckCommand(app));
  commands.push_back(MakeBenchCommand(app));
#ifdef THINWIRE_HAS_SERVER
  commands.push_back(MakeServeCommand(app));
#endif
  for (auto& command : MakeUnimplementedCommands(app)) commands.push_back(std::move(command));

  std::string text;
  int exit_code = 0;
  const bool parsed = Parse(app, argc, argv, text, exit_code);
  const int environment_rank = RankFromEnvironment();
  if (!parsed && exit_code == 0) {
    const absl::Status shown = environment_rank == 0 ? WriteOutput(text) : absl::OkStatus();
    if (!shown.ok()) PrintError(shown.message());
    return ExitCode(shown);
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
      PrintError(absl::StrCat(text, " (see ", TopicName(app), " --help)"));
    }
    return job->Leave(exit_code, absl::InvalidArgumentError(text));
  }
  for (const std::unique_ptr<Command>& command : commands) {
    if (!command->chosen()) continue;
    const absl::Status status = command->Run(*job);
    if (!status.ok() && job->leader() && !IsAlreadyPrinted(status)) PrintError(status.message());
    return job->Leave(ExitCode(status), status);
  }
  return 2;
}

}  // namespace

absl::Status UsageError(const absl::Status& status) { return Marked(status, kUsageUrl); }
bool IsUsageError(const absl::Status& status) { return status.GetPayload(kUsageUrl).has_value(); }

absl::Status AlreadyPrinted(const absl::Status& status) { return Marked(status, kPrintedUrl); }
bool IsAlreadyPrinted(const absl::Status& status) {
  return status.GetPayload(kPrintedUrl).has_value();
}

}  // namespace thinwire

int main(int argc, char** argv) { return thinwire::Main(argc, argv); }
