#include "launcher/inspect/range_plot.h"

#include <algorithm>
#include <filesystem>
#include <set>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "kernels/core/status_macros.h"
#include "launcher/plot/gnuplot.h"
#include "runtime/checkpoint/rptq_file.h"

namespace thinwire {
namespace {

// More lines than these would be all that is seen.
constexpr int64_t kMaxClusterLines = 160;
constexpr int64_t kMaxBlockLines = 64;

constexpr char kBeforeColor[] = "#6b7f94";
constexpr const char* kClusterColors[] = {"#2a6fbb", "#e8953c"};
// Of 1 to 8 bits.
constexpr const char* kBitColors[] = {"#440154", "#46327e", "#365c8d", "#277f8e",
                                      "#1fa187", "#4ac16d", "#a0da39", "#e6b91e"};

absl::string_view Description(QuantSite site) {
  switch (site) {
    case QuantSite::kQkvIn:
      return "R1: what q, k and v read, after the norm";
    case QuantSite::kQ:
      return "R2: queries";
    case QuantSite::kK:
      return "R2: keys, as cached";
    case QuantSite::kV:
      return "R3: values, as cached";
    case QuantSite::kOutIn:
      return "R3: output of the attention";
    case QuantSite::kMlpIn:
      return "R4: what the feed-forward part reads, after the norm";
    case QuantSite::kDownIn:
      return "R5: what the last projection reads, after the activation";
  }
  return "";
}

absl::StatusOr<QuantSite> FindSite(const RangePlotArgs& args, const LayerCodes& layer) {
  for (const QuantSite site : kQuantSites) {
    if (args.site.empty() ? layer.at(site).has_range() && layer.at(site).has_original_range()
                          : args.site == SiteName(site)) {
      return site;
    }
  }
  if (args.site.empty()) {
    return absl::FailedPreconditionError(
        absl::StrCat(args.dir, "/", kRptqFileName, ": layer ", args.layer,
                     " has no ranges to draw; quantise the model again to record them"));
  }
  std::vector<absl::string_view> names;
  for (const QuantSite site : kQuantSites) names.push_back(SiteName(site));
  return absl::InvalidArgumentError(
      absl::StrCat("--site ", args.site, ": expected one of ", absl::StrJoin(names, ", ")));
}

// Writes the script.
class RangePlot {
 public:
  RangePlot(const RangePlotArgs& args, QuantSite site)
      : args_(args),
        site_(site),
        codes_(args.quantisation->layer(args.layer)->at(site)),
        width_(static_cast<int64_t>(codes_.order.size())),
        block_(SiteBlock(*args.config, site, args.quantisation->rptq->tp)),
        mixed_(std::set<uint8_t>(codes_.bits.begin(), codes_.bits.end()).size() > 1) {}

  std::string Script() {
    Page();
    const double bottom = mixed_ ? 0.30 : 0.09;
    const double top = 0.855;
    const double middle = bottom + (top - bottom) / 2;
    Panel({middle + 0.065, top}, "before: channels in the order of the model, not folded",
          "activation");
    Before();
    Line("unset label 1");  // drawn once, not by every panel
    Line("unset label 2");
    Panel({bottom, middle - 0.05}, AfterTitle(), "activation, folded");
    After();
    if (mixed_) {
      Panel({0.09, 0.23}, "", "bits");
      Bits();
    }
    Line("unset multiplot");
    return std::move(script_);
  }

 private:
  struct Extent {
    double bottom, top;  // shares of the page's height
  };

  template <typename... Args>
  void Line(const Args&... args) {
    absl::StrAppend(&script_, args..., "\n");
  }

  void Page() {
    Line("set terminal svg size 1200,", mixed_ ? 920 : 800,
         " noenhanced font 'Helvetica,15' background 'white'");
    Line("set encoding utf8");
    Line("set multiplot");
    // A folder may be given with a slash at its end.
    const std::string name =
        std::filesystem::path(args_.dir + "/.").lexically_normal().parent_path().filename();
    Line("set label 1 at screen 0.5,0.965 center font ',20' ",
         GnuplotString(absl::StrCat(name.empty() ? args_.dir : name, ", layer ", args_.layer, ", ",
                                    SiteName(site_))));
    Line("set label 2 at screen 0.5,0.932 center textcolor rgb '#555555' ",
         GnuplotString(absl::StrCat(Description(site_),
                                    "; least to greatest value over the calibration ", "tokens")));
    Line("set style fill solid 1.0 noborder");
    Line("set border 3 lc rgb '#555555'");
    Line("set tics nomirror out scale 0.6 textcolor rgb '#333333'");
    Line("set lmargin at screen 0.085");
    Line("set rmargin at screen 0.985");
    Line("set xrange [0:", width_, "]");
    Line("set key horizontal top right outside samplen 1.5 spacing 1.0 width 1 ",
         "textcolor rgb '#333333'");
    Line("set key at graph 1.0,1.01 right bottom");
  }

