#include "launcher/report/inline_svg.h"

#include <cstdint>
#include <utility>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_replace.h"
#include "launcher/report/html.h"
#include "launcher/report/palette.h"

namespace thinwire {
namespace {

// Replaces the colour in both ways that gnuplot writes it, as attributes.
void AddColor(const PaletteColor& color,
              std::vector<std::pair<std::string, std::string>>& replacements) {
  uint32_t rgb = 0;
  if (!absl::SimpleHexAtoi(color.light.substr(1), &rgb)) return;
  const int red = rgb >> 16, green = (rgb >> 8) & 255, blue = rgb & 255;
  for (const std::string& form : {absl::StrFormat("rgb(%3d, %3d, %3d)", red, green, blue),
                                  absl::StrFormat("rgb(%d,%d,%d)", red, green, blue)}) {
    for (const char* quote : {"'", "\""}) {
      replacements.emplace_back(absl::StrCat(quote, form, quote),
                                absl::StrCat("\"var(", color.name, ")\""));
    }
  }
}

// Without the elements from `open` to `close`.
std::string Without(absl::string_view text, absl::string_view open, absl::string_view close) {
  std::string left;
  while (true) {
    const size_t begin = text.find(open);
    const size_t end = begin == text.npos ? text.npos : text.find(close, begin);
    if (end == text.npos) return absl::StrCat(left, text);
    absl::StrAppend(&left, text.substr(0, begin));
    text.remove_prefix(end + close.size());
  }
}

}  // namespace

absl::StatusOr<std::string> InlineSvg(absl::string_view svg, absl::string_view name,
                                      absl::string_view title) {
  constexpr absl::string_view kViewBox = "viewBox=\"";
  const size_t root = svg.find("<svg");
  const size_t body = root == svg.npos ? root : svg.find('>', root);
  const size_t end = svg.rfind("</svg>");
  if (body == svg.npos || end == svg.npos || end < body) {
    return absl::InternalError("gnuplot: drew no SVG");
  }
  const absl::string_view attributes = svg.substr(root, body - root);
  const size_t box = attributes.find(kViewBox);
  if (box == attributes.npos) return absl::InternalError("gnuplot: drew an SVG without viewBox");
  absl::string_view view_box = attributes.substr(box + kViewBox.size());
  view_box = view_box.substr(0, view_box.find('"'));

  std::string content(svg.substr(body + 1, end - body - 1));
  content = Without(content, "<title>", "</title>");
  content = Without(content, "<desc>", "</desc>");
  content = Without(content, "<filter", "</filter>");
  std::vector<std::pair<std::string, std::string>> replacements = {
      {"<g id=", "<g class="},
      {"<use xlink:href='#gp", absl::StrCat("<use href='#", name, "-")},
      {" id='gp", absl::StrCat(" id='", name, "-")},
      {" font-family=\"sans-serif\"", ""},
  };
  for (const PaletteColor& color : {kInk, kMuted, kGrid, kRest, kOnDeep, kOnBright}) {
    AddColor(color, replacements);
  }
  for (const PaletteColor& color : kSeries) AddColor(color, replacements);
  content = absl::StrReplaceAll(content, replacements);
  return absl::StrCat("<svg viewBox=\"", view_box, "\" role=\"img\" aria-labelledby=\"", name,
                      "-title\">\n<title id=\"", name, "-title\">", EscapeHtml(title), "</title>",
                      content, "</svg>\n");
}

}  // namespace thinwire
