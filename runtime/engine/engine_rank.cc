#include "runtime/engine/engine_rank.h"

#include <algorithm>
#include <limits>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "kernels/core/device_properties.h"
#include "kernels/core/status_macros.h"
#include "kernels/core/stream_wait.h"
#include "parallel/comm/agreement.h"
#include "parallel/comm/nccl_communicator.h"
#include "parallel/plan/shard_plan.h"
#include "runtime/cache/noise.h"
#include "runtime/checkpoint/checkpoint.h"
#include "runtime/checkpoint/decoder_shape.h"
#include "runtime/checkpoint/folder_digest.h"
#include "runtime/checkpoint/model_config.h"
#include "runtime/checkpoint/synthetic_model.h"
#include "runtime/engine/gpu_placement.h"
#include "runtime/model/decoder_weights.h"

namespace thinwire {
namespace {

constexpr absl::Duration kMeasuringBudget = absl::Seconds(2);
// After the end of a bounded wait, for what has been told to end.
constexpr absl::Duration kWatchdogMargin = absl::Seconds(4);
// For GPUs to find each other; some seconds are usual.
constexpr absl::Duration kConnectTimeout = absl::Minutes(1);

// Says what memory was wanted for, where there is too little.
absl::Status AnnotateIfFull(const absl::Status& status, absl::string_view wanted) {
  return absl::IsResourceExhausted(status) ? Annotate(status, wanted) : status;
}

// Alike on all ranks.
absl::Status CheckStepsAhead(int64_t steps_ahead, const RankLayout& layout) {
  if (steps_ahead != 0 && steps_ahead != 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("--steps-ahead ", steps_ahead, ": expected 0 or 1"));
  }
  if (steps_ahead == 0 || (layout.num_groups() == 1 && layout.mesh(0).pp_size == 1)) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(
      absl::StrCat("--steps-ahead ", steps_ahead, " with ", layout.Description(),
                   ": expected 0, but with one stage in one group of ranks"));
}

}  // namespace

EngineRank::EngineRank(const EngineOptions& options, const RankLayout& layout, Communicator* world,
                       ThreadPool* pool)
    : options_(options),
      layout_(layout),
      group_(layout.GroupOf(world->rank())),
      world_(world),
      host_stream_(Stream::Cpu(pool)),
      stream_(Stream::Cpu(pool)) {}

EngineRank::~EngineRank() {
  // Within bounds, also where a rank was lost: freeing memory of a GPU waits for all it has to do.
  if (watch_.has_value()) (void)stream_.Synchronize();
  // Outlives what its waits refer to.
  StreamWait& waits = stream_.State<StreamWait>();
  waits.wait = nullptr;
  waits.wait_for_event = nullptr;
}

absl::StatusOr<std::unique_ptr<EngineRank>> EngineRank::Create(const EngineOptions& options,
                                                               const RankLayout& layout,
                                                               Communicator* world,
                                                               ThreadPool* pool,
                                                               const LoadProgress& progress) {
  TW_CHECK_EQ(layout.world_size(), world->size());
  TW_RETURN_IF_ERROR(CheckStepsAhead(options.steps_ahead, layout));
  std::unique_ptr<EngineRank> rank(new EngineRank(options, layout, world, pool));
  world->set_timeout(options.load_timeout);
  TW_RETURN_IF_ERROR(rank->AgreeOnTheJob());
  TW_RETURN_IF_ERROR(AgreeOnStatus(rank->OpenDevice(), *world, rank->host_stream_));
  if (rank->on_gpu() && !options.share_gpus) {
    TW_RETURN_IF_ERROR(CheckGpusDistinct(options.device, *world, rank->host_stream_));
  }
  TW_RETURN_IF_ERROR(AgreeOnStatus(rank->Load(progress), *world, rank->host_stream_));
  TW_RETURN_IF_ERROR(rank->SplitWorld());
  if (rank->on_gpu()) {
    TW_RETURN_IF_ERROR(AgreeOnStatus(rank->ConnectTensorRanks(), *world, rank->host_stream_));
    TW_RETURN_IF_ERROR(AgreeOnStatus(rank->ConnectStages(), *world, rank->host_stream_));
  }
  TW_RETURN_IF_ERROR(AgreeOnStatus(rank->AllocateCache(), *world, rank->host_stream_));
  TW_RETURN_IF_ERROR(rank->ConnectWires());
  rank->runner_.emplace(&*rank->decoder_, &*rank->cache_, &*rank->wire_, &rank->stream_,
                        options.max_seqs, options.steps_ahead);
  world->set_timeout(options.step_timeout);
  rank->group_ranks().set_timeout(options.step_timeout);
  rank->tp_->set_timeout(options.step_timeout);
  if (rank->stages_ != nullptr) rank->stages_->set_timeout(options.step_timeout);
  if (rank->watch_.has_value()) rank->watch_->set_timeout(options.step_timeout);
  if (rank->on_gpu() && options.on_hang != nullptr) {
    rank->watchdog_.emplace(options.step_timeout + kWatchdogMargin, options.on_hang);
  }
  for (const std::unique_ptr<GroupControl>& control : rank->controls_) {
    if (control != nullptr) control->set_timeout(options.step_timeout);
  }
  return rank;
}

