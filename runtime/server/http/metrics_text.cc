#include "runtime/server/http/metrics_text.h"

#include <prometheus/metric_family.h>
#include <prometheus/text_serializer.h>

#include <limits>
#include <utility>
#include <vector>

namespace thinwire {
namespace {

using prometheus::ClientMetric;
using prometheus::MetricFamily;
using prometheus::MetricType;
using Labels = std::vector<ClientMetric::Label>;

class Families {
 public:
  void Gauge(const std::string& name, const std::string& help, double value, Labels labels = {}) {
    ClientMetric& metric = Add(name, help, MetricType::Gauge, std::move(labels));
    metric.gauge.value = value;
  }

  void Counter(const std::string& name, const std::string& help, double value, Labels labels = {}) {
    ClientMetric& metric = Add(name, help, MetricType::Counter, std::move(labels));
    metric.counter.value = value;
  }

  void Histogram(const std::string& name, const std::string& help, const TimeHistogram& times) {
    ClientMetric& metric = Add(name, help, MetricType::Histogram, {});
    uint64_t cumulative = 0;
    for (int i = 0; i <= TimeHistogram::kNumBounds; ++i) {
      cumulative += static_cast<uint64_t>(times.counts[i]);
      const bool last = i == TimeHistogram::kNumBounds;
      metric.histogram.bucket.push_back(
          {cumulative, last ? std::numeric_limits<double>::infinity() : TimeHistogram::Bound(i)});
    }
    metric.histogram.sample_count = cumulative;
    metric.histogram.sample_sum = times.sum;
  }

  std::string Text() const { return prometheus::TextSerializer().Serialize(families_); }

 private:
  ClientMetric& Add(const std::string& name, const std::string& help, MetricType type,
                    Labels labels) {
    if (families_.empty() || families_.back().name != name) {
      families_.push_back({name, help, type, {}});
    }
    ClientMetric& metric = families_.back().metric.emplace_back();
    metric.label = std::move(labels);
    return metric;
  }

