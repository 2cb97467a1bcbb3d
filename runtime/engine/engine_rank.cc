#include "runtime/engine/engine_rank.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "kernels/core/status_macros.h"
#include "parallel/comm/agreement.h"
#include "parallel/plan/shard_plan.h"
#include "runtime/checkpoint/checkpoint.h"
#include "runtime/checkpoint/folder_digest.h"
#include "runtime/checkpoint/model_config.h"
#include "runtime/engine/byte_stream.h"
#include "runtime/model/decoder_weights.h"

namespace thinwire {
namespace {

constexpr absl::Duration kMeasuringBudget = absl::Seconds(2);

}  // namespace

std::string RankReport::Serialize() const {
  ByteWriter writer;
  writer.PutString(ledger.Serialize());
  writer.Put(memory);
  return writer.Take();
}

absl::StatusOr<RankReport> RankReport::Parse(absl::string_view bytes) {
  ByteReader reader(bytes);
  RankReport report;
  const std::string ledger = reader.GetString();
  report.memory = reader.Get<MemoryReport>();
  TW_RETURN_IF_ERROR(reader.status());
  TW_ASSIGN_OR_RETURN(report.ledger, Ledger::Parse(ledger));
  return report;
}

EngineRank::EngineRank(const EngineOptions& options, const Mesh& mesh, Communicator* world,
                       ThreadPool* pool)
    : options_(options), mesh_(mesh), world_(world), stream_(Stream::Cpu(pool)) {}

absl::StatusOr<std::unique_ptr<EngineRank>> EngineRank::Create(const EngineOptions& options,
                                                               const Mesh& mesh,
                                                               Communicator* world,
                                                               ThreadPool* pool,
                                                               const LoadProgress& progress) {
  TW_CHECK_EQ(mesh.world_size(), world->size());
  std::unique_ptr<EngineRank> rank(new EngineRank(options, mesh, world, pool));
  world->set_timeout(options.load_timeout);
  TW_RETURN_IF_ERROR(rank->AgreeOnTheJob());
  TW_RETURN_IF_ERROR(AgreeOnStatus(rank->Load(progress), *world, rank->stream_));
  TW_ASSIGN_OR_RETURN(rank->tp_,
                      world->Split(mesh.pp_rank(world->rank()), mesh.tp_rank(world->rank())));
  TW_RETURN_IF_ERROR(AgreeOnStatus(rank->AllocateCache(), *world, rank->stream_));
  rank->wire_.emplace(rank->tp_.get(), world, options.wire, &rank->ledger_);
  if (options.wire.automatic && rank->tp_->size() > 1) {
    TW_ASSIGN_OR_RETURN(CachedStrategies strategies,
                        LoadOrMeasureStrategies(options.strategy_cache, *rank->tp_, options.wire,
                                                rank->config().hidden, options.max_step_tokens,
                                                options.dtype, kMeasuringBudget, rank->stream_));
    rank->strategies_age_ = strategies.age;
    rank->wire_->UseTable(std::move(strategies.table));
  }
  rank->runner_.emplace(&*rank->decoder_, &*rank->cache_, &*rank->wire_, &rank->stream_,
                        options.max_seqs);
  world->set_timeout(options.step_timeout);
  rank->tp_->set_timeout(options.step_timeout);
  return rank;
}

absl::Status EngineRank::AgreeOnTheJob() {
  std::vector<NamedValue> values = {
      {"the version of the wire", absl::StrCat(kWireVersion)},
      {"--tp", absl::StrCat(mesh_.tp_size)},
      {"--pp", absl::StrCat(mesh_.pp_size)},
      {"--dtype", std::string(DTypeName(options_.dtype))},
      {"--wire", WireName(options_.wire)},
      {"--hop", RowCodecName(options_.wire.hop)},
      {"--norm-codes", absl::StrCat(options_.wire.norm_bits)},
      {"--page-size", absl::StrCat(options_.page_size)},
      {"--max-seqs", absl::StrCat(options_.max_seqs)},
      {"--max-step-tokens", absl::StrCat(options_.max_step_tokens)},
  };
  const auto digests = DigestFolder(options_.model_dir);
  TW_RETURN_IF_ERROR(AgreeOnStatus(digests.status(), *world_, stream_));
  for (const FileDigest& file : *digests) {
    values.push_back({absl::StrCat("the digest of ", file.name), file.digest});
  }
  return AgreeOnValues(values, *world_, stream_);
}

absl::Status EngineRank::Load(const LoadProgress& progress) {
  TW_ASSIGN_OR_RETURN(const ModelConfig config, LoadModelConfig(options_.model_dir));
  const DecoderShape shape = {.num_layers = config.num_layers,
                              .num_heads = config.num_heads,
                              .num_kv_heads = config.num_kv_heads,
                              .ffn = config.ffn,
                              .vocab = config.vocab};
  const ResidualCut cut = options_.wire.strategy.kind == WireStrategy::Kind::kExact
                              ? ResidualCut::kByOutputs
                              : ResidualCut::kByInputs;
  TW_ASSIGN_OR_RETURN(const ShardPlan plan, ShardPlan::Create(shape, mesh_, world_->rank(), cut));
  TW_ASSIGN_OR_RETURN(const Checkpoint checkpoint, Checkpoint::Open(options_.model_dir));
  TW_ASSIGN_OR_RETURN(DecoderWeights weights,
                      LoadDecoderWeights(checkpoint, config, plan, progress));
  TW_ASSIGN_OR_RETURN(decoder_, Decoder::Create(config, plan, std::move(weights), options_.dtype,
                                                options_.max_step_tokens, stream_.device()));
  return absl::OkStatus();
}

absl::Status EngineRank::AllocateCache() {
  const KvCacheShape shape = decoder_->CacheShape(options_.page_size);
  const int64_t page_bytes = shape.PageBytes();
  const int64_t exact_bytes = options_.max_seqs * shape.ExactRowBytes();
  const int64_t pages_per_seq =
      (config().max_positions + options_.page_size - 1) / options_.page_size;
  int64_t num_pages = 0;
  if (options_.kv_cache_bytes > 0) {
    num_pages = std::max<int64_t>(0, options_.kv_cache_bytes - exact_bytes) / page_bytes;
  } else {
    // Ranks of one host share its memory; assuming that all ranks do is the safe side.
    const int64_t share = AvailableHostBytes() / 4 / world_->size();
    num_pages =
        std::max(std::min(options_.max_seqs * pages_per_seq, share / page_bytes), pages_per_seq);
  }
  // The rank with the least room decides: max(-n) is -min(n).
  int64_t negative = -num_pages;
  TW_RETURN_IF_ERROR(
      world_->AllReduce(TensorView(&negative, DType::kI64, {1}), ReduceOp::kMax, stream_));
  num_pages = -negative;
  if (num_pages < 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("a KV cache of ", options_.kv_cache_bytes,
                     " bytes holds no page; one page of this rank needs ", page_bytes,
                     exact_bytes > 0 ? absl::StrCat(" and exact first tokens ", exact_bytes) : ""));
  }
  TW_ASSIGN_OR_RETURN(
      cache_, PagedKvCache::Allocate(shape, num_pages, options_.max_seqs, stream_.device()));
  return absl::OkStatus();
}

