#include "launcher/report/wire_plots.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <set>
#include <utility>
#include <vector>

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

constexpr size_t kMaxTickChars = 30;
constexpr double kMinLabelledShare = 5.0;  // %
constexpr size_t kMaxSizeTicks = 12;
constexpr double kLabelHeight = 0.045;  // of the latency plot

// Ticks of a logarithmic axis of sizes.
std::string SizeTicks(const std::set<int64_t>& sizes) {
  const size_t step = (sizes.size() + kMaxSizeTicks - 1) / kMaxSizeTicks;
  std::vector<std::string> ticks;
  size_t i = 0;
  for (const int64_t size : sizes) {
    if (i++ % step == 0) ticks.push_back(absl::StrCat("'", FormatMessageSize(size), "' ", size));
  }
  return absl::StrJoin(ticks, ", ");
}

// The top of a whisker.
double P99(const CommRecord& record) {
  return std::max(record.p99_us.value_or(0.0), *record.p50_us);
}

}  // namespace

std::string StepPlot(absl::Span<const RunRecord> runs, absl::Span<const std::string> labels) {
  const int height = 44 + 34 * static_cast<int>(runs.size());
  PlotScript script(height);
  size_t longest = 0;
  std::vector<std::string> ticks;
  const PaletteColor* const colors[] = {&kTransfer, &kCodec, &kRest};
  std::string bars[3];
  for (size_t r = 0; r < runs.size(); ++r) {
    const std::string label = Shortened(absl::StrCat(r + 1, "\u2002", labels[r]), kMaxTickChars);
    longest = std::max(longest, label.size());
    ticks.push_back(absl::StrCat(GnuplotString(label), " ", r));
    const StepShares shares = runs[r].Shares();
    const double ends[] = {0.0, 100.0 * shares.transfer, 100.0 * (shares.transfer + shares.codec),
                           100.0};
    for (int part = 0; part < 3; ++part) {
      const double begin = ends[part], end = ends[part + 1];
      absl::StrAppendFormat(&bars[part], "%.6g %d %.6g %.6g %g %g\n", begin, r, begin, end,
                            r - 0.36, r + 0.36);
      if (end - begin < kMinLabelledShare) continue;
      script.Line("set label '", FormatPercent((end - begin) / 100.0), "' at ", begin, ",", r,
                  " left offset 0.8,0 front textcolor rgb '",
                  part == 2 ? kInk.light : TextOn(*colors[part]).light, "'");
    }
  }
  const double bottom = 36.0 / height;
  script.Line("set lmargin at screen ",
              (30.0 + 7.5 * static_cast<double>(std::min(longest, kMaxTickChars))) / kPlotWidth);
  script.Line("set rmargin at screen 0.975");
  script.Line("set tmargin at screen 0.985");
  script.Line("set bmargin at screen ", bottom);
  script.Line("set border 1 lc rgb '", kMuted.light, "'");
  script.Grid("xtics");
  script.Line("set xrange [0:100]");
  script.Line("set xtics 20 format '%g %%'");
  script.Line("set yrange [", static_cast<double>(runs.size()) - 0.5, ":-0.5]");
  script.Line("set ytics (", absl::StrJoin(ticks, ", "), ") scale 0");
  std::vector<std::string> plots;
  for (int part = 0; part < 3; ++part) {
    script.Line("$part", part, " << EOD\n", bars[part], "EOD");
    plots.push_back(Boxes(absl::StrCat("$part", part), *colors[part]));
  }
  script.Line("plot ", absl::StrJoin(plots, ", "));
  return script.Finish();
}

