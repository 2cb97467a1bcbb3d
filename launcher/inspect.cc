// thinwire inspect: what is in a checkpoint, in words, as JSON or drawn.
#include <CLI/CLI.hpp>
#include <memory>
#include <optional>
#include <string>

#include "kernels/core/atomic_file.h"
#include "kernels/core/status_macros.h"
#include "launcher/command.h"
#include "launcher/inspect/inspect_report.h"
#include "launcher/inspect/range_plot.h"
#include "launcher/job.h"
#include "launcher/output.h"
#include "launcher/plot/gnuplot.h"
#include "runtime/checkpoint/checkpoint_summary.h"
#include "runtime/checkpoint/rank_share.h"

namespace thinwire {
namespace {

class InspectCommand : public Command {
 public:
  explicit InspectCommand(CLI::App& app)
      : app_(app.add_subcommand("inspect", "Show what is in a checkpoint")) {
    app_->add_option("model", dir_, "Folder with config.json and *.safetensors")
        ->type_name("DIR")
        ->required();
    CLI::Option* json = app_->add_flag("--json", json_, "One JSON object on standard output");
    app_->add_option("--tp", tp_, "Show a rank's share, too, of a model cut over N ranks")
        ->type_name("N")
        ->check(CLI::PositiveNumber);
    CLI::Option* plot =
        app_->add_option("--plot", plot_, "Draw ranges of activations, by channel, instead")
            ->type_name("FILE.svg")
            ->excludes(json);
    app_->add_option("--layer", layer_, "Layer to draw")
        ->type_name("N")
        ->needs(plot)
        ->capture_default_str();
    app_->add_option("--site", site_,
                     "Site to draw: qkv_in, q, k, v, out_in, mlp_in or down_in; else the first "
                     "that can be")
        ->type_name("NAME")
        ->needs(plot);
  }

  bool chosen() const override { return app_->parsed(); }

  absl::Status Run(Job& job) override {
    if (!job.leader()) return absl::OkStatus();
    TW_ASSIGN_OR_RETURN(const CheckpointSummary summary, SummarizeCheckpoint(dir_));
    if (!plot_.empty()) return Draw(summary);
    std::optional<RankShare> share;
    if (tp_ > 0) {
      TW_ASSIGN_OR_RETURN(share, ShareOfRank(dir_, summary, tp_));
    }
    return WriteOutput(json_ ? InspectJson(summary, share) : InspectText(dir_, summary, share));
  }

 private:
  absl::Status Draw(const CheckpointSummary& summary) const {
    TW_ASSIGN_OR_RETURN(const std::string script,
                        RangePlotScript({.dir = dir_,
                                         .config = &summary.config,
                                         .quantisation = &summary.quantisation,
                                         .layer = layer_,
                                         .site = site_}));
    TW_RETURN_IF_ERROR(AtomicFile::CheckCreatable(plot_));
    TW_ASSIGN_OR_RETURN(const std::string svg, RunGnuplot(script));
    return WriteFileAtomically(plot_, svg);
  }

  CLI::App* app_;
  std::string dir_;
  bool json_ = false;
  int tp_ = 0;
  std::string plot_;
  int64_t layer_ = 0;
  std::string site_;
};

}  // namespace

std::unique_ptr<Command> MakeInspectCommand(CLI::App& app) {
  return std::make_unique<InspectCommand>(app);
}

}  // namespace thinwire