SchedulerLimits EngineRank::scheduler_limits() const {
  return {.page_size = options_.page_size,
          .num_pages = cache_->num_pages(),
          .max_step_tokens = options_.max_step_tokens,
          .max_seqs = options_.max_seqs,
          .max_context = config().max_positions,
          .max_steps_in_flight = mesh_.pp_size};
}

RankReport EngineRank::Report() const {
  RankReport report;
  report.ledger = ledger_;
  report.memory = {.weight_bytes = decoder_->weight_bytes(),
                   .kv_cache_bytes = cache_->size_bytes(),
                   .activation_bytes = decoder_->activation_bytes(),
                   .peak_resident_bytes = PeakResidentBytes()};
  return report;
}

absl::Status EngineRank::Execute(const StepPlan& plan, StepResult& result) {
  switch (plan.kind) {
    case StepPlan::Kind::kRun: {
      TW_ASSIGN_OR_RETURN(result, runner_->Run(plan));
      if (rank() != 0 && rank() == sampling_rank()) {
        return wire_->SendBytes(result.Serialize(), 0, stream_);
      }
      return absl::OkStatus();
    }
    case StepPlan::Kind::kReport:
      return rank() == 0 ? absl::OkStatus() : wire_->SendBytes(Report().Serialize(), 0, stream_);
    case StepPlan::Kind::kReset:
      ledger_.Clear();
      return absl::OkStatus();
    case StepPlan::Kind::kStop:
      return absl::OkStatus();
  }
  return absl::InternalError(
      absl::StrCat("step plan of unknown kind ", static_cast<int>(plan.kind)));
}

absl::Status EngineRank::Follow() {
  while (true) {
    TW_ASSIGN_OR_RETURN(const std::string bytes, wire_->RecvBytes(0, stream_));
    TW_ASSIGN_OR_RETURN(const StepPlan plan, StepPlan::Parse(bytes));
    if (plan.kind == StepPlan::Kind::kStop) return absl::OkStatus();
    StepResult result;
    const absl::Status status = Execute(plan, result);
    if (!status.ok()) {
      const absl::Status cause =
          Annotate(status, absl::StrCat("rank ", rank(), ", step ", plan.id));
      world_->Abort(cause);
      return cause;
    }
  }
}

absl::StatusOr<StepResult> EngineRank::Lead(const StepPlan& plan) {
  StepResult result;
  absl::Status status;
  if (world_->size() > 1) {
    const std::string bytes = plan.Serialize();
    for (int peer = 1; peer < world_->size() && status.ok(); ++peer) {
      status = wire_->SendBytes(bytes, peer, stream_);
    }
  }
  if (status.ok()) status = Execute(plan, result);
  if (!status.ok()) {
    const absl::Status cause = Annotate(status, absl::StrCat("rank ", rank(), ", step ", plan.id));
    world_->Abort(cause);
    return cause;
  }
  return result;
}

absl::StatusOr<StepResult> EngineRank::ReceiveResult() {
  TW_ASSIGN_OR_RETURN(const std::string bytes, wire_->RecvBytes(sampling_rank(), stream_));
  return StepResult::Parse(bytes);
}

absl::StatusOr<std::vector<RankReport>> EngineRank::CollectReports() {
  TW_RETURN_IF_ERROR(Lead({.kind = StepPlan::Kind::kReport}).status());
  std::vector<RankReport> reports;
  reports.push_back(Report());
  for (int peer = 1; peer < world_->size(); ++peer) {
    TW_ASSIGN_OR_RETURN(const std::string bytes, wire_->RecvBytes(peer, stream_));
    TW_ASSIGN_OR_RETURN(const RankReport report, RankReport::Parse(bytes));
    reports.push_back(report);
  }
  return reports;
}

}  // namespace thinwire
