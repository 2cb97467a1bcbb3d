#include "runtime/quantizer/quantize_model.h"

#include <algorithm>
#include <filesystem>
#include <memory>
#include <optional>
#include <vector>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "kernels/attention/kv_codes.h"
#include "kernels/core/status_macros.h"
#include "parallel/comm/agreement.h"
#include "parallel/plan/shard_plan.h"
#include "runtime/checkpoint/checkpoint.h"
#include "runtime/checkpoint/decoder_shape.h"
#include "runtime/checkpoint/gptq_config.h"
#include "runtime/checkpoint/model_config.h"
#include "runtime/checkpoint/thinwire_file.h"
#include "runtime/quantizer/layer_pass.h"
#include "runtime/quantizer/layer_result.h"
#include "runtime/quantizer/output_folder.h"
#include "runtime/quantizer/reference_quantizer.h"
#include "runtime/quantizer/shape_plan.h"

namespace thinwire {
namespace {

namespace fs = std::filesystem;

ThinwireFile MakeThinwireFile(const QuantizeOptions& options) {
  return {.scheme = options.layer.scheme,
          .algorithm = options.algorithm,
          .group_size = options.layer.group_size,
          .act_order = options.layer.act_order,
          .first_token_exact = options.layer.first_token_exact,
          .calibration = options.calibration.info,
          .seed = options.seed,
          .tp = options.layer.tp,
          .tool_version = options.tool_version};
}

GptqConfig MakeGptqConfig(const QuantizeOptions& options) {
  return {.bits = options.layer.scheme.weight_bits,
          .group_size = options.layer.group_size,
          .desc_act = options.layer.act_order,
          .sym = false};
}

// The windows of a rank: consecutive, as equal in number as they divide.
std::vector<std::vector<int32_t>> WindowsOf(const CalibrationSet& set, int rank, int num_ranks) {
  const auto total = static_cast<int64_t>(set.windows.size());
  const int64_t begin = total * rank / num_ranks;
  const int64_t end = total * (rank + 1) / num_ranks;
  return {set.windows.begin() + begin, set.windows.begin() + end};
}

// Where rank 0 alone does something: its words, not those of "rank 0", everywhere else the same
// error.
absl::Status AgreeOnLeader(const absl::Status& mine, Communicator& world, Stream& stream) {
  const absl::Status agreed = AgreeOnStatus(mine, world, stream);
  return mine.ok() ? agreed : mine;
}

absl::Status CheckShape(const QuantizeOptions& options, const ModelConfig& config) {
  const int64_t seqlen = options.calibration.info.seqlen;
  if (seqlen > config.max_positions) {
    return absl::InvalidArgumentError(absl::StrCat("--seqlen: expected at most the context of ",
                                                   options.model_dir, ", ", config.max_positions,
                                                   ", found ", seqlen));
  }
  if (options.layer.scheme.weight_format() == WeightFormat::kVptq &&
      (options.algorithm == "reference" || options.algorithm == "per-tensor")) {
    return absl::UnimplementedError(absl::StrCat(
        "--rptq ", options.algorithm, ": expected --weights fp16, gptq4, gptq3 or gptq2"));
  }
  if (!options.layer.act_order && options.algorithm != "default") {
    return absl::InvalidArgumentError(absl::StrCat(
        "--no-act-order: expected --rptq default; the weight groups of --rptq ", options.algorithm,
        " are clusters of channels, which cannot stay where they are"));
  }
  if (options.layer.scheme.kv_bits < 16 && config.head_dim % kKvUnit != 0) {
    return absl::UnimplementedError(absl::StrCat(
        "--kv ", options.layer.scheme.kv_bits, ": heads of ", options.model_dir, " have ",
        config.head_dim, " channels; codes of K and V need a multiple of ", kKvUnit));
  }
  const DecoderShape shape = ShapeOf(config);
  const std::vector<int> sizes = ShardPlan::UsableTpSizes(shape);
  const int tp = options.layer.tp;
  if (tp == 0 || std::find(sizes.begin(), sizes.end(), tp) != sizes.end()) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(absl::StrCat("--tp: expected 0 or a size that ",
                                                 options.model_dir, " can be cut into (",
                                                 absl::StrJoin(sizes, ", "), "), found ", tp));
}

absl::Status CheckIds(const CalibrationSet& set, const ModelConfig& config) {
  for (const std::vector<int32_t>& window : set.windows) {
    for (const int32_t id : window) {
      if (id >= 0 && id < config.vocab) continue;
      return absl::InvalidArgumentError(
          absl::StrCat(set.info.source, ": token id ", id,
                       " is outside the model's vocabulary; expected 0 to ", config.vocab - 1));
    }
  }
  return absl::OkStatus();
}

// The model's config, where it can be quantised as the options say.
absl::StatusOr<ModelConfig> CheckedConfig(const QuantizeOptions& options) {
  TW_ASSIGN_OR_RETURN(ModelConfig config, LoadModelConfig(options.model_dir));
  std::error_code error;
  if (config.gptq.has_value() || config.vptq.has_value() ||
      fs::exists(absl::StrCat(options.model_dir, "/", kThinwireFileName), error)) {
    return absl::FailedPreconditionError(
        absl::StrCat(options.model_dir, ": is quantised already; expected the original model"));
  }
  TW_RETURN_IF_ERROR(CheckShape(options, config));
  return config;
}

OutputFolder MakeFolder(const QuantizeOptions& options) {
  return {options.model_dir, options.out_dir, MakeThinwireFile(options), options.device.kind};
}

// Whether an earlier run did the layer: rank 0 looks, as others might see what it writes meanwhile.
absl::StatusOr<bool> FoundByLeader(const LayerFiles& files, int64_t layer, Communicator& world,
                                   Stream& stream) {
  int32_t found = world.rank() == 0 && files.Has(layer) ? 1 : 0;
  TW_RETURN_IF_ERROR(world.Broadcast(TensorView(&found, DType::kI32, {1}), 0, stream));
  return found != 0;
}

// Shapes by layer, of an earlier run or chosen now; none where all are alike.
absl::StatusOr<std::vector<LayerShapes>> ShapesOf(const QuantizeOptions& options,
                                                  const ModelConfig& config,
                                                  const Checkpoint& source,
                                                  const OutputFolder& folder, Communicator& world,
                                                  ThreadPool& pool, Stream* gpu) {
  const VptqShape& wanted = options.layer.scheme.vptq;
  if (wanted.centibits == 0) return std::vector<LayerShapes>();
  Stream stream = Stream::Cpu(&pool);
  std::error_code error;
  const bool leader = world.rank() == 0;
  int32_t found =
      leader && fs::exists(absl::StrCat(folder.partial(), "/", kShapePlanName), error) ? 1 : 0;
  TW_RETURN_IF_ERROR(world.Broadcast(TensorView(&found, DType::kI32, {1}), 0, stream));
  if (found == 0) {
    const auto made = PlanShapes(source, config, options.calibration, wanted,
                                 static_cast<uint64_t>(options.seed), world, pool, gpu);
    if (!made.ok()) {
      if (world.size() > 1) world.Abort(made.status());  // others may wait inside
      return made.status();
    }
    TW_RETURN_IF_ERROR(AgreeOnLeader(
        leader ? WriteShapePlan(folder.partial(), *made) : absl::OkStatus(), world, stream));
  }
  auto shapes = ReadShapePlan(folder.partial(), config.num_layers);
  TW_RETURN_IF_ERROR(AgreeOnStatus(shapes.status(), world, stream));
  return shapes;
}

}  // namespace

absl::Status CheckQuantizeOptions(const QuantizeOptions& options, Communicator& world,
                                  ThreadPool& pool) {
  Stream stream = Stream::Cpu(&pool);
  const absl::Status mine = CheckedConfig(options).status();
  TW_RETURN_IF_ERROR(AgreeOnStatus(mine, world, stream));
  const bool leader = world.rank() == 0;
  return AgreeOnLeader(leader ? MakeFolder(options).CheckFree() : absl::OkStatus(), world, stream);
}

absl::Status QuantizeModel(const QuantizeOptions& options, Communicator& world, ThreadPool& pool,
                           const std::function<void(const LayerProgress&)>& on_layer,
                           const FolderRefiner& refine) {
  Stream stream = Stream::Cpu(&pool);
  const bool leader = world.rank() == 0;
  const OutputFolder folder = MakeFolder(options);
  const GptqConfig gptq = MakeGptqConfig(options);
  TW_ASSIGN_OR_RETURN(const ModelConfig config, CheckedConfig(options));
  TW_RETURN_IF_ERROR(CheckIds(options.calibration, config));
  TW_ASSIGN_OR_RETURN(const Checkpoint source, Checkpoint::Open(options.model_dir));
  const int64_t seqlen = options.calibration.info.seqlen;
  std::optional<Stream> gpu;
  if (options.device.kind == DeviceKind::kCuda) {
    auto opened = Stream::Cuda(options.device, &pool);
    TW_RETURN_IF_ERROR(AgreeOnStatus(opened.status(), world, stream));
    gpu.emplace(*std::move(opened));
  }
  Stream* const on_gpu = gpu.has_value() ? &*gpu : nullptr;
  TW_ASSIGN_OR_RETURN(const std::unique_ptr<LayerPass> pass,
                      LayerPass::Create(config, seqlen, &pool, on_gpu));
  const auto windows = WindowsOf(options.calibration, world.rank(), world.size());
  TW_ASSIGN_OR_RETURN(ResidualStream target, pass->Embed(source, windows));
  TW_ASSIGN_OR_RETURN(ResidualStream input, pass->Embed(source, windows));
  // What is wrong with a late layer is known before hours are spent on those before it.
  for (int64_t layer = 0; layer < config.num_layers; ++layer) {
    TW_RETURN_IF_ERROR(LoadDenseLayer(source, config, layer).status());
  }
  TW_RETURN_IF_ERROR(AgreeOnLeader(leader ? folder.Open() : absl::OkStatus(), world, stream));
  const absl::Cleanup clean = [&] {
    if (leader) folder.RemoveIfEmpty();
  };
  const LayerFiles files(folder.partial(), &source, &config, gptq, options.layer.tp);
  LayerQuantizerOptions layer_options = options.layer;
  layer_options.num_windows = static_cast<int64_t>(options.calibration.windows.size());
  LayerQuantizer quantizer(layer_options, &config, pass.get(), &world, &pool, on_gpu);
  ReferenceQuantizer reference(options.layer, options.algorithm == "reference",
                               static_cast<uint64_t>(options.seed), &config, pass.get(), &world,
                               &pool, on_gpu);
  TW_ASSIGN_OR_RETURN(const std::vector<LayerShapes> shapes,
                      ShapesOf(options, config, source, folder, world, pool, on_gpu));
  for (int64_t layer = 0; layer < config.num_layers; ++layer) {
    TW_ASSIGN_OR_RETURN(const DenseLayer dense, LoadDenseLayer(source, config, layer));
    TW_ASSIGN_OR_RETURN(const bool resumed, FoundByLeader(files, layer, world, stream));
    if (!resumed) {
      const bool ours =
          options.algorithm == "default" || absl::StartsWith(options.algorithm, "vptq-");
      const auto made =
          ours ? quantizer.Quantize(dense, target, input, shapes.empty() ? nullptr : &shapes[layer])
               : reference.Quantize(dense, input);
      if (!made.ok()) {
        const absl::Status status = Annotate(made.status(), absl::StrCat("layer ", layer));
        // Others may wait inside the layer.
        if (world.size() > 1) world.Abort(status);
        return status;
      }
      TW_RETURN_IF_ERROR(
          AgreeOnLeader(leader ? files.Write(layer, *made) : absl::OkStatus(), world, stream));
    }
    // What was written is what counts: a resumed run goes on from the same numbers.
    absl::StatusOr<LayerResult> result = files.Read(layer, dense);
    TW_RETURN_IF_ERROR(AgreeOnStatus(result.status(), world, stream));
    const DenseLayer quantised = Dequantized(*result, dense);
    TW_ASSIGN_OR_RETURN(const LayerWeights original_weights, ToLayerWeights(dense, pass->stream()));
    TW_ASSIGN_OR_RETURN(const LayerWeights quantised_weights,
                        ToLayerWeights(quantised, pass->stream()));
    TW_RETURN_IF_ERROR(pass->Advance(original_weights, SiteRoundings(), target));
    TW_RETURN_IF_ERROR(pass->Advance(
        quantised_weights, SiteRoundings(result->codes, options.layer.first_token_exact), input));
    if (on_layer != nullptr) {
      on_layer({.layer = layer,
                .num_layers = config.num_layers,
                .resumed = resumed,
                .result = &*result});
    }
  }
  const auto finish = [&]() -> absl::Status {
    TW_RETURN_IF_ERROR(files.WriteEnds());
    TW_RETURN_IF_ERROR(files.Finish());
    TW_ASSIGN_OR_RETURN(const std::optional<VptqConfig> vptq, files.ReadVptqConfig());
    TW_RETURN_IF_ERROR(folder.WriteConfig(gptq, vptq));
    if (refine == nullptr) return folder.Publish();
    TW_RETURN_IF_ERROR(refine(folder.partial(), folder.refined()));
    return folder.PublishRefined();
  };
  return AgreeOnLeader(leader ? finish() : absl::OkStatus(), world, stream);
}

}  // namespace thinwire
