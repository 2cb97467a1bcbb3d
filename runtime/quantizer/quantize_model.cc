#include "runtime/quantizer/quantize_model.h"

#include <filesystem>
#include <memory>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "kernels/core/atomic_file.h"
#include "kernels/core/status_macros.h"
#include "nlohmann/json.hpp"
#include "parallel/comm/agreement.h"
#include "runtime/checkpoint/checkpoint.h"
#include "runtime/checkpoint/gptq_config.h"
#include "runtime/checkpoint/model_config.h"
#include "runtime/checkpoint/thinwire_file.h"
#include "runtime/json/json_file.h"
#include "runtime/quantizer/layer_pass.h"
#include "runtime/quantizer/layer_result.h"

namespace thinwire {
namespace {

namespace fs = std::filesystem;

ThinwireFile MakeThinwireFile(const QuantizeOptions& options) {
  return {.scheme = options.layer.scheme,
          .group_size = options.layer.group_size,
          .first_token_exact = options.layer.first_token_exact,
          .calibration = options.calibration.info,
          .seed = options.seed,
          .tp = options.layer.tp,
          .tool_version = options.tool_version};
}

GptqConfig MakeGptqConfig(const QuantizeOptions& options) {
  return {.bits = options.layer.scheme.weight_bits,
          .group_size = options.layer.group_size,
          .desc_act = true,
          .sym = false};
}

// The windows of a rank: consecutive, as equal in number as they divide.
std::vector<std::vector<int32_t>> WindowsOf(const CalibrationSet& set, int rank, int num_ranks) {
  const auto total = static_cast<int64_t>(set.windows.size());
  const int64_t begin = total * rank / num_ranks;
  const int64_t end = total * (rank + 1) / num_ranks;
  return {set.windows.begin() + begin, set.windows.begin() + end};
}

// Rank 0's part: the folder.
class OutputFolder {
 public:
  explicit OutputFolder(const QuantizeOptions* options)
      : options_(*options), partial_(options->out_dir + ".partial") {}

  const std::string& partial() const { return partial_; }

  // Begins, or finds what an earlier run left.
  absl::Status Open() const {
    std::error_code error;
    if (fs::exists(options_.out_dir, error)) {
      return absl::AlreadyExistsError(
          absl::StrCat(options_.out_dir, ": exists already; give another --out or remove it"));
    }
    const ThinwireFile wanted = MakeThinwireFile(options_);
    if (!fs::exists(partial_ + "/" + kThinwireFileName, error)) {
      fs::create_directories(partial_, error);
      if (error) {
        return absl::ErrnoToStatus(error.value(),
                                   absl::StrCat(partial_, ": cannot create the folder"));
      }
      return WriteThinwireFile(partial_, wanted);
    }
    TW_ASSIGN_OR_RETURN(const ThinwireFile found, ReadThinwireFile(partial_));
    if (found == wanted) return absl::OkStatus();
    return absl::FailedPreconditionError(
        absl::StrCat(partial_, ": was begun with other options (", Difference(found, wanted),
                     "); give the same to go on, or remove the folder"));
  }

  // config.json with what was done, and the files beside it that are neither weights nor index.
  absl::Status WriteConfig() const {
    const std::string config_path = options_.model_dir + "/config.json";
    TW_ASSIGN_OR_RETURN(nlohmann::json config, ReadJsonFile(config_path));
    if (options_.layer.scheme.weight_format() == WeightFormat::kGptq) {
      config["quantization_config"] = GptqConfigJson(MakeGptqConfig(options_));
    }
    TW_RETURN_IF_ERROR(WriteFileAtomically(partial_ + "/config.json", config.dump(2) + "\n"));
    std::error_code error;
    for (const fs::directory_entry& entry : fs::directory_iterator(options_.model_dir, error)) {
      const std::string name = entry.path().filename().string();
      if (!entry.is_regular_file(error) || !IsCompanion(name)) continue;
      fs::copy_file(entry.path(), partial_ + "/" + name, fs::copy_options::overwrite_existing,
                    error);
      if (error) {
        return absl::ErrnoToStatus(error.value(), absl::StrCat(partial_, "/", name, ": copying"));
      }
    }
    return absl::OkStatus();
  }

  absl::Status Publish() const {
    std::error_code error;
    fs::rename(partial_, options_.out_dir, error);
    if (!error) return absl::OkStatus();
    return absl::ErrnoToStatus(error.value(),
                               absl::StrCat(partial_, ": cannot rename to ", options_.out_dir));
  }

 private:
  // Tokenizer and generation files: small, and none of the model's weights.
  static bool IsCompanion(const std::string& name) {
    if (name == "config.json" || absl::EndsWith(name, ".index.json") || name == "golden.json" ||
        name == kThinwireFileName) {
      return false;
    }
    return absl::EndsWith(name, ".json") || absl::EndsWith(name, ".model") ||
           absl::EndsWith(name, ".txt") || absl::EndsWith(name, ".jinja") || name == "LICENSE";
  }

