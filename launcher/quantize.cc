// thinwire quantize: makes a checkpoint of fewer bits.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <filesystem>
#include <memory>
#include <numeric>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/time.h"
#include "kernels/core/device.h"
#include "kernels/core/mapped_file.h"
#include "kernels/core/status_macros.h"
#include "kernels/core/thread_pool.h"
#include "launcher/command.h"
#include "launcher/job.h"
#include "launcher/log.h"
#include "launcher/output.h"
#include "launcher/progress.h"
#include "parallel/comm/agreement.h"
#include "parallel/comm/local_communicator.h"
#include "runtime/batch/sample_windows.h"
#include "runtime/checkpoint/model_config.h"
#include "runtime/checkpoint/quant_scheme.h"
#include "runtime/engine/engine.h"
#include "runtime/engine/engine_rank.h"
#include "runtime/engine/memory_report.h"
#include "runtime/quantizer/quantize_model.h"
#include "runtime/refine/refine_folder.h"
#include "runtime/tokenizer/tokenizer.h"

namespace thinwire {
namespace {

constexpr char kExplanation[] =
    "What becomes of the model (RPTQ, Yuan et al., arXiv 2304.01089), by --scheme, in bits:\n"
    "           weights  activations  KV cache\n"
    "  w4a16    4        16           16      GPTQ weights only, as other programs make them\n"
    "  w4a8     4        8            8\n"
    "  w4a4     4        4            4       inputs of attention and MLP: 8\n"
    "  w4a4kv   4        16           4\n"
    "  w4a3kv   4        16           3\n"
    "  w3a3kv   3        16           3\n"
    "Any other mix, such as --weights fp16 --kv 4: by --weights, --acts and --kv.\n"
    "\n"
    "Each layer is quantised on what the layers before it make of some text, --calib: plain text "
    "like\n"
    "that which the model will see, at least nsamples x seqlen tokens of it, or 'self', for a text "
    "that\n"
    "the model makes up (which needs the memory to run it). More windows: better, and slower. "
    "Under\n"
    "mpirun the ranks share the windows: the result is the same for 1, 2 and 4 ranks, otherwise up "
    "to\n"
    "the rounding of what is summed over them.\n"
    "\n"
    "Channels are put in an order, the MLP's inside as many blocks as --tp says, so that ranks "
    "can\n"
    "cut between blocks: a result of --tp 4 runs with --tp 4, 2 or 1. More blocks cost some "
    "accuracy.\n"
    "\n"
    "OUT appears when all is done. Until then finished layers lie in OUT.partial, and the same "
    "command\n"
    "goes on where an earlier one was ended, with the same result.\n"
    "\n"
    "Examples:\n"
    "  thinwire quantize --model DIR --out DIR-w4a8 --scheme w4a8 --calib wiki.train.txt\n"
    "  mpirun -np 4 thinwire quantize --model DIR --out OUT --scheme w4a4kv --calib self --tp 2\n"
    "  thinwire quantize --model DIR --out V --weights vptq --bits 2.1 --refine 150 --calib T.txt\n"
    "  thinwire eval --model DIR-w4a8 --text wiki.test.txt";

// Ranks wait for each other: for one that has a window more, or makes up the text for all. A rank
// that died is noticed by the launcher before.
constexpr absl::Duration kPatience = absl::Hours(24);

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
    app_->add_option(
            "--weights", weights_,
            "Linear weights: fp16, gptq4, gptq3, gptq2, or vectors of 8 (v) out of 4096 (k), with "
            "a residual out of 256 (r): vptq-v8-k4096-r256, vptq-v4-k256; behind it -g4: columns "
            "in 4 groups with books of their own, -o1v2k256: the 1 % of columns that matter most "
            "in vectors of 2 out of 256, -c8: books of 8-bit numbers, faster on GPUs, -raw: "
            "columns without scales")
        ->excludes(scheme)
        ->capture_default_str();
    app_->add_option("--bits", bits_,
                     "With --weights vptq or vptq-c8: bits of a weight on average, codebooks and "
                     "all counted; each matrix gets the vectors that lose least so")
        ->check(CLI::Range(1.0, 8.0))
        ->excludes(scheme);
    app_->add_option("--acts", acts_, "Bits of activations between operators: 16, 8 or 4")
        ->check(CLI::IsMember({16, 8, 4}))
        ->excludes(scheme)
        ->capture_default_str();
    app_->add_option("--kv", kv_, "Bits of the KV cache on average: 16, 8, 4 or 3")
        ->check(CLI::IsMember({16, 8, 4, 3}))
        ->excludes(scheme)
        ->capture_default_str();
    app_->add_option("--calib", calibration_path_, "Text to calibrate on, UTF-8; or 'self'")
        ->type_name("FILE")
        ->required();
    app_->add_option("--nsamples", num_samples_, "Windows of the text, evenly spaced")
        ->check(CLI::Range(int64_t{1}, int64_t{1} << 20))
        ->capture_default_str();
    app_->add_option("--seqlen", seqlen_, "Tokens of a window")
        ->check(CLI::Range(int64_t{2}, int64_t{1} << 20))
        ->capture_default_str();
    app_->add_option("--rptq", options_.algorithm,
                     "default; reference: RPTQ as published; per-tensor: that with one cluster a "
                     "site")
        ->check(CLI::IsMember({"default", "reference", "per-tensor"}))
        ->capture_default_str();
    app_->add_option(
            "--vptq", vptq_,
            "default; reference: vectors chosen as the published tool does; or, to compare "
            "with, the default without a step: without the Hessian of scaled columns, "
            "folds and rows that are alike, or feedback of errors")
        ->check(
            CLI::IsMember({"default", "reference", "no-scaling", "no-invariances", "no-feedback"}))
        ->capture_default_str();
    app_->add_option("--refine", refine_steps_,
                     "Tune codebooks, scales, norms and biases together in so many steps, such as "
                     "150, so that predictions become the model's; 0: none")
        ->type_name("STEPS")
        ->check(CLI::Range(int64_t{0}, int64_t{100000}))
        ->capture_default_str();
    app_->add_option("--group-size", options_.layer.group_size,
                     "Input channels that share a weight scale; -1: all")
        ->check(CLI::Range(int64_t{-1}, int64_t{1} << 20))
        ->capture_default_str();
    app_->add_flag("--act-order,!--no-act-order", options_.layer.act_order,
                   "Put channels in order of their importance, so that weight groups and clusters "
                   "hold channels of a kind (desc_act of GPTQ folders); on unless --no-act-order");
    app_->add_option("--seed", options_.seed, "Of every random choice")
        ->check(CLI::Range(int64_t{0}, int64_t{1} << 53))
        ->capture_default_str();
    app_->add_option("--tp", tp_, "Largest --tp to run the result with; its divisors will do, too")
        ->check(CLI::Range(1, 65536))
        ->default_str("the largest of 8, 4, 2, 1 that the model allows; any for --kv alone");
    app_->add_option(
            "--device", device_,
            "Where calibration runs and weights are quantised; cuda: the n-th rank of a host "
            "on its n-th GPU")
        ->check(CLI::IsMember({"cpu", "cuda"}))
        ->capture_default_str();
    app_->add_option("--threads", threads_, "Threads of a rank; 0: its share of the processors")
        ->check(CLI::Range(0, 4096))
        ->capture_default_str();
    app_->footer(kExplanation);
  }

