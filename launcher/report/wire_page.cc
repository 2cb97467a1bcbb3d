#include "launcher/report/wire_page.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "kernels/core/status_macros.h"
#include "launcher/report/html.h"
#include "launcher/report/inline_svg.h"
#include "launcher/report/page_style.h"
#include "launcher/report/palette.h"
#include "launcher/report/quantity.h"
#include "launcher/report/run_label.h"
#include "launcher/report/site_plot.h"
#include "launcher/report/wire_plots.h"
#include "launcher/report/wire_tables.h"

namespace thinwire {
namespace {

// A longer table of collectives is shown when asked for.
constexpr size_t kMaxOpenRows = 16;

constexpr char kGlossary[] = R"(<h2>What is counted</h2>
<dl>
<dt>logical</dt><dd>What would have been sent had every element been fp16 and every sum a ring
all-reduce: the fp16 baseline. Messages that are not activations count as they are.</dd>
<dt>payload</dt><dd>Elements or codes that were handed to the transport.</dd>
<dt>metadata</dt><dd>What travels beside them: scales, gains, lengths.</dd>
<dt>sent</dt><dd>Payload and metadata, all ranks together.</dd>
<dt>calls</dt><dd>How often a rank sent, or took part in a collective, all ranks together.</dd>
<dt>token</dt><dd>Of a prompt or generated; speeds count generated ones alone.</dd>
<dt>transfer</dt><dd>Time inside the communicator, waiting for other ranks included, as a share of
the time that all ranks spent in steps.</dd>
<dt>codec</dt><dd>Time making codes of activations and activations of codes, as a share of the
same.</dd>
</dl>
)";

// Writes the document.
class Page {
 public:
  Page(const Recordings& recordings, DrawFn draw)
      : recordings_(recordings),
        runs_(recordings.runs),
        labels_(RunLabels(recordings.runs)),
        draw_(draw) {}

  absl::StatusOr<std::string> Write(absl::string_view version) {
    Add("<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n",
        // Nothing is loaded from elsewhere, whatever a recording holds.
        "<meta http-equiv=\"Content-Security-Policy\" ",
        "content=\"default-src 'none'; style-src 'unsafe-inline'\">\n",
        "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n",
        "<title>thinwire: what crossed the links</title>\n<style>\n", PageStyle(),
        "</style>\n</head>\n<body>\n<main>\n<h1>What crossed the links</h1>\n");
    if (!runs_.empty()) TW_RETURN_IF_ERROR(Runs());
    if (!recordings_.comm.empty()) TW_RETURN_IF_ERROR(Collectives());
    std::vector<std::string> files;
    for (const std::string& file : recordings_.files) files.push_back(EscapeHtml(file));
    Add(kGlossary, "</main>\n<footer>Made by thinwire ", EscapeHtml(version), " of ",
        absl::StrJoin(files, ", "), "</footer>\n</body>\n</html>\n");
    return std::move(html_);
  }

 private:
  template <typename... Args>
  void Add(const Args&... args) {
    absl::StrAppend(&html_, args...);
  }

  void Headlines() {
    Add("<ol class=\"headlines\">\n");
    for (size_t r = 0; r < runs_.size(); ++r) {
      const RunRecord& run = runs_[r];
      const SiteTraffic total = run.Total();
      Add("<li>", NumberBadge(r), "<div><p><strong>", EscapeHtml(labels_[r]), "</strong>");
      if (total.sent_bytes() == 0) {
        Add(run.num_ranks() == 1 ? ": one rank, nothing sent" : ": nothing sent");
      } else if (total.logical_bytes == 0) {
        Add(" sent ", FormatBytes(static_cast<double>(total.sent_bytes())));
      } else {
        const auto sent = static_cast<double>(total.sent_bytes());
        const auto fp16 = static_cast<double>(total.logical_bytes);
        Add(" sent ", FormatPercent(sent / fp16), " of fp16's bytes: ", FormatBytes(sent),
            " instead of ", FormatBytes(fp16));
      }
      std::vector<std::string> where;
      for (const std::string& part :
           {ModelName(run), run.scheme, run.dtype, MeshName(run), run.file}) {
        if (!part.empty()) where.push_back(EscapeHtml(part));
      }
      if (run.failed_prompts > 0) {
        where.push_back(absl::StrCat(FormatCount(run.failed_prompts), " of ",
                                     FormatCount(run.prompts), " prompts failed"));
      }
      Add("</p><small>", absl::StrJoin(where, " · "), "</small></div></li>\n");
    }
    Add("</ol>\n");
  }

  // `extra`: HTML of further entries.
  void Legend(absl::Span<const std::string> labels, absl::string_view extra = "") {
    Add("<ul class=\"legend\">\n");
    for (size_t i = 0; i < labels.size(); ++i) {
      Add("<li>", NumberBadge(i), EscapeHtml(labels[i]), "</li>\n");
    }
    Add(extra, "</ul>\n");
  }

  absl::Status Picture(absl::string_view name, absl::string_view title, absl::string_view script) {
    TW_ASSIGN_OR_RETURN(const std::string drawn, draw_(script));
    TW_ASSIGN_OR_RETURN(const std::string svg, InlineSvg(drawn, name, title));
    Add("<div class=\"picture\">\n", svg, "</div>\n</figure>\n");
    return absl::OkStatus();
  }