absl::Status EngineRank::AgreeOnTheJob() {
  std::vector<NamedValue> values = {
      {"the version of the wire", absl::StrCat(kWireVersion)},
      {"--prefill-ranks", absl::StrCat(layout_.split() ? layout_.mesh(0).world_size() : 0)},
      {"--decode-ranks", absl::StrCat(layout_.split() ? layout_.mesh(1).world_size() : 0)},
      {"--tp", absl::StrCat(layout_.mesh(0).tp_size)},
      {"--pp", absl::StrCat(layout_.mesh(0).pp_size)},
      {"--device", options_.device.kind == DeviceKind::kCuda ? "cuda" : "cpu"},
      {"--share-gpus", options_.share_gpus ? "given" : "absent"},
      {"--dtype", std::string(DTypeName(options_.dtype))},
      {"--wire", WireName(options_.wire)},
      {"--hop", RowCodecName(options_.wire.hop)},
      {"--norm-codes", absl::StrCat(options_.wire.norm_bits)},
      {"--page-size", absl::StrCat(options_.page_size)},
      {"--max-seqs", absl::StrCat(options_.max_seqs)},
      {"--max-step-tokens", absl::StrCat(options_.max_step_tokens)},
      {"--steps-ahead", absl::StrCat(options_.steps_ahead)},
  };
  const auto digests = DigestFolder(options_.model_dir);
  TW_RETURN_IF_ERROR(AgreeOnStatus(digests.status(), *world_, host_stream_));
  for (const FileDigest& file : *digests) {
    values.push_back({absl::StrCat("the digest of ", file.name), file.digest});
  }
  return AgreeOnValues(values, *world_, host_stream_);
}

absl::Status EngineRank::OpenDevice() {
  if (!on_gpu()) return absl::OkStatus();
  TW_RETURN_IF_ERROR(CheckDeviceUsable(options_.device));
  TW_ASSIGN_OR_RETURN(stream_, Stream::Cuda(options_.device, &host_stream_.pool()));
  return absl::OkStatus();
}

absl::Status EngineRank::SplitWorld() {
  const int place = layout_.RankInGroup(rank());
  if (layout_.split()) {
    TW_ASSIGN_OR_RETURN(group_ranks_, world_->Split(group_, place));
  }
  TW_ASSIGN_OR_RETURN(tp_, group_ranks().Split(mesh().pp_rank(place), mesh().tp_rank(place)));
  if (on_gpu() && mesh().pp_size > 1) {
    TW_ASSIGN_OR_RETURN(stages_, group_ranks().Split(0, place));
  }
  // The leader comes first in each of its groups, the first of which it is in itself.
  controls_.resize(layout_.num_groups());
  if (group_ == 0) {
    controls_[0] = std::make_unique<GroupControl>(&group_ranks(), true, &stream_.pool());
  }
  for (int group = 1; group < layout_.num_groups(); ++group) {
    const bool takes_part = rank() == 0 || group == group_;
    TW_ASSIGN_OR_RETURN(std::unique_ptr<Communicator> ranks,
                        world_->Split(takes_part ? 0 : -1, rank()));
    if (!takes_part) continue;
    controls_[group] = std::make_unique<GroupControl>(std::move(ranks), false, &stream_.pool());
  }
  return absl::OkStatus();
}

absl::Status EngineRank::Connect(std::unique_ptr<Communicator>& ranks) const {
  ranks->set_timeout(std::min(kConnectTimeout, options_.load_timeout));
  // Sizes of messages follow from the plan, which all ranks have: hosts need not tell them.
  TW_ASSIGN_OR_RETURN(ranks, CreateNcclCommunicator(std::move(ranks), options_.device,
                                                    {.announces_sizes = false, .blocking = true}));
  ranks->set_timeout(options_.load_timeout);
  return absl::OkStatus();
}