  bool chosen() const override { return app_->parsed(); }

  absl::Status Run(Job& job) override {
    TW_RETURN_IF_ERROR(UsageError(ReadFlags()));
    ThreadPool pool(job.NumThreads(threads_));
    job.world().set_timeout(kPatience);
    TW_RETURN_IF_ERROR(ChooseDevice(job, pool));
    TW_RETURN_IF_ERROR(CheckQuantizeOptions(options_, job.world(), pool));
    if (refine_steps_ > 0) {
      TW_RETURN_IF_ERROR(CheckRefinable(options_.model_dir, options_.layer.scheme));
    }
    TW_RETURN_IF_ERROR(Calibrate(job, pool));
    TW_RETURN_IF_ERROR(Quantize(job, pool));
    TW_ASSIGN_OR_RETURN(const int64_t peak_bytes, PeakBytesOfAnyRank(job.world(), pool));
    if (!job.leader()) return absl::OkStatus();
    const CalibrationInfo& info = options_.calibration.info;
    return WriteOutput(absl::StrFormat(
        "%s: %s, calibrated on %d x %d tokens of %s; took %s and %.1f MB%s\n", options_.out_dir,
        SchemeName(options_.layer.scheme), info.nsamples, info.seqlen,
        info.source == kSelf ? "its own" : info.source, Duration(Clock::now() - start_),
        peak_bytes / 1e6, job.size() > 1 ? " a rank" : ""));
  }