std::string TradePlot(absl::Span<const RunRecord> runs) {
  double most_bytes = 0.0, most_tokens = 1e-9;
  for (const RunRecord& run : runs) {
    most_bytes = std::max(most_bytes, run.PerToken(run.Total().sent_bytes()));
    most_tokens = std::max(most_tokens, run.tokens_per_second);
  }
  const Scale scale = ByteScale(most_bytes);
  PlotScript script(380);
  script.Grid("xtics ytics");
  script.Line("set lmargin at screen 0.07");
  script.Line("set rmargin at screen 0.985");
  script.Line("set tmargin at screen 0.89");
  script.Line("set bmargin at screen 0.15");
  script.Line("set xrange [0:", 1.12 * std::max(most_bytes / scale.divisor, 1e-9), "]");
  script.Line("set yrange [0:", 1.18 * most_tokens, "]");
  script.Label("graph 0,1.07 left", "generated tokens/s");
  script.Line("set xlabel ", GnuplotString(absl::StrCat(scale.unit, " sent per token")),
              " offset 0,0.3 textcolor rgb '", kMuted.light, "'");
  std::vector<std::string> plots;
  for (size_t r = 0; r < runs.size(); ++r) {
    const double bytes = runs[r].PerToken(runs[r].Total().sent_bytes()) / scale.divisor;
    script.Line("$run", r, " << EOD\n", bytes, " ", runs[r].tokens_per_second, "\nEOD");
    script.Line("set label '", r + 1, "' at ", bytes, ",", runs[r].tokens_per_second,
                " left offset 1.1,0 textcolor rgb '", kInk.light, "' front");
    plots.push_back(absl::StrCat("$run", r, " using 1:2 with points pt 7 ps 1.6 lc rgb '",
                                 SeriesColor(r).light, "'"));
  }
  script.Line("plot ", absl::StrJoin(plots, ", "));
  return script.Finish();
}

std::string LatencyPlot(absl::Span<const CommRecord> comm, absl::Span<const int> series) {
  std::map<int, std::map<int64_t, const CommRecord*>> lines;
  std::set<int64_t> sizes;
  double least = std::numeric_limits<double>::max(), greatest = 0.0;
  for (size_t i = 0; i < comm.size(); ++i) {
    // A logarithm has no place for zeros.
    if (comm[i].p50_us.value_or(0.0) <= 0.0 || comm[i].logical_bytes == 0) continue;
    lines[series[i]][comm[i].logical_bytes] = &comm[i];
    sizes.insert(comm[i].logical_bytes);
    least = std::min(least, *comm[i].p50_us);
    greatest = std::max(greatest, P99(comm[i]));
  }
  if (sizes.empty()) return "";
  least /= 1.6;
  greatest *= 1.6;
  PlotScript script(440);
  script.Grid("xtics ytics");
  script.Line("set lmargin at screen 0.08");
  script.Line("set rmargin at screen 0.975");
  script.Line("set tmargin at screen 0.91");
  script.Line("set bmargin at screen 0.14");
  script.Line("set logscale xy");
  script.Line("set xtics (", SizeTicks(sizes), ")");
  script.Line("set ytics format '%g'");
  script.Line("set xrange [", 0.75 * static_cast<double>(*sizes.begin()), ":",
              1.4 * static_cast<double>(*sizes.rbegin()), "]");
  script.Line("set yrange [", least, ":", greatest, "]");
  script.Label("graph 0,1.06 left", "µs, median; whiskers to the 99th percentile");
  script.Line("set xlabel 'bytes of the message as fp16' offset 0,0.3 textcolor rgb '",
              kMuted.light, "'");
  std::vector<std::string> plots;
  std::vector<std::pair<double, int>> ends;  // of lines, and whose
  for (const auto& [number, line] : lines) {
    std::string medians, whiskers;
    for (const auto& [size, record] : line) {
      absl::StrAppendFormat(&medians, "%d %.6g\n", size, *record->p50_us);
      absl::StrAppendFormat(&whiskers, "%d %.6g\n%d %.6g\n\n", size, *record->p50_us, size,
                            P99(*record));
    }
    ends.emplace_back(*line.rbegin()->second->p50_us, number);
    script.Line("$whiskers", number, " << EOD\n", whiskers, "EOD");
    script.Line("$line", number, " << EOD\n", medians, "EOD");
    const std::string color = absl::StrCat(" lc rgb '", SeriesColor(number).light, "'");
    plots.push_back(absl::StrCat("$whiskers", number, " with lines lw 1", color));
    plots.push_back(absl::StrCat("$line", number, " with lines lw 2", color));
    plots.push_back(absl::StrCat("$line", number, " with points pt 7 ps 0.6", color));
  }
  // Numbers at the ends of lines, from below, none on top of another.
  std::sort(ends.begin(), ends.end());
  const double apart = std::pow(greatest / least, kLabelHeight);
  double lowest = 0.0;
  for (const auto& [value, number] : ends) {
    const double at = std::max(value, lowest);
    lowest = at * apart;
    script.Line("set label '", number + 1, "' at ", lines[number].rbegin()->first, ",", at,
                " left offset 0.9,0 front textcolor rgb '", kInk.light, "'");
  }
  script.Line("plot ", absl::StrJoin(plots, ", "));
  return script.Finish();
}

}  // namespace thinwire