  std::vector<MetricFamily> families_;
};

void AddTotals(const ServingLoad& load, Families& out) {
  const ServingTotals& totals = load.totals;
  out.Counter("thinwire_prompt_tokens_total", "Prompt tokens of requests taken",
              static_cast<double>(totals.num_prompt_tokens));
  out.Counter("thinwire_prefix_cache_tokens_total",
              "Prompt tokens that were not computed, as their KV pages were there",
              static_cast<double>(totals.engine.num_reused_tokens));
  out.Counter("thinwire_generation_tokens_total", "Tokens generated for requests",
              static_cast<double>(totals.num_generated_tokens));
  for (const char* reason : {"stop", "stop_string", "length", "cancelled", "deadline", "error"}) {
    const auto it = totals.ended.find(reason);
    out.Counter("thinwire_requests_total", "Requests that ended",
                it == totals.ended.end() ? 0.0 : static_cast<double>(it->second),
                {{"finish_reason", reason}});
  }
  for (const auto& [reason, count] : load.rejected) {
    out.Counter("thinwire_rejections_total", "Requests refused at once", static_cast<double>(count),
                {{"reason", reason}});
  }
  out.Counter("thinwire_preemptions_total", "Sequences that gave up their KV pages",
              static_cast<double>(totals.engine.num_preemptions));
  out.Counter("thinwire_steps_total", "Steps of the engine",
              static_cast<double>(totals.engine.num_steps));
  out.Histogram("thinwire_queue_seconds", "Waiting for the engine", totals.queue);
  out.Histogram("thinwire_prefill_seconds", "From the engine's taking it to the first token",
                totals.prefill);
  out.Histogram("thinwire_decode_seconds", "From the first token to the end", totals.decode);
  out.Histogram("thinwire_ttft_seconds", "From the request to its first token", totals.ttft);
  out.Histogram("thinwire_itl_seconds", "Between two tokens of a request", totals.itl);
  out.Histogram("thinwire_e2e_seconds", "From the request to its end", totals.e2e);
  out.Histogram("thinwire_step_seconds", "One step of the engine", totals.step);
}

void AddWire(const Ledger& wire, Families& out) {
  struct Column {
    const char* name;
    const char* help;
    int64_t LedgerEntry::*member;
    double unit;
  };
  const Column columns[] = {
      {"thinwire_wire_logical_bytes_total", "What rank 0 would have sent in fp16",
       &LedgerEntry::logical_bytes, 1.0},
      {"thinwire_wire_payload_bytes_total", "Elements or codes that rank 0 sent",
       &LedgerEntry::payload_bytes, 1.0},
      {"thinwire_wire_metadata_bytes_total", "What rank 0 sent beside them",
       &LedgerEntry::metadata_bytes, 1.0},
      {"thinwire_wire_calls_total", "Messages and collectives of rank 0", &LedgerEntry::calls, 1.0},
      {"thinwire_wire_transfer_seconds_total", "Rank 0 inside communicators, waiting included",
       &LedgerEntry::transfer_ns, 1e-9},
  };
  for (const Column& column : columns) {
    for (int site = 0; site < kNumSites; ++site) {
      const LedgerEntry& entry = wire.at(static_cast<Site>(site));
      out.Counter(column.name, column.help, static_cast<double>(entry.*column.member) * column.unit,
                  {{"site", std::string(SiteName(static_cast<Site>(site)))}});
    }
  }
}

}  // namespace

std::string MetricsText(const ServingCore& core, bool vllm_names) {
  const ServingLoad load = core.loop.load();
  const auto running = static_cast<double>(load.num_running);
  const auto queued = static_cast<double>(load.num_queued);
  const double usage = load.kv_pages == 0 ? 0.0
                                          : static_cast<double>(load.kv_pages_used) /
                                                static_cast<double>(load.kv_pages);
  Families out;
  for (const ServingState state :
       {ServingState::kStarting, ServingState::kReady, ServingState::kDraining,
        ServingState::kFailed, ServingState::kStopped}) {
    out.Gauge("thinwire_state", "1 for the state that the server is in",
              load.state == state ? 1.0 : 0.0, {{"state", std::string(ServingStateName(state))}});
  }
  out.Gauge("thinwire_requests_running", "Requests that the engine runs", running);
  out.Gauge("thinwire_requests_waiting", "Requests in the queue", queued);
  out.Gauge("thinwire_waiting_tokens", "Tokens that requests in the queue may become",
            static_cast<double>(load.num_queued_tokens));
  out.Gauge("thinwire_predicted_wait_seconds", "In the queue, of a request that came now",
            load.predicted_wait_seconds);
  out.Gauge("thinwire_kv_cache_usage_ratio", "KV pages in use", usage);
  out.Gauge("thinwire_kv_pages", "KV pages", static_cast<double>(load.kv_pages_used),
            {{"state", "used"}});
  out.Gauge("thinwire_kv_pages", "KV pages",
            static_cast<double>(load.kv_pages - load.kv_pages_used), {{"state", "free"}});
  out.Gauge("thinwire_cache_info", "Tokens of a KV page, and pages", 1.0,
            {{"block_size", std::to_string(load.page_size)},
             {"num_blocks", std::to_string(load.kv_pages)}});
  out.Gauge("thinwire_tokens_per_second", "Tokens generated, over about a second",
            load.tokens_per_second);
  const bool up = load.state == ServingState::kReady || load.state == ServingState::kDraining;
  const size_t num_ranks = core.job().ranks.size();
  for (size_t rank = 0; rank < num_ranks; ++rank) {
    out.Gauge("thinwire_rank_up", "Whether a rank takes part", up ? 1.0 : 0.0,
              {{"rank", std::to_string(rank)}});
  }
  out.Gauge("thinwire_rank_heartbeat_age_seconds", "Since all ranks last showed that they live",
            load.seconds_since_step);
  for (size_t rank = 0; rank < load.memory.size(); ++rank) {
    out.Gauge("thinwire_rank_resident_bytes", "Peak resident memory of a rank",
              static_cast<double>(load.memory[rank].peak_resident_bytes),
              {{"rank", std::to_string(rank)}});
  }
  AddTotals(load, out);
  AddWire(load.wire, out);
  if (vllm_names) {
    const Labels model = {{"model_name", core.model.name}};
    out.Gauge("vllm:num_requests_running", "As thinwire_requests_running", running, model);
    out.Gauge("vllm:num_requests_waiting", "As thinwire_requests_waiting", queued, model);
    out.Gauge("vllm:kv_cache_usage_perc", "As thinwire_kv_cache_usage_ratio", usage, model);
  }
  return out.Text();
}

}  // namespace thinwire
