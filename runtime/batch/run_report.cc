#include "runtime/batch/run_report.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "absl/strings/str_format.h"

namespace thinwire {
namespace {

using Json = nlohmann::ordered_json;

std::string ToString(absl::string_view text) { return std::string(text); }

// Nearest rank; 0 of nothing.
double Percentile(std::vector<double> values, double fraction) {
  if (values.empty()) return 0.0;
  std::sort(values.begin(), values.end());
  const auto index = static_cast<size_t>(std::ceil(fraction * values.size()));
  return values[std::clamp<size_t>(index, 1, values.size()) - 1];
}

Json EntryJson(const LedgerEntry& entry) {
  return {{"logical_bytes", entry.logical_bytes},   {"payload_bytes", entry.payload_bytes},
          {"metadata_bytes", entry.metadata_bytes}, {"calls", entry.calls},
          {"codec_us", entry.codec_ns / 1000},      {"transfer_us", entry.transfer_ns / 1000}};
}

Json MemoryJson(const MemoryReport& memory) {
  return {{"weight_bytes", memory.weight_bytes},
          {"kv_cache_bytes", memory.kv_cache_bytes},
          {"activation_bytes", memory.activation_bytes},
          {"peak_resident_bytes", memory.peak_resident_bytes}};
}

// Sent bytes over those of fp16.
double OfFp16(const LedgerEntry& entry) {
  return static_cast<double>(entry.payload_bytes + entry.metadata_bytes) /
         std::max<double>(entry.logical_bytes, 1.0);
}

Json GroupsJson(const Engine& engine) {
  const RankLayout& layout = engine.rank().layout();
  Json groups = Json::array();
  for (int group = 0; group < layout.num_groups(); ++group) {
    const EngineCounters counters = engine.counters(group);
    groups.push_back({{"name", ToString(GroupName(group))},
                      {"first_rank", layout.FirstRank(group)},
                      {"ranks", layout.mesh(group).world_size()},
                      {"tp", layout.mesh(group).tp_size},
                      {"pp", layout.mesh(group).pp_size},
                      {"steps", counters.num_steps},
                      {"prompt_tokens", counters.num_prompt_tokens},
                      {"generated_tokens", counters.num_generated_tokens},
                      {"preemptions", counters.num_preemptions}});
  }
  return groups;
}

Json HandOffJson(const EngineCounters& counters, const LedgerEntry& entry) {
  return {{"sequences", counters.num_hand_offs},
          {"tokens", counters.num_handed_tokens},
          {"of_fp16", OfFp16(entry)},
          {"codec_us", entry.codec_ns / 1000},
          {"transfer_us", entry.transfer_ns / 1000}};
}

}  // namespace

std::vector<std::string> DescribeGroups(const Engine& engine, const Ledger& total) {
  std::vector<std::string> lines;
  const RankLayout& layout = engine.rank().layout();
  if (!layout.split()) return lines;
  for (int group = 0; group < layout.num_groups(); ++group) {
    const EngineCounters counters = engine.counters(group);
    lines.push_back(absl::StrFormat(
        "%s: ranks %d to %d, %d steps, %d prompt and %d generated tokens, %d preemptions",
        GroupName(group), layout.FirstRank(group), layout.FirstRank(group + 1) - 1,
        counters.num_steps, counters.num_prompt_tokens, counters.num_generated_tokens,
        counters.num_preemptions));
  }
  const EngineCounters counters = engine.counters();
  const LedgerEntry& entry = total.at(Site::kKvHandOff);
  lines.push_back(absl::StrFormat(
      "kv_handoff: %d sequences of %d tokens, %.3f MB, %.3f of fp16, %.1f ms sending and waiting",
      counters.num_hand_offs, counters.num_handed_tokens,
      (entry.payload_bytes + entry.metadata_bytes) / 1e6, OfFp16(entry), entry.transfer_ns / 1e6));
  return lines;
}

std::string DescribeWire(const Ledger& total) {
  const LedgerEntry sum = total.Total();
  if (sum.calls == 0) return "wire: one rank, nothing sent";
  const auto sent = static_cast<double>(sum.payload_bytes + sum.metadata_bytes);
  const std::string text = absl::StrFormat(
      "wire: %.3f MB sent, %.2f of the fp16 baseline's %.3f MB, %d calls", sent / 1e6,
      sent / std::max<double>(sum.logical_bytes, 1.0), sum.logical_bytes / 1e6, sum.calls);
  LedgerEntry sums = total.at(Site::kAttentionOut);
  sums += total.at(Site::kMlpOut);
  if (sums.calls == 0) return text;
  return absl::StrFormat("%s; layers' sums alone %.2f", text, OfFp16(sums));
}

std::string RunReportJson(const RunSummary& summary, const Engine& engine,
                          const std::vector<RankReport>& reports) {
  const EngineRank& rank = engine.rank();
  const EngineCounters counters = engine.counters();
  Ledger wire;
  MemoryReport memory;
  Json ranks = Json::array();
  for (const RankReport& report : reports) {
    wire += report.ledger;
    memory.weight_bytes += report.memory.weight_bytes;
    memory.kv_cache_bytes += report.memory.kv_cache_bytes;
    memory.activation_bytes += report.memory.activation_bytes;
    memory.peak_resident_bytes += report.memory.peak_resident_bytes;
    ranks.push_back(MemoryJson(report.memory));
  }
  Json sites = Json::object();
  for (int i = 0; i < kNumSites; ++i) {
    const auto site = static_cast<Site>(i);
    if (wire.at(site).calls > 0) sites[ToString(SiteName(site))] = EntryJson(wire.at(site));
  }
  const EngineOptions& options = rank.options();
  const double seconds = std::max(summary.seconds, 1e-9);
  Json memory_json = MemoryJson(memory);
  memory_json["ranks"] = std::move(ranks);
  Json report = {
      {"model", summary.model_dir},
      {"architecture", rank.config().architecture},
      {"tp", rank.mesh().tp_size},
      {"pp", rank.mesh().pp_size},
      {"dtype", ToString(DTypeName(options.dtype))},
      {"wire_format", WireName(options.wire)},
      {"hop_format", RowCodecName(options.wire.hop)},
      {"num_layers", rank.config().num_layers},
      {"prompts", summary.num_prompts},
      {"failed_prompts", summary.num_failed},
      {"prompt_tokens", counters.num_prompt_tokens},
      {"generated_tokens", counters.num_generated_tokens},
      {"steps", counters.num_steps},
      {"preemptions", counters.num_preemptions},
      {"seconds", summary.seconds},
      {"tokens_per_second", counters.num_generated_tokens / seconds},
      {"ttft_ms", Percentile(summary.ttft_ms, 0.5)},
      {"ttft_p99_ms", Percentile(summary.ttft_ms, 0.99)},
      {"wire", {{"total", EntryJson(wire.Total())}, {"sites", std::move(sites)}}},
      {"memory", std::move(memory_json)},
  };
  if (rank.layout().split()) {
    report["groups"] = GroupsJson(engine);
    report["kv_handoff"] = HandOffJson(counters, wire.at(Site::kKvHandOff));
  }
  return report.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

}  // namespace thinwire