absl::Status EngineRank::ConnectTensorRanks() {
  if (tp_->size() == 1) return absl::OkStatus();
  TW_RETURN_IF_ERROR(Annotate(Connect(tp_), "tensor-parallel ranks"));
  // Taken before the first step. Where GPUs cannot reach each other, NCCL carries codes.
  tp_->Peers().IgnoreError();
  return absl::OkStatus();
}

absl::Status EngineRank::ConnectStages() {
  std::vector<Communicator*> watched = {world_};
  if (tp_->size() > 1) watched.push_back(tp_.get());
  if (stages_ != nullptr) {
    TW_RETURN_IF_ERROR(Annotate(Connect(stages_), "ranks of all stages"));
    watched.push_back(stages_.get());
  }
  TW_ASSIGN_OR_RETURN(
      watch_, StreamWatch::Create(options_.device, std::move(watched), options_.load_timeout));
  StreamWait& waits = stream_.State<StreamWait>();
  waits.wait = [this](Stream& stream) { return watch_->Wait(stream); };
  waits.wait_for_event = [this](const Event& event) { return watch_->WaitFor(event); };
  return absl::OkStatus();
}

absl::Status EngineRank::Load(const LoadProgress& progress) {
  TW_ASSIGN_OR_RETURN(const ModelConfig config, LoadModelConfig(options_.model_dir));
  const ResidualCut cut = options_.wire.strategy.kind == WireStrategy::Kind::kExact
                              ? ResidualCut::kByOutputs
                              : ResidualCut::kByInputs;
  auto plan = ShardPlan::Create(ShapeOf(config), mesh(), layout_.RankInGroup(rank()), cut);
  if (!plan.ok()) {
    return layout_.split()
               ? Annotate(plan.status(), absl::StrCat("the ", GroupName(group_), " group of ",
                                                      mesh().world_size(), " ranks"))
               : plan.status();
  }
  TW_ASSIGN_OR_RETURN(const Checkpoint checkpoint, Checkpoint::Open(options_.model_dir));
  // Kernels for one token at a time round otherwise than those for more, so `exact` has the latter
  // whatever the room for sequences.
  const int64_t usual_tokens =
      std::max<int64_t>(options_.max_seqs, cut == ResidualCut::kByOutputs ? 2 : 1);
  auto weights = LoadDecoderWeights(checkpoint, config, *plan, progress, &stream_, usual_tokens);
  if (!weights.ok()) return AnnotateIfFull(weights.status(), "weights");
  auto decoder = Decoder::Create(config, *plan, *std::move(weights), options_.dtype,
                                 options_.max_step_tokens, stream_);
  if (!decoder.ok()) {
    return AnnotateIfFull(decoder.status(),
                          absl::StrCat("activations of ", options_.max_step_tokens, " tokens"));
  }
  decoder_ = *std::move(decoder);
  decoder_->set_captures_steps(options_.captures_steps);
  return absl::OkStatus();
}

absl::Status EngineRank::AllocateCache() {
  const KvCacheShape shape = decoder_->CacheShape(options_.page_size);
  const int64_t page_bytes = shape.PageBytes();
  const int64_t exact_bytes = options_.max_seqs * shape.ExactRowBytes();
  const int64_t pages_per_seq =
      (config().max_positions + options_.page_size - 1) / options_.page_size;
  int64_t num_pages = 0;
  absl::Status asked;  // a rank that cannot tell takes part in what follows nevertheless
  if (options_.kv_cache_bytes > 0) {
    num_pages = std::max<int64_t>(0, options_.kv_cache_bytes - exact_bytes) / page_bytes;
  } else {
    // Ranks of one host share its memory; assuming that all ranks do is the safe side.
    int64_t share = AvailableHostBytes() / 4 / world_->size();
    if (options_.device != Device::Cpu()) {
      const absl::StatusOr<DeviceProperties> gpu = GetDeviceProperties(options_.device);
      asked = gpu.status();
      share = gpu.ok() ? gpu->free_memory_bytes / 10 * 9 : 0;
      if (options_.share_gpus) share /= world_->size();
    }
    num_pages =
        std::max(std::min(options_.max_seqs * pages_per_seq, share / page_bytes), pages_per_seq);
  }
  // The rank of a group with the least room decides: max(-n) is -min(n).
  std::vector<int64_t> negative(layout_.num_groups(), std::numeric_limits<int64_t>::min());
  negative[group_] = -num_pages;
  TW_RETURN_IF_ERROR(
      world_->AllReduce(TensorView(negative.data(), DType::kI64, {layout_.num_groups()}),
                        ReduceOp::kMax, host_stream_));
  TW_RETURN_IF_ERROR(asked);
  for (const int64_t pages : negative) num_pages_.push_back(-pages);
  num_pages = num_pages_[group_];
  if (num_pages < 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("a KV cache of ", options_.kv_cache_bytes,
                     " bytes holds no page; one page of this rank needs ", page_bytes,
                     exact_bytes > 0 ? absl::StrCat(" and exact first tokens ", exact_bytes) : ""));
  }
  auto cache = PagedKvCache::Allocate(shape, num_pages, options_.max_seqs, stream_.device());
  if (!cache.ok()) {
    return Annotate(cache.status(),
                    absl::StrCat("a KV cache of ", num_pages, " pages of ", page_bytes, " bytes"));
  }
  cache_ = *std::move(cache);
  return absl::OkStatus();
}

