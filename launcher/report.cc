// thinwire report: a page about what crossed the ranks' links in recorded runs.
#include <CLI/CLI.hpp>
#include <memory>
#include <string>
#include <vector>

#include "kernels/core/atomic_file.h"
#include "kernels/core/status_macros.h"
#include "launcher/command.h"
#include "launcher/job.h"
#include "launcher/plot/gnuplot.h"
#include "launcher/report/run_record.h"
#include "launcher/report/wire_page.h"

namespace thinwire {
namespace {

constexpr char kExamples[] =
    "One HTML page, whole in itself: bytes at each site against fp16, where the time of a step "
    "goes,\n"
    "strategies side by side. Needs gnuplot.\n"
    "Examples:\n"
    "  mpirun -np 2 thinwire run --model DIR --tp 2 --prompts p.jsonl --json --report r.json\n"
    "  thinwire report r.json other.json -o report.html\n"
    "Lines of thinwire bench comm --json are drawn, too: latency against size.";

class ReportCommand : public Command {
 public:
  explicit ReportCommand(CLI::App& app)
      : app_(app.add_subcommand("report", "Show on a page what crossed the ranks' links")) {
    app_->add_option("recordings", paths_, "What run --report or bench comm --json wrote")
        ->type_name("FILE.json")
        ->required();
    app_->add_option("-o,--output", output_, "The page to write")
        ->type_name("FILE.html")
        ->required();
    app_->footer(kExamples);
  }

  bool chosen() const override { return app_->parsed(); }

  absl::Status Run(Job& job) override {
    if (!job.leader()) return absl::OkStatus();
    Recordings recordings;
    for (const std::string& path : paths_) TW_RETURN_IF_ERROR(ReadRecording(path, recordings));
    TW_RETURN_IF_ERROR(AtomicFile::CheckCreatable(output_));
    TW_ASSIGN_OR_RETURN(const std::string page, WirePage(recordings, THINWIRE_VERSION, RunGnuplot));
    return WriteFileAtomically(output_, page);
  }

 private:
  CLI::App* app_;
  std::vector<std::string> paths_;
  std::string output_;
};

}  // namespace

std::unique_ptr<Command> MakeReportCommand(CLI::App& app) {
  return std::make_unique<ReportCommand>(app);
}

}  // namespace thinwire