 private:
  using Clock = std::chrono::steady_clock;

  static std::string Duration(Clock::duration duration) {
    const double seconds = std::chrono::duration<double>(duration).count();
    if (seconds < 60) return absl::StrFormat("%.1f s", seconds);
    const auto whole = static_cast<int64_t>(seconds);
    return absl::StrFormat("%d:%02d:%02d h", whole / 3600, whole / 60 % 60, whole % 60);
  }

  absl::Status ReadFlags() {
    QuantScheme& scheme = options_.layer.scheme;
    if (!scheme_.empty()) {
      auto parsed = ParseScheme(scheme_);
      if (!parsed.ok()) return Annotate(parsed.status(), "--scheme");
      scheme = *parsed;
    } else {
      scheme = {.weight_bits = weights_ == "gptq4"   ? 4
                               : weights_ == "gptq3" ? 3
                               : weights_ == "gptq2" ? 2
                                                     : 16,
                .act_bits = acts_,
                .kv_bits = kv_};
      const bool byte_books = weights_ == "vptq-c8";
      if (bits_.has_value() != (weights_ == "vptq" || byte_books)) {
        return absl::InvalidArgumentError(absl::StrCat(
            "--bits: expected with --weights vptq or vptq-c8, and only there, found --weights ",
            weights_));
      }
      if (bits_.has_value()) {
        // At most what was said, in hundredths; 2.1 is a little less than 210 of them.
        scheme.vptq.centibits = static_cast<int>(std::floor(100.0 * *bits_ + 1e-6));
        scheme.vptq.byte_books = byte_books;
      } else if (absl::StartsWith(weights_, "vptq-")) {
        auto shape = ParseVptqShape(weights_);
        if (!shape.ok()) return Annotate(shape.status(), "--weights");
        if (shape->length == 0) {
          return absl::InvalidArgumentError(
              absl::StrCat("--weights: expected such as vptq-v8-k4096-r256, found ", weights_));
        }
        scheme.vptq = *shape;
      } else if (weights_ != "fp16" && scheme.weight_bits == 16) {
        return absl::InvalidArgumentError(absl::StrCat(
            "--weights: expected fp16, gptq4, gptq3, gptq2 or such as vptq-v8-k4096-r256, found ",
            weights_));
      }
      if (scheme == QuantScheme()) {
        return absl::InvalidArgumentError(
            "nothing to quantise: expected --scheme, or fewer bits by --weights, --acts or --kv");
      }
    }
    if (scheme.vptq.centibits > 0 && vptq_ == "reference") {
      return absl::InvalidArgumentError("--bits: expected --vptq default, found reference");
    }
    if (scheme.vptq.byte_books && vptq_ == "reference") {
      return absl::InvalidArgumentError(absl::StrCat(
          "--vptq reference: expected books of fp16, as the published tool makes them, found ",
          SchemeName(scheme), ", with books of 8 bits"));
    }
    if (options_.layer.group_size == 0) {
      return absl::InvalidArgumentError("--group-size: expected at least 1, or -1, found 0");
    }
    if (options_.out_dir.empty()) {
      return absl::InvalidArgumentError("--out: expected a folder to make, found ''");
    }
    // Only what is coded or multiplied by codes has another order, which blocks cut.
    const bool orders_mlp = scheme.weight_format() == WeightFormat::kGptq || scheme.act_bits < 16;
    options_.layer.tp = tp_.value_or(orders_mlp ? UsualTp() : 0);
    // The published algorithm knows no exception.
    options_.layer.first_token_exact = options_.algorithm == "default";
    if (vptq_ != "default") {
      if (!scheme.vptq.any() || options_.algorithm != "default") {
        return absl::InvalidArgumentError(
            absl::StrCat("--vptq ", vptq_, ": expected --weights vptq-... and --rptq default"));
      }
      options_.layer.vptq = vptq_ == "reference"        ? VptqVariant::kReference
                            : vptq_ == "no-scaling"     ? VptqVariant::kNoScaling
                            : vptq_ == "no-invariances" ? VptqVariant::kNoInvariances
                                                        : VptqVariant::kNoFeedback;
      options_.algorithm = absl::StrCat("vptq-", vptq_);
    }
    options_.layer.seed = static_cast<uint64_t>(options_.seed);
    options_.calibration.info.nsamples = num_samples_;
    options_.calibration.info.seqlen = seqlen_;
    options_.tool_version = THINWIRE_VERSION;
    return absl::OkStatus();
  }