absl::Status EngineRank::ConnectWires() {
  wire_.emplace(tp_.get(), stages_ != nullptr ? stages_.get() : &group_ranks(), options_.wire,
                &ledger_);
  if (options_.wire.automatic && tp_->size() > 1) {
    std::unique_ptr<Communicator> hosts;
    if (on_gpu()) {
      const int place = layout_.RankInGroup(rank());
      TW_ASSIGN_OR_RETURN(hosts, group_ranks().Split(mesh().pp_rank(place), mesh().tp_rank(place)));
    }
    Communicator& control = hosts != nullptr ? *hosts : *tp_;
    TW_ASSIGN_OR_RETURN(CachedStrategies strategies,
                        LoadOrMeasureStrategies(
                            options_.strategy_cache, *tp_, control, options_.wire, config().hidden,
                            options_.max_step_tokens, options_.dtype, kMeasuringBudget, stream_));
    strategies_age_ = strategies.age;
    wire_->UseTable(std::move(strategies.table));
  }
  if (layout_.split()) {
    TW_RETURN_IF_ERROR(CheckRowsAlike(cache_->shape(), decoder_->plan().layers(),
                                      config().num_layers, *world_, host_stream_));
    TW_ASSIGN_OR_RETURN(const std::vector<KvTransfer> transfers,
                        PlanKvTransfers(ShapeOf(config()), layout_));
    hand_off_.emplace(transfers, decoder_->plan(), &*cache_, world_, &ledger_, &stream_);
  }
  return absl::OkStatus();
}

SchedulerLimits EngineRank::scheduler_limits(int group) const {
  return {.page_size = options_.page_size,
          .num_pages = num_pages_[group],
          .max_step_tokens = options_.max_step_tokens,
          .max_seqs = options_.max_seqs,
          .max_context = config().max_positions,
          // Its first token is also elsewhere, beside the codes, once for every slot.
          .own_first_page = cache_->shape().exact_first_tokens,
          .max_steps_in_flight = layout_.mesh(group).pp_size,
          .steps_ahead = options_.steps_ahead};
}

RankReport EngineRank::Report() const {
  RankReport report;
  report.ledger = ledger_;
  for (const std::unique_ptr<GroupControl>& control : controls_) {
    if (control != nullptr) report.ledger += control->ledger();
  }
  report.memory = {.weight_bytes = decoder_->weight_bytes(),
                   .kv_cache_bytes = cache_->size_bytes(),
                   .activation_bytes = decoder_->activation_bytes(),
                   .peak_resident_bytes = PeakResidentBytes()};
  return report;
}

template <typename Run>
auto EngineRank::Watched(int64_t step, const Run& run) {
  if (watchdog_.has_value()) watchdog_->Begin(step);
  auto done = run();
  if (watchdog_.has_value()) watchdog_->End();
  return done;
}

