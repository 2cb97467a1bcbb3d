#include "launcher/report/site_plot.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "launcher/plot/gnuplot.h"
#include "launcher/report/palette.h"
#include "launcher/report/plot_script.h"
#include "launcher/report/quantity.h"
#include "launcher/report/run_label.h"

namespace thinwire {
namespace {

// More values than these would run into each other.
constexpr size_t kMaxLabelledBars = 24;
constexpr size_t kMaxSiteChars = 14;

// Sites that occur in every decoder layer; the others occur once in a step.
bool IsLayerSite(absl::string_view site) { return site == "attention_out" || site == "mlp_out"; }

double BytesPerToken(const RunRecord& run, int64_t bytes, bool per_layer) {
  const double per_token = run.PerToken(bytes);
  return per_layer ? per_token / static_cast<double>(run.num_layers.value_or(1)) : per_token;
}

// One half of the site plot.
class SitePanel {
 public:
  SitePanel(absl::Span<const RunRecord> runs, std::vector<std::string> sites, bool per_layer)
      : runs_(runs), sites_(std::move(sites)), per_layer_(per_layer) {
    for (const std::string& site : sites_) {
      for (const RunRecord& run : runs_) {
        const SiteTraffic* traffic = run.Find(site);
        if (traffic == nullptr) continue;
        largest_ = std::max({largest_, BytesPerToken(run, traffic->sent_bytes(), per_layer_),
                             BytesPerToken(run, traffic->logical_bytes, per_layer_)});
      }
    }
  }

  const std::vector<std::string>& sites() const { return sites_; }

  void Draw(double left, double right, absl::string_view title, bool with_values,
            PlotScript& script) {
    const Scale scale = ByteScale(largest_);
    script.Line("unset label");
    script.Line("set lmargin at screen ", left);
    script.Line("set rmargin at screen ", right);
    script.Line("set xrange [-0.6:", sites_.size() - 0.4, "]");
    script.Line("set yrange [0:", 1.12 * std::max(largest_, 1e-9) / scale.divisor, "]");
    script.Label("graph 0,1.07 left", absl::StrCat(scale.unit, title));
    std::vector<std::string> tics;
    for (size_t i = 0; i < sites_.size(); ++i) {
      tics.push_back(absl::StrCat(GnuplotString(Shortened(sites_[i], kMaxSiteChars)), " ", i));
    }
    script.Line("set xtics (", absl::StrJoin(tics, ", "), ") scale 0");
    std::vector<std::string> plots;
    std::string fp16_boxes, fp16_lines;
    const double width = 0.84 / static_cast<double>(runs_.size());
    for (size_t r = 0; r < runs_.size(); ++r) {
      std::string bars;
      for (size_t i = 0; i < sites_.size(); ++i) {
        const SiteTraffic* traffic = runs_[r].Find(sites_[i]);
        if (traffic == nullptr) continue;
        const double sent =
            BytesPerToken(runs_[r], traffic->sent_bytes(), per_layer_) / scale.divisor;
        const double fp16 =
            BytesPerToken(runs_[r], traffic->logical_bytes, per_layer_) / scale.divisor;
        const double left = static_cast<double>(i) - 0.42 + width * static_cast<double>(r);
        const double right = left + width;
        const double middle = left + width / 2;
        const double margin = 0.1 * width;
        absl::StrAppendFormat(&bars, "%.6g 0 %.6g %.6g 0 %.6g\n", middle, left + margin,
                              right - margin, sent);
        absl::StrAppendFormat(&fp16_boxes, "%.6g 0 %.6g %.6g 0 %.6g\n", middle, left, right, fp16);
        absl::StrAppendFormat(&fp16_lines, "%.6g %.6g\n%.6g %.6g\n\n", left, fp16, right, fp16);
        if (with_values) {
          script.Line("set label '", ThreeDigits(sent), "' at ", middle, ",", std::max(sent, fp16),
                      " center offset 0,0.6 font ',12' textcolor rgb '", kInk.light, "'");
        }
      }
      if (bars.empty()) continue;
      script.Line("$run", r, " << EOD\n", bars, "EOD");
      plots.push_back(Boxes(absl::StrCat("$run", r), SeriesColor(r)));
    }
    script.Line("$fp16 << EOD\n", fp16_boxes, "EOD\n$lines << EOD\n", fp16_lines, "EOD");
    script.Line("plot ", Boxes("$fp16", kGrid), ", ", absl::StrJoin(plots, ", "),
                ", $lines using 1:2 with lines lw 1.5 lc rgb '", kInk.light, "'");
  }

 private:
  absl::Span<const RunRecord> runs_;
  std::vector<std::string> sites_;
  bool per_layer_;
  double largest_ = 0.0;
};

}  // namespace

std::vector<std::string> SiteNames(absl::Span<const RunRecord> runs) {
  RunRecord all;
  for (const RunRecord& run : runs) {
    for (const SiteTraffic& site : run.sites) {
      if (all.Find(site.site) == nullptr) all.sites.push_back(site);
    }
  }
  SortSites(all.sites);
  std::vector<std::string> names;
  for (const SiteTraffic& site : all.sites) names.push_back(site.site);
  return names;
}

std::string SitePlot(absl::Span<const RunRecord> runs) {
  const bool per_layer = std::all_of(
      runs.begin(), runs.end(), [](const RunRecord& run) { return run.num_layers.has_value(); });
  std::vector<std::string> layer_sites, step_sites;
  for (std::string& site : SiteNames(runs)) {
    (IsLayerSite(site) ? layer_sites : step_sites).push_back(std::move(site));
  }
  const size_t num_sites = layer_sites.size() + step_sites.size();
  const bool with_values = num_sites * runs.size() <= kMaxLabelledBars;
  SitePanel layers(runs, std::move(layer_sites), per_layer);
  SitePanel steps(runs, std::move(step_sites), /*per_layer=*/false);
  PlotScript script(380);
  script.Grid("ytics");
  script.Line("set tmargin at screen 0.86");
  script.Line("set bmargin at screen 0.10");
  script.Line("set multiplot");
  constexpr double kLeft = 0.055, kGap = 0.075, kRight = 0.995;
  double middle = kLeft;
  if (!layers.sites().empty()) {
    middle = steps.sites().empty()
                 ? kRight
                 : kLeft + (kRight - kLeft - kGap) * static_cast<double>(layers.sites().size()) /
                               static_cast<double>(num_sites);
    layers.Draw(kLeft, middle,
                per_layer ? " a token, in each decoder layer" : " a token, in all decoder layers",
                with_values, script);
    middle += kGap;
  }
  if (!steps.sites().empty()) {
    steps.Draw(middle, kRight, " a token, outside the layers", with_values, script);
  }
  script.Line("unset multiplot");
  return script.Finish();
}

}  // namespace thinwire