  absl::Status Runs() {
    Headlines();
    Add("<h2>Side by side</h2>\n<div class=\"runs\">\n", RunTable(runs_, labels_), "</div>\n");
    const bool any_sent = std::any_of(runs_.begin(), runs_.end(), [](const RunRecord& run) {
      return run.Total().sent_bytes() > 0 || run.Total().logical_bytes > 0;
    });
    if (any_sent) {
      TW_RETURN_IF_ERROR(Sites());
      TW_RETURN_IF_ERROR(StepTime());
    }
    if (any_sent && runs_.size() > 1) TW_RETURN_IF_ERROR(Trade());
    return absl::OkStatus();
  }

  absl::Status Sites() {
    Add("<h2>Bytes at each site</h2>\n<figure>\n<figcaption>What all ranks together sent for a ",
        "token, beside what fp16 would have sent.</figcaption>\n");
    Legend(labels_, "<li><span class=\"box baseline\"></span>what fp16 would have sent</li>\n");
    TW_RETURN_IF_ERROR(
        Picture("sites",
                absl::StrCat("Bytes per token at ", absl::StrJoin(SiteNames(runs_), ", "), " for ",
                             absl::StrJoin(labels_, "; "), ", beside what fp16 would have sent"),
                SitePlot(runs_)));
    Add("<details>\n<summary>All counts, by site</summary>\n");
    for (size_t r = 0; r < runs_.size(); ++r) {
      if (runs_[r].sites.empty()) continue;
      Add("<h3>", NumberBadge(r), " ", EscapeHtml(labels_[r]), "</h3>\n", SiteTable(runs_[r]));
    }
    Add("</details>\n");
    return absl::OkStatus();
  }

  absl::Status StepTime() {
    Add("<h2>Where the time of a step goes</h2>\n<figure>\n<figcaption>Shares of the time that ",
        "all ranks spent in steps. Transfer includes waiting for other ranks.</figcaption>\n",
        "<ul class=\"legend\">\n");
    const bool any_codec = std::any_of(runs_.begin(), runs_.end(), [](const RunRecord& run) {
      return run.Total().codec_us.has_value();
    });
    const auto entry = [&](const PaletteColor& color, absl::string_view text) {
      Add("<li><span class=\"box ", color.name.substr(2), "\"></span>", text, "</li>\n");
    };
    entry(kTransfer, "transfer");
    if (any_codec) entry(kCodec, "codec");
    entry(kRest, "the rest");
    Add("</ul>\n");
    std::vector<std::string> parts;
    for (size_t r = 0; r < runs_.size(); ++r) {
      const StepShares shares = runs_[r].Shares();
      parts.push_back(absl::StrCat(labels_[r], " ", FormatPercent(shares.transfer), " and ",
                                   FormatPercent(shares.codec)));
    }
    return Picture(
        "steps",
        absl::StrCat("Shares of step time in transfer and in codec: ", absl::StrJoin(parts, "; ")),
        StepPlot(runs_, labels_));
  }

  absl::Status Trade() {
    Add("<h2>Bytes against speed</h2>\n<figure>\n<figcaption>Each run once: further left sent ",
        "less, further up was faster.</figcaption>\n");
    Legend(labels_);
    return Picture("trade",
                   absl::StrCat("Bytes per token across and generated tokens a second up, for ",
                                absl::StrJoin(labels_, "; ")),
                   TradePlot(runs_));
  }

  absl::Status Collectives() {
    const std::vector<std::string> names = SeriesLabels(recordings_.comm);
    std::vector<std::string> labels;  // each once
    std::vector<int> series;
    for (const std::string& name : names) {
      const auto at = std::find(labels.begin(), labels.end(), name);
      series.push_back(static_cast<int>(at - labels.begin()));
      if (at == labels.end()) labels.push_back(name);
    }
    Add("<h2>Latency of a collective</h2>\n");
    const bool any =
        std::any_of(recordings_.comm.begin(), recordings_.comm.end(), [](const CommRecord& record) {
          return record.p50_us.value_or(0.0) > 0 && record.logical_bytes > 0;
        });
    if (any) {
      Add("<figure>\n<figcaption>One sum over ranks by size, codec included; both axes are ",
          "logarithmic.</figcaption>\n");
      Legend(labels);
      TW_RETURN_IF_ERROR(
          Picture("latency", absl::StrCat("Latency against size for ", absl::StrJoin(labels, "; ")),
                  LatencyPlot(recordings_.comm, series)));
    }
    const bool many = recordings_.comm.size() > kMaxOpenRows;
    Add(many ? "<details>\n<summary>All numbers</summary>\n" : "",
        CommTable(recordings_.comm, series), many ? "</details>\n" : "");
    return absl::OkStatus();
  }

  const Recordings& recordings_;
  absl::Span<const RunRecord> runs_;
  std::vector<std::string> labels_;
  DrawFn draw_;
  std::string html_;
};

}  // namespace

absl::StatusOr<std::string> WirePage(const Recordings& recordings, absl::string_view version,
                                     DrawFn draw) {
  return Page(recordings, draw).Write(version);
}

}  // namespace thinwire
