// thinwire quantize: makes a checkpoint of fewer bits.
#include <CLI/CLI.hpp>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "kernels/core/mapped_file.h"
#include "kernels/core/status_macros.h"
#include "kernels/core/thread_pool.h"
#include "launcher/command.h"
#include "launcher/job.h"
#include "launcher/log.h"
#include "launcher/output.h"
#include "launcher/progress.h"
#include "runtime/checkpoint/quant_scheme.h"
#include "runtime/quantizer/quantize_model.h"
#include "runtime/tokenizer/tokenizer.h"

namespace thinwire {
namespace {

constexpr char kExplanation[] =
    "Schemes (RPTQ, arXiv 2304.01089): bits of linear weights (GPTQ), activations, and KV cache.\n"
    "  w4a16  weights 4                     w4a4kv  weights 4, K and V 4\n"
    "  w4a8   weights 4, activations 8      w4a3kv  weights 4, K and V 3\n"
    "  w4a4   weights 4, activations 4,     w3a3kv  weights 3, K and V 3\n"
    "         norm outputs 8                w16a16  nothing\n"
    "Any other mix: --weights, --acts and --kv.\n"
    "Under mpirun the calibration windows are shared out among the ranks. A run that was ended is\n"
    "taken up again by the same command: finished layers lie in OUT.partial.";

class QuantizeCommand : public Command {
 public:
  explicit QuantizeCommand(CLI::App& app)
      : app_(app.add_subcommand("quantize", "Make a checkpoint of fewer bits")) {
    app_->add_option("--model", options_.model_dir, "Folder of the original model")
        ->type_name("DIR")
        ->required();
    app_->add_option("--out", options_.out_dir, "Folder to make")->type_name("DIR")->required();
    CLI::Option* scheme =
        app_->add_option("--scheme", scheme_, "A scheme by name, see below")->type_name("NAME");
    app_->add_option("--weights", weights_, "Linear weights: fp16, gptq4 or gptq3")
        ->check(CLI::IsMember({"fp16", "gptq4", "gptq3"}))
        ->excludes(scheme)
        ->capture_default_str();
    app_->add_option("--acts", acts_, "Bits of activations between operators: 16, 8 or 4")
        ->check(CLI::IsMember({16, 8, 4}))
        ->excludes(scheme)
        ->capture_default_str();
    app_->add_option("--kv", kv_, "Bits of the KV cache on average: 16, 8, 4 or 3")
        ->check(CLI::IsMember({16, 8, 4, 3}))
        ->excludes(scheme)
        ->capture_default_str();
    app_->add_option("--calib", calibration_path_, "Text to calibrate on, UTF-8")
        ->type_name("FILE")
        ->required();
    app_->add_option("--nsamples", num_samples_, "Windows of the text")
        ->check(CLI::Range(int64_t{1}, int64_t{1} << 20))
        ->capture_default_str();
    app_->add_option("--seqlen", seqlen_, "Tokens of a window")
        ->check(CLI::Range(int64_t{2}, int64_t{1} << 20))
        ->capture_default_str();
    app_->add_option("--group-size", options_.layer.group_size,
                     "Input channels that share a weight scale; -1: all")
        ->check(CLI::Range(int64_t{-1}, int64_t{1} << 20))
        ->capture_default_str();
    app_->add_option("--seed", options_.seed, "Of every random choice")
        ->check(CLI::Range(int64_t{0}, int64_t{1} << 53))
        ->capture_default_str();
    app_->add_option("--tp", options_.layer.tp,
                     "Tensor-parallel size (and its divisors) that the checkpoint must allow")
        ->check(CLI::Range(0, 65536))
        ->capture_default_str();
    app_->add_option("--threads", threads_, "Threads of a rank; 0: its share of the processors")
        ->check(CLI::Range(0, 4096))
        ->capture_default_str();
    app_->footer(kExplanation);
  }

  bool chosen() const override { return app_->parsed(); }

  absl::Status Run(Job& job) override {
    TW_RETURN_IF_ERROR(ReadFlags());
    TW_RETURN_IF_ERROR(ReadCalibration());
    ThreadPool pool(job.NumThreads(threads_));
    Progress progress("quantising", job.leader());
    const absl::Status status =
        QuantizeModel(options_, job.world(), pool, [&](const LayerProgress& done) {
          progress.Update(done.layer + 1, done.num_layers);
          if (job.leader()) LogInfo(Describe(done));
        });
    progress.Finish();
    TW_RETURN_IF_ERROR(status);
    if (!job.leader()) return absl::OkStatus();
    return WriteOutput(absl::StrCat(options_.out_dir, ": ", SchemeName(options_.layer.scheme),
                                    ", calibrated on ", options_.calibration.info.nsamples, " x ",
                                    seqlen_, " tokens\n"));
  }

 private:
  absl::Status ReadFlags() {
    QuantScheme& scheme = options_.layer.scheme;
    if (!scheme_.empty()) {
      auto parsed = ParseScheme(scheme_);
      if (!parsed.ok()) return UsageError(Annotate(parsed.status(), "--scheme"));
      scheme = *parsed;
    } else {
      scheme = {.weight_bits = weights_ == "gptq4"   ? 4
                               : weights_ == "gptq3" ? 3
                                                     : 16,
                .act_bits = acts_,
                .kv_bits = kv_};
    }
    if (options_.layer.group_size == 0) {
      return UsageError(absl::InvalidArgumentError("--group-size 0: expected at least 1, or -1"));
    }
    options_.tool_version = THINWIRE_VERSION;
    return absl::OkStatus();
  }

  absl::Status ReadCalibration() {
    TW_ASSIGN_OR_RETURN(const std::unique_ptr<Tokenizer> tokenizer,
                        LoadTokenizer(options_.model_dir));
    TW_ASSIGN_OR_RETURN(const MappedFile file, MappedFile::Open(calibration_path_));
    const absl::string_view text(reinterpret_cast<const char*>(file.bytes().data()),
                                 file.bytes().size());
    const auto ids = tokenizer->Encode(text, /*add_special_tokens=*/false);
    if (!ids.ok()) return Annotate(ids.status(), calibration_path_);
    TW_ASSIGN_OR_RETURN(options_.calibration, CutCalibrationSet(*ids, num_samples_, seqlen_,
                                                                calibration_path_, file.bytes()));
    return absl::OkStatus();
  }

  static std::string Describe(const LayerProgress& done) {
    if (done.resumed) return absl::StrCat("layer ", done.layer, ": found in OUT.partial");
    std::string line = absl::StrCat("layer ", done.layer, ": done");
    return line;
  }

  CLI::App* app_;
  QuantizeOptions options_;
  std::string scheme_;
  std::string weights_ = "fp16";
  int acts_ = 16;
  int kv_ = 16;
  std::string calibration_path_;
  int64_t num_samples_ = 128;
  int64_t seqlen_ = 512;
  int threads_ = 0;
};

}  // namespace

std::unique_ptr<Command> MakeQuantizeCommand(CLI::App& app) {
  return std::make_unique<QuantizeCommand>(app);
}

}  // namespace thinwire
