#include "launcher/report/wire_tables.h"

#include <algorithm>
#include <functional>
#include <optional>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "launcher/report/html.h"
#include "launcher/report/palette.h"
#include "launcher/report/quantity.h"
#include "launcher/report/run_label.h"

namespace thinwire {
namespace {

constexpr char kUnknown[] = "–";

// A column of numbers: HTML, one cell for each row.
struct Column {
  std::string title;
  std::string unit;
  std::vector<std::string> cells;
};

using Cells = std::vector<std::optional<double>>;

std::vector<double> Known(const Cells& values) {
  std::vector<double> known;
  for (const std::optional<double>& value : values) {
    if (value.has_value()) known.push_back(*value);
  }
  return known;
}

// Numbers with the same decimals, so that they stand in line.
Column Numbers(std::string title, std::string unit, const Cells& values, double divisor = 1.0) {
  std::vector<double> scaled = Known(values);
  for (double& value : scaled) value /= divisor;
  const int decimals = CommonDecimals(scaled);
  Column column = {std::move(title), std::move(unit), {}};
  for (const std::optional<double>& value : values) {
    column.cells.push_back(value.has_value() ? absl::StrFormat("%.*f", decimals, *value / divisor)
                                             : kUnknown);
  }
  return column;
}

// Bytes in the unit of the most.
Column Bytes(std::string title, const Cells& values) {
  const std::vector<double> known = Known(values);
  const double most = known.empty() ? 0.0 : *std::max_element(known.begin(), known.end());
  const Scale scale = ByteScale(most);
  Column column = Numbers(std::move(title), std::string(scale.unit), values, scale.divisor);
  if (scale.divisor > 1.0) return column;
  for (size_t i = 0; i < values.size(); ++i) {
    if (values[i].has_value()) column.cells[i] = absl::StrFormat("%.0f", *values[i]);
  }
  return column;
}

Column Counts(std::string title, const std::vector<int64_t>& values) {
  Column column = {std::move(title), "", {}};
  for (const int64_t value : values) column.cells.push_back(FormatCount(value));
  return column;
}

Column Percents(std::string title, const Cells& values) {
  Column column = {std::move(title), "", {}};
  for (const std::optional<double>& value : values) {
    column.cells.push_back(value.has_value() ? FormatPercent(*value) : kUnknown);
  }
  return column;
}

// `heads`: HTML of each row's first cell. `emphasised`: a row set apart, or none.
std::string Table(absl::string_view head, const std::vector<std::string>& heads,
                  const std::vector<Column>& columns, std::optional<size_t> emphasised = {}) {
  std::string html =
      absl::StrCat("<div class=\"scroll\"><table>\n<thead><tr><th scope=\"col\">", head, "</th>");
  for (const Column& column : columns) {
    absl::StrAppend(&html, "<th scope=\"col\">", column.title,
                    column.unit.empty() ? "" : absl::StrCat("<small>", column.unit, "</small>"),
                    "</th>");
  }
  absl::StrAppend(&html, "</tr></thead>\n<tbody>\n");
  for (size_t row = 0; row < heads.size(); ++row) {
    absl::StrAppend(&html, row == emphasised ? "<tr class=\"sum\">" : "<tr>", "<th scope=\"row\">",
                    heads[row], "</th>");
    for (const Column& column : columns) absl::StrAppend(&html, "<td>", column.cells[row], "</td>");
    absl::StrAppend(&html, "</tr>\n");
  }
  return absl::StrCat(html, "</tbody></table></div>\n");
}

// One value of each element.
template <typename T>
Cells CellsOf(absl::Span<const T> rows, const std::function<std::optional<double>(const T&)>& of) {
  Cells cells;
  for (const T& row : rows) cells.push_back(of(row));
  return cells;
}

std::optional<double> Ratio(double part, double whole) {
  if (whole <= 0.0) return std::nullopt;
  return part / whole;
}

std::string RunHead(const RunRecord& run, size_t index, absl::string_view label) {
  std::vector<std::string> what;
  if (!run.model.empty()) {
    what.push_back(absl::StrCat("<span title=\"", EscapeHtml(run.model), "\">",
                                EscapeHtml(ModelName(run)), "</span>"));
  }
  for (const std::string& part : {run.scheme, run.dtype}) {
    if (!part.empty()) what.push_back(EscapeHtml(part));
  }
  return absl::StrCat("<span class=\"run\">", NumberBadge(index), "<span>", EscapeHtml(label),
                      "<small>", absl::StrJoin(what, " · "), "</small></span></span>");
}

}  // namespace

std::string NumberBadge(size_t index) {
  return absl::StrCat("<span class=\"badge ", SeriesColor(index).name.substr(2), "\">", index + 1,
                      "</span>");
}

std::string RunTable(absl::Span<const RunRecord> runs, absl::Span<const std::string> labels) {
  using Row = const RunRecord&;
  const auto cells = [&](const std::function<std::optional<double>(Row)>& of) {
    return CellsOf<RunRecord>(runs, of);
  };
  std::vector<std::string> heads;
  Column mesh = {"tp × pp", "", {}};
  Column tokens = {"tokens", "prompt + new", {}};
  for (size_t r = 0; r < runs.size(); ++r) {
    heads.push_back(RunHead(runs[r], r, labels[r]));
    mesh.cells.push_back(absl::StrCat(TpName(runs[r]), " × ", runs[r].pp));
    tokens.cells.push_back(absl::StrCat(FormatCount(runs[r].prompt_tokens), " + ",
                                        FormatCount(runs[r].generated_tokens)));
  }
  const auto known = [](double value) {
    return value > 0.0 ? std::optional<double>(value) : std::nullopt;
  };
  return Table(
      "run", heads,
      {mesh, tokens,
       Numbers("speed", "tokens/s", cells([&](Row run) { return known(run.tokens_per_second); })),
       Numbers("first token", "ms, median", cells([&](Row run) { return known(run.ttft_ms); })),
       Bytes("sent", cells([](Row run) { return static_cast<double>(run.Total().sent_bytes()); })),
       Percents("of fp16", cells([](Row run) {
                  const SiteTraffic total = run.Total();
                  return Ratio(total.sent_bytes(), total.logical_bytes);
                })),
       Bytes("per token",
             cells([](Row run) { return Ratio(run.Total().sent_bytes(), run.num_tokens()); })),
       Percents("in transfer", cells([](Row run) { return run.Shares().transfer; })),
       Percents("in codec", cells([](Row run) -> std::optional<double> {
                  if (!run.Total().codec_us.has_value()) return std::nullopt;
                  return run.Shares().codec;
                }))});
}

std::string SiteTable(const RunRecord& run) {
  using Row = const SiteTraffic&;
  std::vector<SiteTraffic> rows = run.sites;
  rows.push_back(run.Total());
  const auto cells = [&](const std::function<std::optional<double>(Row)>& of) {
    return CellsOf<SiteTraffic>(rows, of);
  };
  std::vector<std::string> heads;
  std::vector<int64_t> calls;
  for (const SiteTraffic& site : rows) {
    heads.push_back(EscapeHtml(site.site));
    calls.push_back(site.calls);
  }
  heads.back() = "all sites";
  return Table("site", heads,
               {Bytes("logical", cells([](Row site) { return site.logical_bytes; })),
                Bytes("payload", cells([](Row site) { return site.payload_bytes; })),
                Bytes("metadata", cells([](Row site) { return site.metadata_bytes; })),
                Percents("of fp16", cells([](Row site) {
                           return Ratio(site.sent_bytes(), site.logical_bytes);
                         })),
                Counts("calls", calls),
                Numbers("transfer", "ms", cells([](Row site) { return site.transfer_us; }), 1e3),
                Numbers("codec", "ms", cells([](Row site) { return site.codec_us; }), 1e3)},
               rows.size() - 1);
}

std::string CommTable(absl::Span<const CommRecord> comm, absl::Span<const int> series) {
  using Row = const CommRecord&;
  const auto cells = [&](const std::function<std::optional<double>(Row)>& of) {
    return CellsOf<CommRecord>(comm, of);
  };
  std::vector<std::string> heads;
  std::vector<int64_t> ranks;
  Column size = {"message", "as fp16", {}};
  Column sent = {"sent", "", {}};
  Column error = {"error", "", {}};
  for (size_t i = 0; i < comm.size(); ++i) {
    heads.push_back(absl::StrCat("<span class=\"run\">", NumberBadge(series[i]), "<span>",
                                 EscapeHtml(comm[i].strategy), "</span></span>"));
    ranks.push_back(comm[i].ranks);
    size.cells.push_back(FormatMessageSize(comm[i].logical_bytes));
    // Each in its own unit: sizes span powers of ten.
    const std::optional<int64_t> bytes = comm[i].wire_bytes;
    sent.cells.push_back(bytes.has_value() ? FormatBytes(static_cast<double>(*bytes)) : kUnknown);
    error.cells.push_back(comm[i].error.empty() ? kUnknown : EscapeHtml(comm[i].error));
  }
  return Table(
      "strategy", heads,
      {Counts("ranks", ranks), size,
       Numbers("median", "µs", cells([](Row row) { return row.p50_us; })),
       Numbers("99th percentile", "µs", cells([](Row row) { return row.p99_us; })), sent,
       Numbers("effective", "Gb/s", cells([](Row row) { return row.effective_gbps; })),
       Numbers("on the wire", "Gb/s", cells([](Row row) { return row.wire_gbps; })), error});
}

}  // namespace thinwire