  void Panel(Extent extent, absl::string_view title, absl::string_view y_label) {
    Line("unset arrow");
    Line("unset object");
    Line("set tmargin at screen ", extent.top);
    Line("set bmargin at screen ", extent.bottom);
    Line("unset label 3");
    if (!title.empty()) {
      Line("set label 3 at graph 0.0,1.08 left ", GnuplotString(title));
    }
    Line("set ylabel ", GnuplotString(y_label), " offset 1,0");
    Line("set yrange [*:*]");
    Line("set ytics auto");
    Line("unset xlabel");
  }

  // Where heads or tensor-parallel blocks meet.
  void BlockLines() {
    if (block_ >= width_ || width_ / block_ > kMaxBlockLines) return;
    for (int64_t at = block_; at < width_; at += block_) {
      Line("set arrow from ", at, ", graph 0 to ", at,
           ", graph 1 nohead back lc rgb '#333333' lw 0.8 dt (6,4)");
    }
  }

  void ClusterLines() {
    if (codes_.num_clusters() > kMaxClusterLines) return;
    for (int64_t c = 1; c < codes_.num_clusters(); ++c) {
      Line("set arrow from ", codes_.offsets[c], ", graph 0 to ", codes_.offsets[c],
           ", graph 1 nohead back lc rgb '#d4d4d4' lw 0.6");
    }
  }

  std::string BlockWords() const {
    if (block_ >= width_ || width_ / block_ > kMaxBlockLines) return "";
    return absl::StrCat(" (dashed: ", site_ == QuantSite::kDownIn ? "parts" : "heads", " of ",
                        block_, ")");
  }

  // A box from least to greatest for positions [begin, end).
  static void Boxes(const std::vector<float>& least, const std::vector<float>& greatest,
                    int64_t begin, int64_t end, std::string& data) {
    for (int64_t j = begin; j < end; ++j) {
      absl::StrAppendFormat(&data, "%d %.6g %.6g\n%d %.6g %.6g\n", j, least[j], greatest[j], j + 1,
                            least[j], greatest[j]);
    }
    absl::StrAppend(&data, "\n");
  }

  void Before() {
    std::string data;
    Boxes(codes_.original_minimum, codes_.original_maximum, 0, width_, data);
    Line("$before << EOD\n", data, "EOD");
    BlockLines();
    Line("set xlabel ", GnuplotString(absl::StrCat("channel", BlockWords())), " offset 0,0.6");
    Line("plot $before using 1:2:3 with filledcurves lc rgb '", kBeforeColor,
         "' notitle, 0 with lines lc rgb '#333333' lw 0.6 notitle");
  }

  std::string AfterTitle() const {
    std::string title = "after: channels in the order of the run, folded; ";
    const int64_t clusters = codes_.num_clusters();
    absl::StrAppend(&title, clusters, clusters == 1 ? " cluster" : " clusters");
    if (!codes_.coded()) return title + ", not coded";
    absl::StrAppendFormat(&title, ", %s%g bits", mixed_ ? "on average " : "", MeanBits(codes_));
    if (!codes_.levels.empty()) absl::StrAppend(&title, " of a table");
    if (!codes_.gain.empty()) absl::StrAppend(&title, ", ", codes_.gain, " gain");
    return title;
  }

  // Clusters take turns between two colours; mixed widths have one each.
  int ColorOf(int64_t cluster) const {
    return mixed_ ? codes_.bits[cluster] : static_cast<int>(cluster % 2);
  }

  const char* ColorName(int color) const {
    return mixed_ ? kBitColors[std::clamp(color, 1, 8) - 1] : kClusterColors[color];
  }

