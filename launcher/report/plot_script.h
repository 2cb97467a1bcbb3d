// What the page's pictures have in common.
#pragma once

#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "launcher/plot/gnuplot.h"
#include "launcher/report/palette.h"

namespace thinwire {

inline constexpr int kPlotWidth = 960;  // in the units of its height and fonts

// A script that grows line by line, from what all pictures share.
class PlotScript {
 public:
  explicit PlotScript(int height) {
    Line("set terminal svg size ", kPlotWidth, ",", height,
         " dynamic noenhanced font 'sans-serif,14'");
    Line("set encoding utf8");
    Line("unset key");
    Line("set border 3 lc rgb '", kMuted.light, "'");
    Line("set tics nomirror out scale 0.4 textcolor rgb '", kInk.light, "'");
    Line("set style fill solid 1.0 noborder");
  }

  template <typename... Args>
  void Line(const Args&... args) {
    absl::StrAppend(&text_, args..., "\n");
  }

  // Text in muted ink.
  void Label(absl::string_view position, absl::string_view text) {
    Line("set label ", GnuplotString(text), " at ", position, " textcolor rgb '", kMuted.light,
         "'");
  }

  void Grid(absl::string_view axes) {
    Line("set grid ", axes, " back lt 1 lw 0.8 lc rgb '", kGrid.light, "'");
  }

  std::string Finish() { return std::move(text_); }

 private:
  std::string text_;
};

// A plot of boxes: rows of x, y, and the least and greatest x and y.
inline std::string Boxes(absl::string_view data, const PaletteColor& color) {
  return absl::StrCat(data, " using 1:2:3:4:5:6 with boxxyerror fc rgb '", color.light, "'");
}

}  // namespace thinwire