absl::Status EngineRank::Execute(const StepPlan& plan) {
  GroupControl& control = *controls_[group_];
  if (plan.kind != StepPlan::Kind::kRun) {
    TW_RETURN_IF_ERROR(Watched(plan.id, [&] { return runner_->Settle(); }));
  }
  switch (plan.kind) {
    case StepPlan::Kind::kRun: {
      TW_RETURN_IF_ERROR(Watched(plan.id, [&] { return runner_->Launch(plan); }));
      if (rank() == 0 || !samples_here(group_)) return absl::OkStatus();
      TW_ASSIGN_OR_RETURN(const StepResult result,
                          Watched(plan.id, [&] { return runner_->TakeResult(); }));
      return control.SendToLeader(result.Serialize());
    }
    case StepPlan::Kind::kSend:
      for (const MovedSeq& seq : plan.moved) {
        TW_ASSIGN_OR_RETURN(const KvPlace place, runner_->PlaceOf(seq.slot, seq.num_tokens));
        TW_RETURN_IF_ERROR(hand_off_->Send(seq.id, place));
      }
      return absl::OkStatus();
    case StepPlan::Kind::kReceive:
      for (const MovedSeq& seq : plan.moved) {
        TW_RETURN_IF_ERROR(runner_->Bind(seq.slot, seq.pages));
        TW_ASSIGN_OR_RETURN(const KvPlace place, runner_->PlaceOf(seq.slot, seq.num_tokens));
        TW_RETURN_IF_ERROR(hand_off_->Receive(seq.id, place));
      }
      return absl::OkStatus();
    case StepPlan::Kind::kAssume:
      if (!noisy_ && IsSyntheticModel(options_.model_dir)) {
        TW_RETURN_IF_ERROR(FillWithNoise(*cache_, stream_));
        noisy_ = true;
      }
      for (const MovedSeq& seq : plan.moved) {
        TW_RETURN_IF_ERROR(runner_->Bind(seq.slot, seq.pages));
      }
      return absl::OkStatus();
    case StepPlan::Kind::kReport:
      return rank() == 0 ? absl::OkStatus() : control.SendToLeader(Report().Serialize());
    case StepPlan::Kind::kReset:
      ledger_.Clear();
      control.ledger().Clear();
      return absl::OkStatus();
    case StepPlan::Kind::kIdle:
      return rank() == 0 ? absl::OkStatus() : control.SendToLeader("");
    case StepPlan::Kind::kStop:
      return absl::OkStatus();
  }
  return absl::InternalError(
      absl::StrCat("step plan of unknown kind ", static_cast<int>(plan.kind)));
}

absl::Status EngineRank::Abort(const absl::Status& why) {
  world_->Abort(why);
  return why;
}

absl::Status EngineRank::Follow() {
  while (true) {
    const absl::StatusOr<std::string> bytes = controls_[group_]->RecvFromLeader();
    // Of several communicators the others would not hear of it.
    if (!bytes.ok()) return layout_.split() ? Abort(bytes.status()) : bytes.status();
    const absl::StatusOr<StepPlan> parsed = StepPlan::Parse(*bytes);
    if (!parsed.ok()) return Abort(parsed.status());
    const StepPlan& plan = *parsed;
    const absl::Status status = Execute(plan);
    if (!status.ok()) {
      return Abort(Annotate(status, absl::StrCat("rank ", rank(), ", step ", plan.id)));
    }
    if (plan.kind == StepPlan::Kind::kStop) return absl::OkStatus();
  }
}

absl::Status EngineRank::Lead(int group, const StepPlan& plan) {
  GroupControl& control = *controls_[group];
  absl::Status status;
  if (!control.alone()) status = control.SendToAll(plan.Serialize());
  if (status.ok() && group == group_) status = Execute(plan);
  if (group != group_ && plan.kind == StepPlan::Kind::kReset) control.ledger().Clear();
  if (status.ok() && plan.kind == StepPlan::Kind::kIdle) status = control.AwaitAll();
  if (status.ok()) return status;
  return Abort(Annotate(status, absl::StrCat("rank ", rank(), ", step ", plan.id)));
}

absl::StatusOr<StepResult> EngineRank::ReceiveResult(int group) {
  if (samples_here(group)) {
    const int64_t step = runner_->oldest_step();
    absl::StatusOr<StepResult> result = Watched(step, [&] { return runner_->TakeResult(); });
    if (result.ok()) return result;
    return Abort(Annotate(result.status(), absl::StrCat("rank ", rank(), ", step ", step)));
  }
  const absl::StatusOr<std::string> bytes = controls_[group]->RecvFrom(SamplerOf(group));
  if (!bytes.ok()) return layout_.split() ? Abort(bytes.status()) : bytes.status();
  absl::StatusOr<StepResult> result = StepResult::Parse(*bytes);
  if (!result.ok()) return Abort(result.status());
  return result;
}

absl::StatusOr<std::vector<RankReport>> EngineRank::CollectReports() {
  for (int group = 0; group < layout_.num_groups(); ++group) {
    TW_RETURN_IF_ERROR(Lead(group, {.kind = StepPlan::Kind::kReport}));
  }
  std::vector<RankReport> reports = {Report()};
  for (int peer = 1; peer < world_->size(); ++peer) {
    TW_ASSIGN_OR_RETURN(const std::string bytes,
                        controls_[layout_.GroupOf(peer)]->RecvFrom(layout_.RankInGroup(peer)));
    TW_ASSIGN_OR_RETURN(const RankReport report, RankReport::Parse(bytes));
    reports.push_back(report);
  }
  return reports;
}

}  // namespace thinwire