  void After() {
    std::set<int> colors;
    for (int64_t c = 0; c < codes_.num_clusters(); ++c) colors.insert(ColorOf(c));
    std::vector<std::string> plots;
    for (const int color : colors) {
      std::string data;
      for (int64_t c = 0; c < codes_.num_clusters(); ++c) {
        if (ColorOf(c) != color) continue;
        Boxes(codes_.minimum, codes_.maximum, codes_.offsets[c], codes_.offsets[c + 1], data);
      }
      Line("$after", color, " << EOD\n", data, "EOD");
      plots.push_back(absl::StrCat("$after", color, " using 1:2:3 with filledcurves lc rgb '",
                                   ColorName(color), "' notitle"));
    }
    // With a gain the codes' units are not the activations'.
    if (codes_.coded() && codes_.gain.empty()) {
      Reach();
      const std::string style = "with lines lc rgb '#30000000' lw 1.2";
      plots.push_back(absl::StrCat("$reach using 1:2 ", style, " title 'what codes reach'"));
      plots.push_back(absl::StrCat("$reach using 1:3 ", style, " notitle"));
    }
    plots.push_back("0 with lines lc rgb '#333333' lw 0.6 notitle");
    ClusterLines();
    BlockLines();
    Line("set xlabel ", GnuplotString(absl::StrCat("position", BlockWords())), " offset 0,0.6");
    Line("plot ", absl::StrJoin(plots, ", "));
  }

  // Values of the least and of the greatest code.
  void Reach() {
    std::string data;
    for (int64_t c = 0; c < codes_.num_clusters(); ++c) {
      const double max_code = codes_.levels.empty() ? (1 << codes_.bits[c]) - 1 : 255.0;
      for (int64_t j = codes_.offsets[c]; j < codes_.offsets[c + 1]; ++j) {
        const double least = codes_.step[j] * (0.0 - codes_.zero[j]);
        const double greatest = codes_.step[j] * (max_code - codes_.zero[j]);
        absl::StrAppendFormat(&data, "%d %.6g %.6g\n%d %.6g %.6g\n\n", j, least, greatest, j + 1,
                              least, greatest);
      }
    }
    Line("$reach << EOD\n", data, "EOD");
  }

  void Bits() {
    std::string data;
    for (int64_t c = 0; c < codes_.num_clusters(); ++c) {
      absl::StrAppend(&data, codes_.offsets[c], " 0 ", codes_.bits[c], " ", codes_.bits[c], "\n",
                      codes_.offsets[c + 1], " 0 ", codes_.bits[c], " ", codes_.bits[c], "\n\n");
    }
    Line("$bits << EOD\n", data, "EOD");
    std::vector<std::string> plots;
    for (const int bits : std::set<int>(codes_.bits.begin(), codes_.bits.end())) {
      plots.push_back(absl::StrCat("$bits using 1:2:($4==", bits,
                                   "?$3:$2) with filledcurves lc rgb '",
                                   kBitColors[std::clamp(bits, 1, 8) - 1], "' notitle"));
    }
    Line("set yrange [0:", *std::max_element(codes_.bits.begin(), codes_.bits.end()) + 0.5, "]");
    Line("set ytics 2");
    Line("set xlabel 'position (colours as above: bits of each cluster)' offset 0,0.6");
    BlockLines();
    Line("plot ", absl::StrJoin(plots, ", "));
  }

  const RangePlotArgs& args_;
  const QuantSite site_;
  const SiteCodes& codes_;
  const int64_t width_;
  const int64_t block_;
  const bool mixed_;
  std::string script_;
};

}  // namespace

absl::StatusOr<std::string> RangePlotScript(const RangePlotArgs& args) {
  if (!args.quantisation->rptq.has_value()) {
    return absl::FailedPreconditionError(
        absl::StrCat(args.dir, ": has no ", kRptqFileName,
                     ", so no ranges to draw; --plot shows what thinwire quantize made"));
  }
  if (args.layer < 0 || args.layer >= args.config->num_layers) {
    return absl::OutOfRangeError(absl::StrCat(args.dir, ": --layer: expected 0 to ",
                                              args.config->num_layers - 1, ", found ", args.layer));
  }
  const LayerCodes& layer = *args.quantisation->layer(args.layer);
  TW_ASSIGN_OR_RETURN(const QuantSite site, FindSite(args, layer));
  const SiteCodes& codes = layer.at(site);
  if (!codes.has_range() || !codes.has_original_range()) {
    return absl::FailedPreconditionError(
        absl::StrCat(args.dir, "/", kRptqFileName, ": layers.", args.layer, ".", SiteName(site),
                     ": has no ", codes.has_range() ? "original_range" : "range",
                     codes.empty() ? " (the site is neither reordered nor coded)"
                                   : "; quantise the model again to record it"));
  }
  return RangePlot(args, site).Script();
}

}  // namespace thinwire