  static std::string Difference(const ThinwireFile& found, const ThinwireFile& wanted) {
    if (found.scheme != wanted.scheme) {
      return absl::StrCat("scheme ", SchemeName(found.scheme), ", now ", SchemeName(wanted.scheme));
    }
    if (found.algorithm != wanted.algorithm) {
      return absl::StrCat("--rptq ", found.algorithm, ", now ", wanted.algorithm);
    }
    if (found.group_size != wanted.group_size) {
      return absl::StrCat("--group-size ", found.group_size, ", now ", wanted.group_size);
    }
    if (found.seed != wanted.seed) {
      return absl::StrCat("--seed ", found.seed, ", now ", wanted.seed);
    }
    if (found.tp != wanted.tp) return absl::StrCat("--tp ", found.tp, ", now ", wanted.tp);
    if (!(found.calibration == wanted.calibration)) {
      return absl::StrCat("calibration on ", found.calibration.nsamples, " x ",
                          found.calibration.seqlen, " tokens of ", found.calibration.source,
                          ", now ", wanted.calibration.nsamples, " x ", wanted.calibration.seqlen,
                          " of ", wanted.calibration.source);
    }
    return absl::StrCat("made by version ", found.tool_version, ", this is ", wanted.tool_version);
  }

  const QuantizeOptions& options_;
  const std::string partial_;
};

}  // namespace

absl::Status QuantizeModel(const QuantizeOptions& options, Communicator& world, ThreadPool& pool,
                           const std::function<void(const LayerProgress&)>& on_layer) {
  Stream stream = Stream::Cpu(&pool);
  const bool leader = world.rank() == 0;
  const OutputFolder folder(&options);
  TW_ASSIGN_OR_RETURN(const ModelConfig config, LoadModelConfig(options.model_dir));
  if (config.gptq.has_value()) {
    return absl::FailedPreconditionError(
        absl::StrCat(options.model_dir, ": is quantised already; expected the original model"));
  }
  TW_ASSIGN_OR_RETURN(const Checkpoint source, Checkpoint::Open(options.model_dir));
  TW_RETURN_IF_ERROR(AgreeOnStatus(leader ? folder.Open() : absl::OkStatus(), world, stream));
  const LayerFiles files(folder.partial(), &source, &config, MakeGptqConfig(options),
                         options.layer.tp);
  const int64_t seqlen = options.calibration.info.seqlen;
  TW_ASSIGN_OR_RETURN(const std::unique_ptr<LayerPass> pass,
                      LayerPass::Create(config, seqlen, &pool));
  const auto windows = WindowsOf(options.calibration, world.rank(), world.size());
  TW_ASSIGN_OR_RETURN(ResidualStream target, pass->Embed(source, windows));
  TW_ASSIGN_OR_RETURN(ResidualStream input, pass->Embed(source, windows));
  LayerQuantizer quantizer(options.layer, &config, pass.get(), &world, &pool);
  for (int64_t layer = 0; layer < config.num_layers; ++layer) {
    TW_ASSIGN_OR_RETURN(const DenseLayer dense, LoadDenseLayer(source, config, layer));
    const bool resumed = files.Has(layer);
    if (!resumed) {
      auto result = quantizer.Quantize(dense, target, input);
      absl::Status status =
          result.ok() ? absl::OkStatus() : Annotate(result.status(), absl::StrCat("layer ", layer));
      if (!status.ok() && world.size() > 1)
        world.Abort(status);  // others may wait inside the layer
      if (status.ok() && leader) status = files.Write(layer, *result);
      TW_RETURN_IF_ERROR(AgreeOnStatus(status, world, stream));
    }
    // What was written is what counts: a resumed run goes on from the same numbers.
    TW_ASSIGN_OR_RETURN(const LayerResult result, files.Read(layer, dense));
    const DenseLayer quantised = Dequantized(result, dense);
    TW_ASSIGN_OR_RETURN(const LayerWeights original_weights, ToLayerWeights(dense));
    TW_ASSIGN_OR_RETURN(const LayerWeights quantised_weights, ToLayerWeights(quantised));
    TW_RETURN_IF_ERROR(pass->Advance(original_weights, SiteRoundings(), target));
    TW_RETURN_IF_ERROR(pass->Advance(
        quantised_weights, SiteRoundings(result.codes, options.layer.first_token_exact), input));
    if (on_layer != nullptr) {
      on_layer(
          {.layer = layer, .num_layers = config.num_layers, .resumed = resumed, .result = &result});
    }
  }
  const auto finish = [&]() -> absl::Status {
    TW_RETURN_IF_ERROR(files.WriteEnds());
    TW_RETURN_IF_ERROR(files.Finish());
    TW_RETURN_IF_ERROR(folder.WriteConfig());
    return folder.Publish();
  };
  return AgreeOnStatus(leader ? finish() : absl::OkStatus(), world, stream);
}

}  // namespace thinwire
