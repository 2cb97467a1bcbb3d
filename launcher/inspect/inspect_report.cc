#include "launcher/inspect/inspect_report.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"

namespace thinwire {
namespace {

using Json = nlohmann::ordered_json;

// Rows of the site table that a site may have before they are summed up in one.
constexpr size_t kMaxRowsOfSite = 3;

// Consecutive layers.
struct LayerRun {
  int64_t first = 0;
  int64_t last = 0;
};

std::string Layers(const LayerRun& run) {
  return run.first == run.last ? absl::StrCat(run.first) : absl::StrCat(run.first, "-", run.last);
}

// What a site is, in one layer or several that are alike.
struct SiteRow {
  QuantSite site = QuantSite::kQkvIn;
  LayerRun layers;
  bool coded = false;
  double bits = 16.0;           // of a channel on average
  std::vector<uint8_t> widths;  // the bits that occur, ascending
  int64_t width = 0;
  int64_t num_clusters = 0;
  bool table = false;
  std::string gain;

  bool Alike(const SiteRow& other) const {
    return site == other.site && coded == other.coded && bits == other.bits &&
           widths == other.widths && num_clusters == other.num_clusters && table == other.table &&
           gain == other.gain;
  }
};

// Of the sites that are reordered or coded, equal neighbouring layers in one row.
std::vector<SiteRow> SiteRows(const RptqFile& file) {
  std::vector<SiteRow> rows;
  for (const QuantSite site : kQuantSites) {
    for (size_t l = 0; l < file.layers.size(); ++l) {
      const SiteCodes& codes = file.layers[l].at(site);
      if (codes.empty()) continue;
      const auto layer = static_cast<int64_t>(l);
      SiteRow row = {.site = site,
                     .layers = {layer, layer},
                     .coded = codes.coded(),
                     .bits = MeanBits(codes),
                     .widths = codes.bits,
                     .width = static_cast<int64_t>(codes.order.size()),
                     .num_clusters = codes.num_clusters(),
                     .table = !codes.levels.empty(),
                     .gain = codes.gain};
      std::sort(row.widths.begin(), row.widths.end());
      row.widths.erase(std::unique(row.widths.begin(), row.widths.end()), row.widths.end());
      if (!rows.empty() && rows.back().layers.last == layer - 1 && rows.back().Alike(row)) {
        rows.back().layers.last = layer;
      } else {
        rows.push_back(std::move(row));
      }
    }
  }
  return rows;
}

// KV footprints of neighbouring layers that are alike.
struct KvRow {
  LayerRun layers;
  KvFootprint::Layer footprint;
};

std::vector<KvRow> KvRows(const KvFootprint& kv) {
  std::vector<KvRow> rows;
  for (size_t l = 0; l < kv.layers.size(); ++l) {
    const KvFootprint::Layer& layer = kv.layers[l];
    const auto number = static_cast<int64_t>(l);
    const bool alike = !rows.empty() && rows.back().footprint.k_bits == layer.k_bits &&
                       rows.back().footprint.v_bits == layer.v_bits &&
                       rows.back().footprint.bytes_per_token == layer.bytes_per_token;
    if (alike) {
      rows.back().layers.last = number;
    } else {
      rows.push_back({{number, number}, layer});
    }
  }
  return rows;
}

int64_t Fp16KvBytes(const CheckpointSummary& summary) { return 2 * summary.kv_elements_per_token; }

KvFootprint WholeKv(const CheckpointSummary& summary) {
  return KvFootprintOf(summary.config, summary.quantisation, {0, summary.config.num_kv_heads});
}

Json GroupJson(const TensorGroup& group) {
  return {{"tensors", group.num_tensors},
          {"parameters", group.num_parameters},
          {"bytes", group.size_bytes},
          {"bits_per_weight", group.bits_per_weight()}};
}

Json GroupsJson(const std::map<std::string, TensorGroup>& groups) {
  Json json = Json::object();
  for (const auto& [name, group] : groups) json[name] = GroupJson(group);
  return json;
}

Json LinearJson(const LinearGroup& linear) {
  Json json = GroupJson(linear.total);
  json["codes_bits"] = linear.bits_per_weight(linear.codes_bytes);
  json["scales_bits"] = linear.bits_per_weight(linear.scales_bytes);
  json["zeros_bits"] = linear.bits_per_weight(linear.zeros_bytes);
  json["g_idx_bits"] = linear.bits_per_weight(linear.g_idx_bytes);
  json["codebook_bits"] = linear.bits_per_weight(linear.codebook_bytes);
  return json;
}

Json QuantisationJson(const CheckpointSummary& summary) {
  Json json = Json::object();
  if (summary.config.gptq.has_value()) {
    json["gptq"] = {{"bits", summary.config.gptq->bits},
                    {"group_size", summary.config.gptq->group_size},
                    {"desc_act", summary.config.gptq->desc_act},
                    {"sym", summary.config.gptq->sym}};
  }
  if (summary.config.vptq.has_value()) json["vptq"] = summary.config.vptq->Name();
  if (summary.quantisation.made.has_value()) {
    const ThinwireFile& made = *summary.quantisation.made;
    json["weight_bits"] = made.scheme.weight_bits;
    json["act_bits"] = made.scheme.act_bits;
    json["kv_bits"] = made.scheme.kv_bits;
    json["algorithm"] = made.algorithm;
    json["group_size"] = made.group_size;
    json["tp"] = made.tp;
    json["first_token_exact"] = made.first_token_exact;
    json["seed"] = made.seed;
    json["tool_version"] = made.tool_version;
    json["calibration"] = {{"source", made.calibration.source},
                           {"sha256", made.calibration.sha256},
                           {"nsamples", made.calibration.nsamples},
                           {"seqlen", made.calibration.seqlen}};
  }
  return json.empty() ? Json(nullptr) : json;
}

Json KvJson(const KvFootprint& kv, int64_t fp16_bytes) {
  Json layers = Json::array();
  for (const KvFootprint::Layer& layer : kv.layers) {
    layers.push_back({{"k_bits", layer.k_bits},
                      {"v_bits", layer.v_bits},
                      {"bytes_per_token", layer.bytes_per_token}});
  }
  return {{"coded", kv.coded},
          {"k_bits", kv.k_bits()},
          {"v_bits", kv.v_bits()},
          {"bytes_per_token", kv.bytes_per_token()},
          {"fp16_bytes_per_token", fp16_bytes},
          {"first_token_bytes_per_sequence", kv.first_token_bytes},
          {"layers", std::move(layers)}};
}

Json SitesJson(const CheckpointSummary& summary) {
  Json sites = Json::array();
  if (!summary.quantisation.rptq.has_value()) return sites;
  for (const SiteRow& row : SiteRows(*summary.quantisation.rptq)) {
    sites.push_back({{"site", std::string(SiteName(row.site))},
                     {"layers", {row.layers.first, row.layers.last}},
                     {"coded", row.coded},
                     {"bits", row.bits},
                     {"cluster_bits", row.widths},
                     {"width", row.width},
                     {"clusters", row.num_clusters},
                     {"mean_cluster_size",
                      static_cast<double>(row.width) / static_cast<double>(row.num_clusters)},
                     {"table", row.table},
                     {"gain", row.gain}});
  }
  return sites;
}

std::string GroupLine(absl::string_view name, const TensorGroup& group) {
  return absl::StrFormat("  %-12s %6d tensors %12.3f M parameters %12.3f MB %7.2f bits\n", name,
                         group.num_tensors, group.num_parameters / 1e6, group.size_bytes / 1e6,
                         group.bits_per_weight());
}

std::string Kilobytes(int64_t bytes) { return absl::StrFormat("%.2f kB", bytes / 1e3); }

std::string BitsWord(int bits) {
  return bits == 16 ? "as they are" : absl::StrCat(bits, bits == 1 ? " bit" : " bits");
}

std::string ModelText(absl::string_view dir, const CheckpointSummary& summary) {
  const ModelConfig& config = summary.config;
  std::string text = absl::StrFormat(
      "%s: %s, %s\n"
      "  %d layers, hidden %d, %d heads (%d KV) of %d, ffn %d, vocabulary %d, context %d\n",
      dir, config.architecture, summary.scheme, config.num_layers, config.hidden, config.num_heads,
      config.num_kv_heads, config.head_dim, config.ffn, config.vocab, config.max_positions);
  if (config.sliding_window > 0) {
    absl::StrAppend(&text, "  sliding window of ", config.sliding_window, " tokens\n");
  }
  absl::StrAppend(&text, "  head ", config.tie_embeddings ? "tied to the embedding" : "untied",
                  "; --tp may be ", absl::StrJoin(summary.usable_tp_sizes, ", "), "; --pp up to ",
                  config.num_layers, "\n");
  return text;
}

std::string QuantisationText(const CheckpointSummary& summary) {
  if (!summary.quantisation.made.has_value()) {
    if (summary.config.vptq.has_value()) {
      return absl::StrCat("\nquantised by others\n  VPTQ, mostly ", summary.config.vptq->Name(),
                          "\n");
    }
    if (!summary.config.gptq.has_value()) return "";
    const GptqConfig& gptq = *summary.config.gptq;
    return absl::StrCat(
        "\nquantised by others\n  GPTQ, weights ", gptq.bits, " bits, ",
        gptq.group_size < 0 ? "one group" : absl::StrCat("groups of ", gptq.group_size),
        gptq.desc_act ? ", act-order (inputs are gathered at run time)" : "",
        gptq.sym ? ", symmetric" : "", "\n");
  }
  const ThinwireFile& made = *summary.quantisation.made;
  std::string text = absl::StrCat(
      "\nquantised by thinwire ", made.tool_version, "\n  weights ",
      made.scheme.vptq.any() ? VptqShapeName(made.scheme.vptq) : BitsWord(made.scheme.weight_bits),
      ", activations ", BitsWord(made.scheme.act_bits),
      made.scheme.act_bits < 8 ? " (norm outputs 8)" : "", ", K and V ",
      BitsWord(made.scheme.kv_bits), "\n  algorithm ", made.algorithm, ", ",
      made.scheme.vptq.any() ? absl::StrCat("a codebook for each matrix",
                                            made.scheme.vptq.byte_books ? ", of 8-bit numbers" : "")
      : made.group_size < 0  ? "one weight group"
                             : absl::StrCat("weight groups of ", made.group_size),
      ", seed ", made.seed, made.tp > 0 ? absl::StrCat(", clusters for --tp up to ", made.tp) : "",
      "\n");
  if (made.calibration != CalibrationInfo()) {
    absl::StrAppend(&text, "  calibrated on ", made.calibration.nsamples, " x ",
                    made.calibration.seqlen, " tokens of ", made.calibration.source, " (sha256 ",
                    made.calibration.sha256.substr(0, 12), ")\n");
  }
  return text;
}

std::string WeightsText(const CheckpointSummary& summary) {
  std::string text = "\nweights as stored, by part\n";
  for (const auto& [name, group] : summary.by_part) absl::StrAppend(&text, GroupLine(name, group));
  absl::StrAppend(&text, "by type\n");
  for (const auto& [name, group] : summary.by_dtype) {
    absl::StrAppend(&text, GroupLine(name, group));
  }
  absl::StrAppend(&text, "linear layers alone, and everything\n");
  absl::StrAppend(&text, GroupLine("linear", summary.linear.total));
  const LinearGroup& linear = summary.linear;
  if (linear.codebook_bytes > 0) {
    absl::StrAppendFormat(
        &text,
        "  %-12s indices %.3f + codebooks %.3f + scales %.3f + offsets %.3f + order %.3f bits\n",
        "", linear.bits_per_weight(linear.codes_bytes),
        linear.bits_per_weight(linear.codebook_bytes), linear.bits_per_weight(linear.scales_bytes),
        linear.bits_per_weight(linear.zeros_bytes), linear.bits_per_weight(linear.g_idx_bytes));
  } else if (linear.scales_bytes > 0) {
    absl::StrAppendFormat(
        &text, "  %-12s codes %.3f + scales %.3f + zeros %.3f + g_idx %.3f bits\n", "",
        linear.bits_per_weight(linear.codes_bytes), linear.bits_per_weight(linear.scales_bytes),
        linear.bits_per_weight(linear.zeros_bytes), linear.bits_per_weight(linear.g_idx_bytes));
  }
  absl::StrAppend(&text, GroupLine("total", summary.total));
  return text;
}

std::string KvText(const CheckpointSummary& summary) {
  const KvFootprint kv = WholeKv(summary);
  std::string text = "\nKV cache\n";
  const int64_t fp16 = Fp16KvBytes(summary);
  if (!kv.coded) {
    absl::StrAppend(&text, "  ", summary.kv_elements_per_token, " elements a token, ",
                    Kilobytes(fp16), " at fp16\n");
    return text;
  }
  absl::StrAppendFormat(
      &text,
      "  %d elements a token, K %.2f bits, V %.2f bits, together %.2f\n"
      "  %s a token, %.1f %% of the %s at fp16\n",
      summary.kv_elements_per_token, kv.k_bits(), kv.v_bits(), (kv.k_bits() + kv.v_bits()) / 2,
      Kilobytes(kv.bytes_per_token()),
      100.0 * static_cast<double>(kv.bytes_per_token()) / static_cast<double>(fp16),
      Kilobytes(fp16));
  if (kv.first_token_bytes > 0) {
    absl::StrAppend(&text, "  besides ", Kilobytes(kv.first_token_bytes),
                    " a sequence: its first token's K and V as they are\n");
  }
  const std::vector<KvRow> rows = KvRows(kv);
  if (rows.size() == 1) return text;
  absl::StrAppendFormat(&text, "  %-10s %7s %7s %14s\n", "layers", "K bits", "V bits",
                        "bytes a token");
  for (const KvRow& row : rows) {
    absl::StrAppendFormat(&text, "  %-10s %7.2f %7.2f %14d\n", Layers(row.layers),
                          row.footprint.k_bits, row.footprint.v_bits,
                          row.footprint.bytes_per_token);
  }
  return text;
}

std::string SiteExtras(const SiteRow& row) {
  std::vector<std::string> extras;
  if (!row.coded) extras.push_back("order only");
  if (row.widths.size() > 1) {
    extras.push_back(absl::StrCat("widths ", absl::StrJoin(row.widths, " ")));
  }
  if (row.table) extras.push_back("level table");
  if (!row.gain.empty()) extras.push_back(absl::StrCat("gain ", row.gain));
  return absl::StrJoin(extras, ", ");
}

// "4", or "3.25-4.5" of rows that differ.
std::string Span(double least, double greatest, int digits) {
  const std::string from = absl::StrFormat("%.*f", digits, least);
  const std::string to = absl::StrFormat("%.*f", digits, greatest);
  return from == to ? from : absl::StrCat(from, "-", to);
}

// One line for rows of the same site.
std::string SiteLine(absl::Span<const SiteRow> rows) {
  double bits[2] = {1e9, 0.0};
  double clusters[2] = {1e9, 0.0};
  double sizes[2] = {1e9, 0.0};
  const auto widen = [](double(&range)[2], double value) {
    range[0] = std::min(range[0], value);
    range[1] = std::max(range[1], value);
  };
  SiteRow all = rows.front();
  for (const SiteRow& row : rows) {
    widen(bits, row.bits);
    widen(clusters, static_cast<double>(row.num_clusters));
    widen(sizes, static_cast<double>(row.width) / static_cast<double>(row.num_clusters));
    all.layers.last = row.layers.last;
    all.widths.insert(all.widths.end(), row.widths.begin(), row.widths.end());
  }
  std::sort(all.widths.begin(), all.widths.end());
  all.widths.erase(std::unique(all.widths.begin(), all.widths.end()), all.widths.end());
  std::string line =
      absl::StrFormat("  %-8s %-8s %8d %11s %11s %13s  %s", SiteName(all.site), Layers(all.layers),
                      all.width, Span(bits[0], bits[1], 2), Span(clusters[0], clusters[1], 0),
                      Span(sizes[0], sizes[1], 1), SiteExtras(all));
  while (!line.empty() && line.back() == ' ') line.pop_back();
  return line + "\n";
}

std::string SitesText(const CheckpointSummary& summary) {
  if (!summary.quantisation.rptq.has_value()) return "";
  const std::vector<SiteRow> rows = SiteRows(*summary.quantisation.rptq);
  if (rows.empty()) return "";
  std::string text = absl::StrFormat("\nsites of a layer\n  %-8s %-8s %8s %11s %11s %13s\n", "site",
                                     "layers", "channels", "bits", "clusters", "mean cluster");
  for (size_t begin = 0; begin < rows.size();) {
    size_t end = begin;
    bool one_kind = true;
    for (; end < rows.size() && rows[end].site == rows[begin].site; ++end) {
      one_kind = one_kind && rows[end].coded == rows[begin].coded &&
                 rows[end].table == rows[begin].table && rows[end].gain == rows[begin].gain;
    }
    const absl::Span<const SiteRow> of_site(&rows[begin], end - begin);
    if (one_kind && of_site.size() > kMaxRowsOfSite) {
      absl::StrAppend(&text, SiteLine(of_site));
    } else {
      for (const SiteRow& row : of_site) absl::StrAppend(&text, SiteLine({&row, 1}));
    }
    begin = end;
  }
  return text;
}

std::string ShareText(const RankShare& share) {
  std::string text = absl::StrFormat(
      "\nof %d ranks, each has at most\n  weights %.3f MB as stored\n  KV cache %s a token%s\n",
      share.tp, share.weight_bytes / 1e6, Kilobytes(share.kv.bytes_per_token()),
      share.kv.coded ? "" : " at fp16");
  if (share.kv.first_token_bytes > 0) {
    absl::StrAppend(&text, "  besides ", Kilobytes(share.kv.first_token_bytes), " a sequence\n");
  }
  return text;
}

}  // namespace

std::string InspectText(absl::string_view dir, const CheckpointSummary& summary,
                        const std::optional<RankShare>& share) {
  return absl::StrCat(ModelText(dir, summary), QuantisationText(summary), WeightsText(summary),
                      KvText(summary), SitesText(summary),
                      share.has_value() ? ShareText(*share) : "");
}

std::string InspectJson(const CheckpointSummary& summary, const std::optional<RankShare>& share) {
  const ModelConfig& config = summary.config;
  Json json = {{"architecture", config.architecture},
               {"family", std::string(FamilyName(config.family))},
               {"scheme", summary.scheme},
               {"vocab", config.vocab},
               {"hidden", config.hidden},
               {"num_layers", config.num_layers},
               {"num_heads", config.num_heads},
               {"num_kv_heads", config.num_kv_heads},
               {"head_dim", config.head_dim},
               {"ffn", config.ffn},
               {"max_positions", config.max_positions},
               {"tie_embeddings", config.tie_embeddings},
               {"sliding_window", config.sliding_window},
               {"kv_elements_per_token", summary.kv_elements_per_token},
               {"tp_sizes", summary.usable_tp_sizes},
               {"files", summary.num_files},
               {"total", GroupJson(summary.total)},
               {"linear", LinearJson(summary.linear)},
               {"dtypes", GroupsJson(summary.by_dtype)},
               {"parts", GroupsJson(summary.by_part)},
               {"quantisation", QuantisationJson(summary)},
               {"kv", KvJson(WholeKv(summary), Fp16KvBytes(summary))},
               {"sites", SitesJson(summary)}};
  if (share.has_value()) {
    json["rank"] = {{"tp", share->tp},
                    {"weight_bytes", share->weight_bytes},
                    {"kv_bytes_per_token", share->kv.bytes_per_token()},
                    {"first_token_bytes_per_sequence", share->kv.first_token_bytes}};
  }
  // The source of a calibration may be a file name of any bytes.
  return json.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n";
}

}  // namespace thinwire
