#include "runtime/server/http/status_page.h"

#include <nlohmann/json.hpp>

namespace thinwire {
namespace {

constexpr char kPage[] = R"html(<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>thinwire</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
:root { color-scheme: light dark; --line: #8884; --accent: #2a78d6; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto;
  padding: 0 1rem; }
h1 { font-size: 1.4rem; margin: 0; }
h2 { font-size: 1rem; margin: 1.6rem 0 .4rem; }
small { opacity: .7; font-weight: normal; }
.state { display: inline-block; padding: 0 .6rem; border: 1px solid var(--line);
  border-radius: 1rem; }
.state.ready { border-color: #2a9d4a; color: #2a9d4a; }
.state.failed, .state.lost { border-color: #d03b3b; color: #d03b3b; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr)); gap: .6rem; }
.tile { border: 1px solid var(--line); border-radius: .5rem; padding: .5rem .8rem; }
.tile b { display: block; font-size: 1.5rem; font-variant-numeric: tabular-nums; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .2rem .6rem; border-bottom: 1px solid var(--line); }
th:first-child, td:first-child { text-align: left; }
svg { width: 100%; height: 90px; border: 1px solid var(--line); border-radius: .5rem; }
</style></head><body>
<h1>thinwire <small id="version"></small></h1>
<p><span id="state" class="state">...</span> <span id="model"></span></p>
<div class="tiles" id="tiles"></div>
<h2>Tokens per second <small>last two minutes, at most <span id="peak">0</span></small></h2>
<svg viewBox="0 0 120 30" preserveAspectRatio="none"><polyline id="line" fill="none"
  stroke="var(--accent)" stroke-width="1.5" vector-effect="non-scaling-stroke"/></svg>
<h2>Bytes that rank 0 sent <small>against fp16</small></h2><table id="wire"></table>
<h2>Ranks</h2><table id="ranks"></table>
<script>
const rates = [], $ = id => document.getElementById(id);
const bytes = n => { const u = ["B", "kB", "MB", "GB", "TB"]; let i = 0;
  while (n >= 1000 && i < 4) { n /= 1000; i++; }
  return n.toFixed(i ? 1 : 0) + " " + u[i]; };
function table(id, head, rows) {
  const t = $(id);
  t.replaceChildren();
  const add = (cells, tag) => {
    const r = t.insertRow();
    for (const c of cells) {
      const e = document.createElement(tag);
      e.textContent = c;
      r.append(e);
    }
  };
  add(head, "th");
  for (const row of rows) add(row, "td");
}
function show(s) {
  $("version").textContent = s.version;
  $("state").textContent = s.state;
  $("state").className = "state " + s.state;
  $("model").textContent = s.model + ", " + s.layout + (s.progress ? ": " + s.progress : "");
  const l = s.load, tiles = [["running", l.running + " / " + l.max_running],
    ["waiting", l.queued], ["KV pages", l.kv_pages_used + " / " + l.kv_pages],
    ["tokens/s", l.tokens_per_second.toFixed(0)], ["answered", s.totals.ended],
    ["wire / fp16", s.wire.logical_bytes ?
      (s.wire.sent_bytes / s.wire.logical_bytes).toFixed(2) : "-"]];
  $("tiles").replaceChildren(...tiles.map(([name, value]) => {
    const d = document.createElement("div"), b = document.createElement("b");
    d.className = "tile";
    b.textContent = value;
    d.append(b, name);
    return d;
  }));
  rates.push(l.tokens_per_second);
  if (rates.length > 120) rates.shift();
  const peak = Math.max(1, ...rates);
  $("peak").textContent = peak.toFixed(0);
  $("line").setAttribute("points", rates.map((r, i) =>
    (121 - rates.length + i) + "," + (29 - 28 * r / peak)).join(" "));
  table("wire", ["site", "fp16", "sent", "share"], s.wire.sites.map(w => [w.site,
    bytes(w.logical_bytes), bytes(w.sent_bytes),
    w.logical_bytes ? (w.sent_bytes / w.logical_bytes).toFixed(2) : "-"]));
  table("ranks", ["rank", "host", "process", "device", "tp", "pp", "weights", "KV cache"],
    s.ranks.map(r => [r.rank, r.host, r.process_id, r.device, r.tp_rank, r.pp_rank,
      r.weight_bytes === undefined ? "-" : bytes(r.weight_bytes),
      r.kv_cache_bytes === undefined ? "-" : bytes(r.kv_cache_bytes)]));
}
async function poll() {
  try {
    show(await (await fetch("/status")).json());
  } catch {
    $("state").textContent = "no answer";
    $("state").className = "state lost";
  }
  setTimeout(poll, 1000);
}
poll();
</script></body></html>
)html";

using Json = nlohmann::ordered_json;

Json WireJson(const Ledger& wire) {
  Json sites = Json::array();
  for (int i = 0; i < kNumSites; ++i) {
    const Site site = static_cast<Site>(i);
    const LedgerEntry& entry = wire.at(site);
    if (entry.calls == 0) continue;
    sites.push_back({{"site", std::string(SiteName(site))},
                     {"logical_bytes", entry.logical_bytes},
                     {"sent_bytes", entry.payload_bytes + entry.metadata_bytes}});
  }
  const LedgerEntry total = wire.Total();
  return {{"logical_bytes", total.logical_bytes},
          {"sent_bytes", total.payload_bytes + total.metadata_bytes},
          {"sites", std::move(sites)}};
}

}  // namespace

std::string StatusJson(const ServingCore& core) {
  const ServingLoad load = core.loop.load();
  const JobInfo job = core.job();
  int64_t ended = 0;
  for (const auto& [reason, count] : load.totals.ended) ended += count;
  Json ranks = Json::array();
  for (size_t i = 0; i < job.ranks.size(); ++i) {
    const RankInfo& rank = job.ranks[i];
    Json entry = {{"rank", i},
                  {"host", rank.place.host},
                  {"process_id", rank.place.process_id},
                  {"device", rank.place.device},
                  {"tp_rank", rank.tp_rank},
                  {"pp_rank", rank.pp_rank}};
    if (i < load.memory.size()) {
      entry["weight_bytes"] = load.memory[i].weight_bytes;
      entry["kv_cache_bytes"] = load.memory[i].kv_cache_bytes;
    }
    ranks.push_back(std::move(entry));
  }
  const Json status = {{"model", core.model.name},
                       {"version", core.version},
                       {"layout", job.layout},
                       {"state", std::string(ServingStateName(load.state))},
                       {"progress", load.progress},
                       {"load",
                        {{"running", load.num_running},
                         {"max_running", load.max_running},
                         {"queued", load.num_queued},
                         {"queued_tokens", load.num_queued_tokens},
                         {"kv_pages", load.kv_pages},
                         {"kv_pages_used", load.kv_pages_used},
                         {"tokens_per_second", load.tokens_per_second}}},
                       {"totals",
                        {{"ended", ended},
                         {"prompt_tokens", load.totals.num_prompt_tokens},
                         {"generated_tokens", load.totals.num_generated_tokens}}},
                       {"wire", WireJson(load.wire)},
                       {"ranks", std::move(ranks)}};
  return status.dump(-1, ' ', false, Json::error_handler_t::replace);
}

std::string StatusPage() { return kPage; }

}  // namespace thinwire
