#include "launcher/report/run_record.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "kernels/core/mapped_file.h"
#include "kernels/core/status_macros.h"
#include "runtime/json/json_file.h"

namespace thinwire {
namespace {

using nlohmann::json;

// Sums of a few of them must not overflow.
constexpr int64_t kMaxCount = int64_t{1} << 53;
constexpr int64_t kMaxRanks = int64_t{1} << 20;

constexpr std::array<absl::string_view, 8> kStepOrder = {"embedding",  "attention_out", "mlp_out",
                                                         "stage_hop",  "final_norm",    "logits",
                                                         "kv_handoff", "control"};

constexpr char kExpected[] =
    "expected what thinwire run --report writes, or lines of thinwire bench comm --json";

// A number >= 0, integers included.
absl::StatusOr<double> Amount(const JsonFields& fields, absl::string_view key) {
  const json* value = fields.Get(key);
  if (value == nullptr || !value->is_number() || !std::isfinite(value->get<double>()) ||
      value->get<double>() < 0) {
    return fields.Expected(key, "a number of at least 0");
  }
  return value->get<double>();
}

absl::StatusOr<double> AmountOr(const JsonFields& fields, absl::string_view key, double absent) {
  if (!fields.Has(key)) return absent;
  return Amount(fields, key);
}

absl::StatusOr<std::optional<double>> OptionalAmount(const JsonFields& fields,
                                                     absl::string_view key) {
  if (!fields.Has(key)) return std::optional<double>();
  TW_ASSIGN_OR_RETURN(const double value, Amount(fields, key));
  return std::optional<double>(value);
}

absl::StatusOr<int64_t> Count(const JsonFields& fields, absl::string_view key) {
  return fields.Int(key, 0, kMaxCount);
}

absl::StatusOr<int64_t> CountOr(const JsonFields& fields, absl::string_view key) {
  return fields.IntOr(key, 0, 0, kMaxCount);
}

absl::StatusOr<SiteTraffic> ReadSite(const JsonFields& fields, const std::string& name) {
  SiteTraffic site;
  site.site = name;
  TW_ASSIGN_OR_RETURN(site.logical_bytes, Count(fields, "logical_bytes"));
  TW_ASSIGN_OR_RETURN(site.payload_bytes, Count(fields, "payload_bytes"));
  TW_ASSIGN_OR_RETURN(site.metadata_bytes, CountOr(fields, "metadata_bytes"));
  TW_ASSIGN_OR_RETURN(site.calls, CountOr(fields, "calls"));
  TW_ASSIGN_OR_RETURN(site.transfer_us, AmountOr(fields, "transfer_us", 0.0));
  TW_ASSIGN_OR_RETURN(site.codec_us, OptionalAmount(fields, "codec_us"));
  return site;
}

size_t Place(const SiteTraffic& site) {
  return std::find(kStepOrder.begin(), kStepOrder.end(), site.site) - kStepOrder.begin();
}

absl::Status ReadSites(const JsonFields& top, RunRecord& run) {
  TW_ASSIGN_OR_RETURN(const JsonFields wire, top.Object("wire"));
  if (!wire.Has("sites")) return wire.Expected("sites", "an object");
  TW_ASSIGN_OR_RETURN(const JsonFields sites, wire.Object("sites"));
  for (const auto& [name, value] : wire.Get("sites")->items()) {
    if (value.is_null()) continue;
    TW_ASSIGN_OR_RETURN(const JsonFields fields, sites.Object(name));
    TW_ASSIGN_OR_RETURN(SiteTraffic site, ReadSite(fields, name));
    run.sites.push_back(std::move(site));
  }
  SortSites(run.sites);
  return absl::OkStatus();
}

absl::Status ReadGroups(const JsonFields& fields, RunRecord& run) {
  if (!fields.Has("groups")) return absl::OkStatus();
  const json& groups = *fields.Get("groups");
  if (!groups.is_array() || groups.size() != 2) {
    return fields.Expected("groups", "a prefill and a decode group");
  }
  TW_ASSIGN_OR_RETURN(
      const JsonFields decode,
      JsonFields::Create(groups[1], absl::StrCat(fields.context(), ": \"groups\"[1]")));
  TW_ASSIGN_OR_RETURN(run.decode_tp, decode.Int("tp", 1, kMaxRanks));
  return absl::OkStatus();
}

absl::StatusOr<RunRecord> ReadRun(const JsonFields& fields, const std::string& path) {
  RunRecord run;
  run.file = path;
  TW_ASSIGN_OR_RETURN(run.model, fields.StringOr("model", ""));
  TW_ASSIGN_OR_RETURN(run.architecture, fields.StringOr("architecture", ""));
  TW_ASSIGN_OR_RETURN(run.scheme, fields.StringOr("scheme", ""));
  TW_ASSIGN_OR_RETURN(run.dtype, fields.StringOr("dtype", ""));
  TW_ASSIGN_OR_RETURN(run.wire, fields.StringOr("wire_format", "native"));
  TW_ASSIGN_OR_RETURN(run.tp, fields.IntOr("tp", 1, 1, kMaxRanks));
  TW_ASSIGN_OR_RETURN(run.pp, fields.IntOr("pp", 1, 1, kMaxRanks));
  TW_RETURN_IF_ERROR(ReadGroups(fields, run));
  if (fields.Has("num_layers")) {
    TW_ASSIGN_OR_RETURN(run.num_layers, fields.Int("num_layers", 1, kMaxCount));
  }
  TW_ASSIGN_OR_RETURN(run.prompts, CountOr(fields, "prompts"));
  TW_ASSIGN_OR_RETURN(run.failed_prompts, CountOr(fields, "failed_prompts"));
  TW_ASSIGN_OR_RETURN(run.prompt_tokens, Count(fields, "prompt_tokens"));
  TW_ASSIGN_OR_RETURN(run.generated_tokens, Count(fields, "generated_tokens"));
  TW_ASSIGN_OR_RETURN(const double seconds, Amount(fields, "seconds"));
  const double rate = static_cast<double>(run.generated_tokens) / std::max(seconds, 1e-9);
  TW_ASSIGN_OR_RETURN(run.tokens_per_second, AmountOr(fields, "tokens_per_second", rate));
  TW_ASSIGN_OR_RETURN(run.ttft_ms, AmountOr(fields, "ttft_ms", 0.0));
  TW_ASSIGN_OR_RETURN(run.step_us, AmountOr(fields, "step_us", seconds * 1e6));
  TW_RETURN_IF_ERROR(ReadSites(fields, run));
  return run;
}

absl::StatusOr<CommRecord> ReadComm(const JsonFields& fields) {
  CommRecord record;
  TW_ASSIGN_OR_RETURN(record.strategy, fields.String("strategy"));
  TW_ASSIGN_OR_RETURN(record.ranks, fields.Int("ranks", 1, kMaxRanks));
  TW_ASSIGN_OR_RETURN(record.logical_bytes, Count(fields, "logical_bytes"));
  TW_ASSIGN_OR_RETURN(record.p50_us, OptionalAmount(fields, "p50_us"));
  TW_ASSIGN_OR_RETURN(record.p99_us, OptionalAmount(fields, "p99_us"));
  if (fields.Has("wire_bytes")) {
    TW_ASSIGN_OR_RETURN(record.wire_bytes, Count(fields, "wire_bytes"));
  }
  TW_ASSIGN_OR_RETURN(record.effective_gbps, OptionalAmount(fields, "effective_gbps"));
  TW_ASSIGN_OR_RETURN(record.wire_gbps, OptionalAmount(fields, "wire_gbps"));
  if (const json* error = fields.Get("error")) {
    if (!error->is_string() && !error->is_number()) {
      return fields.Expected("error", "a number or a string");
    }
    record.error = error->is_string() ? error->get<std::string>()
                                      : absl::StrFormat("%.3g", error->get<double>());
  }
  if (!record.p50_us.has_value() && record.error.empty()) {
    return fields.Expected("p50_us", "a number of at least 0, or an \"error\"");
  }
  return record;
}

// Whether `line` by itself is an object of bench comm.
bool IsCommLine(absl::string_view line) {
  const json value = json::parse(line.begin(), line.end(), nullptr, /*allow_exceptions=*/false);
  return value.is_object() && value.contains("strategy");
}

absl::Status ReadCommLines(const std::string& path, absl::string_view text,
                           std::vector<CommRecord>& comm) {
  int64_t number = 0;
  for (const absl::string_view line : absl::StrSplit(text, '\n')) {
    ++number;
    if (absl::StripAsciiWhitespace(line).empty()) continue;
    const std::string context = absl::StrCat(path, ": line ", number);
    const json value = json::parse(line.begin(), line.end(), nullptr, /*allow_exceptions=*/false);
    if (value.is_discarded()) {
      return absl::InvalidArgumentError(
          absl::StrCat(context, ": expected a JSON object, found ", QuotedForMessage(line)));
    }
    TW_ASSIGN_OR_RETURN(const JsonFields fields, JsonFields::Create(value, context));
    TW_ASSIGN_OR_RETURN(CommRecord record, ReadComm(fields));
    comm.push_back(std::move(record));
  }
  return absl::OkStatus();
}

}  // namespace

SiteTraffic RunRecord::Total() const {
  SiteTraffic total;
  total.site = "total";
  for (const SiteTraffic& site : sites) {
    total.logical_bytes += site.logical_bytes;
    total.payload_bytes += site.payload_bytes;
    total.metadata_bytes += site.metadata_bytes;
    total.calls += site.calls;
    total.transfer_us += site.transfer_us;
    if (site.codec_us.has_value()) total.codec_us = total.codec_us.value_or(0.0) + *site.codec_us;
  }
  return total;
}

double RunRecord::PerToken(int64_t bytes) const {
  return num_tokens() == 0 ? 0.0 : static_cast<double>(bytes) / static_cast<double>(num_tokens());
}

StepShares RunRecord::Shares() const {
  const SiteTraffic total = Total();
  const double codec = total.codec_us.value_or(0.0);
  const double time =
      std::max(step_us * static_cast<double>(num_ranks()), total.transfer_us + codec);
  if (time <= 0.0) return {};
  return {.transfer = total.transfer_us / time, .codec = codec / time};
}

const SiteTraffic* RunRecord::Find(const std::string& site) const {
  for (const SiteTraffic& traffic : sites) {
    if (traffic.site == site) return &traffic;
  }
  return nullptr;
}

void SortSites(std::vector<SiteTraffic>& sites) {
  std::stable_sort(sites.begin(), sites.end(),
                   [](const SiteTraffic& a, const SiteTraffic& b) { return Place(a) < Place(b); });
}

absl::Status ReadRecording(const std::string& path, Recordings& recordings) {
  {
    TW_ASSIGN_OR_RETURN(const MappedFile file, MappedFile::Open(path));
    const absl::string_view text = absl::StripLeadingAsciiWhitespace(
        absl::string_view(reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size()));
    if (IsCommLine(text.substr(0, text.find('\n')))) {
      recordings.files.push_back(path);
      return ReadCommLines(path, text, recordings.comm);
    }
  }
  TW_ASSIGN_OR_RETURN(const json value, ReadJsonFile(path));
  if (!value.is_object() || !value.contains("wire")) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": ", kExpected, ", found ",
                     value.is_object() ? "an object without \"wire\"" : DescribeJson(value)));
  }
  TW_ASSIGN_OR_RETURN(const JsonFields fields, JsonFields::Create(value, path));
  if (!fields.Has("wire")) return fields.Expected("wire", "an object");
  TW_ASSIGN_OR_RETURN(RunRecord run, ReadRun(fields, path));
  recordings.files.push_back(path);
  recordings.runs.push_back(std::move(run));
  return absl::OkStatus();
}

}  // namespace thinwire