  absl::Status ChooseDevice(Job& job, ThreadPool& pool) {
    if (device_ == "cpu") return absl::OkStatus();
    options_.device = Device::Cuda(job.bootstrap().local_rank());
    Stream stream = Stream::Cpu(&pool);
    const absl::Status mine =
        UsageError(Annotate(CheckDeviceUsable(options_.device), "--device cuda"));
    const absl::Status agreed = AgreeOnStatus(mine, job.world(), stream);
    return mine.ok() ? agreed : mine;
  }

  // A size that leaves whole clusters of 16 channels in every block. A checkpoint that no cluster
  // of machines can run would be found out too late.
  int UsualTp() const {
    const absl::StatusOr<ModelConfig> config = LoadModelConfig(options_.model_dir);
    if (!config.ok()) return 1;  // whoever loads the model says why
    for (const int tp : {8, 4, 2}) {
      if (config->num_heads % tp == 0 && config->ffn % (16 * tp) == 0) return tp;
    }
    return 1;
  }

  // Rank 0 reads the text, or lets the model make it up; all have the windows then.
  absl::Status Calibrate(Job& job, ThreadPool& pool) {
    Stream stream = Stream::Cpu(&pool);
    absl::Status mine;
    if (job.leader()) {
      auto made = calibration_path_ == kSelf ? MakeUpCalibration(pool) : ReadCalibration();
      mine = made.status();
      if (made.ok()) options_.calibration = *std::move(made);
    }
    const absl::Status agreed = AgreeOnStatus(mine, job.world(), stream);
    if (!mine.ok()) return mine;  // in its own words, not those of "rank 0"
    TW_RETURN_IF_ERROR(agreed);
    return BroadcastCalibrationSet(options_.calibration, job.world(), stream);
  }

  absl::StatusOr<CalibrationSet> ReadCalibration() const {
    TW_ASSIGN_OR_RETURN(const std::unique_ptr<Tokenizer> tokenizer,
                        LoadTokenizer(options_.model_dir));
    TW_ASSIGN_OR_RETURN(const MappedFile file, MappedFile::Open(calibration_path_));
    const absl::string_view text(reinterpret_cast<const char*>(file.bytes().data()),
                                 file.bytes().size());
    const auto ids = tokenizer->Encode(text, /*add_special_tokens=*/false);
    if (!ids.ok()) return Annotate(ids.status(), calibration_path_);
    TW_ASSIGN_OR_RETURN(CalibrationSet set, CutCalibrationSet(*ids, num_samples_, seqlen_,
                                                              calibration_path_, file.bytes()));
    // The hash tells texts apart wherever they lie. A file called "self" keeps its path.
    const std::string name = std::filesystem::path(calibration_path_).filename();
    if (name != kSelf) set.info.source = name;
    return set;
  }

  absl::StatusOr<CalibrationSet> MakeUpCalibration(ThreadPool& pool) const {
    const auto alone = CreateLocalCommunicators(1);
    const EngineOptions engine_options = {.model_dir = options_.model_dir};
    Progress loading("loading", true);
    TW_ASSIGN_OR_RETURN(
        const std::unique_ptr<EngineRank> rank,
        EngineRank::Create(engine_options, RankLayout::OneMesh({}), alone.front().get(), &pool,
                           [&](int64_t done, int64_t total) { loading.Update(done, total); }));
    loading.Finish();
    Engine engine(rank.get());
    Progress progress("making up text", true);
    TW_ASSIGN_OR_RETURN(
        std::vector<std::vector<int32_t>> windows,
        SampleWindows(engine, num_samples_, seqlen_, options_.seed,
                      [&](int64_t done, int64_t total) { progress.Update(done, total); }));
    return MakeSelfCalibrationSet(std::move(windows));
  }

  absl::Status Quantize(Job& job, ThreadPool& pool) const {
    Progress progress("quantising", job.leader());
    Clock::time_point layer_start = Clock::now();
    const auto on_layer = [&](const LayerProgress& done) {
      const Clock::time_point now = Clock::now();
      progress.Finish();
      LogInfo(Describe(done, now - layer_start));
      if (done.resumed) progress.Skip(done.layer + 1);
      progress.Update(done.layer + 1, done.num_layers);
      layer_start = now;
    };
    if (refine_steps_ == 0) return QuantizeModel(options_, job.world(), pool, on_layer);
    return QuantizeModel(options_, job.world(), pool, on_layer,
                         [&](const std::string& from, const std::string& to) {
                           progress.Finish();
                           return Refine(from, to, pool);
                         });
  }

  absl::Status Refine(const std::string& from, const std::string& to, ThreadPool& pool) const {
    const Clock::time_point start = Clock::now();
    Progress progress("refining", true);
    // Windows differ more than steps do: means of the first and the last few.
    std::vector<double> losses;
    TW_RETURN_IF_ERROR(RefineFolder({.model_dir = options_.model_dir,
                                     .folder = from,
                                     .out = to,
                                     .windows = options_.calibration.windows,
                                     .num_steps = refine_steps_,
                                     .seed = options_.layer.seed},
                                    pool, [&](int64_t step, int64_t num_steps, double loss) {
                                      losses.push_back(loss);
                                      progress.Update(step + 1, num_steps);
                                    }));
    progress.Finish();
    const auto few = static_cast<std::ptrdiff_t>(std::min<size_t>(10, losses.size()));
    const auto mean = [&](auto begin) {
      return std::accumulate(begin, begin + few, 0.0) / static_cast<double>(few);
    };
    LogInfo(absl::StrFormat("refined in %d steps: %s; divergence from the model %.4f, then %.4f",
                            refine_steps_, Duration(Clock::now() - start), mean(losses.begin()),
                            mean(losses.end() - few)));
    return absl::OkStatus();
  }

  // "layer 3: 1.2 s; output error q 0.5%, k 0.4%, ..."
  static std::string Describe(const LayerProgress& done, Clock::duration duration) {
    if (done.resumed) return absl::StrCat("layer ", done.layer, ": done by an earlier run");
    std::string line = absl::StrCat("layer ", done.layer, ": ", Duration(duration));
    absl::string_view separator = "; output error ";
    for (const LinearRole role : kLinearRoles) {
      if (done.result->weight(role).codes.empty() && done.result->read_vector(role).empty()) {
        continue;
      }
      const auto index = static_cast<size_t>(role);
      absl::StrAppend(&line, separator, RoleWord(role),
                      absl::StrFormat(" %.2g%%", 100.0 * done.result->errors[index]));
      separator = ", ";
    }
    return line;
  }

  static absl::StatusOr<int64_t> PeakBytesOfAnyRank(Communicator& world, ThreadPool& pool) {
    Stream stream = Stream::Cpu(&pool);
    int64_t bytes = PeakResidentBytes();
    TW_RETURN_IF_ERROR(
        world.AllReduce(TensorView(&bytes, DType::kI64, {1}), ReduceOp::kMax, stream));
    return bytes;
  }

  static constexpr char kSelf[] = "self";

  const Clock::time_point start_ = Clock::now();
  CLI::App* app_;
  QuantizeOptions options_;
  std::string scheme_;
  std::string weights_ = "fp16";
  std::optional<double> bits_;
  std::string vptq_ = "default";
  int acts_ = 16;
  int kv_ = 16;
  std::string calibration_path_;
  int64_t num_samples_ = 128;
  int64_t seqlen_ = 512;
  int64_t refine_steps_ = 0;
  std::optional<int> tp_;
  int threads_ = 0;
  std::string device_ = "cpu";
};

}  // namespace

std::unique_ptr<Command> MakeQuantizeCommand(CLI::App& app) {
  return std::make_unique<QuantizeCommand>(app);
}

}  // namespace thinwire
