#include "launcher/report/page_style.h"

#include "absl/strings/str_cat.h"
#include "launcher/report/palette.h"

namespace thinwire {
namespace {

constexpr char kRules[] = R"(
* { box-sizing: border-box; }
body {
  margin: 0 auto; padding: 3rem 1.5rem 4rem; max-width: 66rem;
  color: var(--ink); background: var(--page);
  font: 1rem/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif;
}
h1 { margin: 0 0 1.75rem; font-size: 1.75rem; line-height: 1.2; letter-spacing: -0.01em; }
h2 { margin: 3.25rem 0 0.4rem; font-size: 1.2rem; line-height: 1.3; }
p { margin: 0; max-width: 46rem; }
small { font-size: 0.8125rem; }
.note, figcaption { color: var(--muted); font-size: 0.9rem; max-width: 46rem; }
.headlines { margin: 0; padding: 0; list-style: none; }
.headlines li { display: flex; gap: 0.75rem; align-items: baseline; margin: 0 0 0.9rem; }
.headlines p { max-width: none; font-size: 1.2rem; line-height: 1.35; }
.headlines small { display: block; color: var(--muted); font-size: 0.875rem; }
.badge {
  flex: none; display: inline-block; min-width: 1.35rem; padding: 0 0.3rem;
  border-radius: 0.3rem; font-size: 0.8125rem; font-weight: 600;
  line-height: 1.35rem; text-align: center; print-color-adjust: exact;
  -webkit-print-color-adjust: exact;
}
.legend {
  display: flex; flex-wrap: wrap; gap: 0.25rem 1.25rem; margin: 0.75rem 0 0.5rem; padding: 0;
  list-style: none; font-size: 0.875rem;
}
.legend li { display: flex; gap: 0.45rem; align-items: center; overflow-wrap: anywhere; }
.box {
  flex: none; width: 1rem; height: 1rem; border-radius: 0.15rem; print-color-adjust: exact;
  -webkit-print-color-adjust: exact;
}
.baseline { background: var(--grid); border-top: 2px solid var(--ink); }
figure { margin: 0; break-inside: avoid; }
svg { display: block; width: 100%; height: auto; margin-top: 0.25rem; }
svg text { font-family: inherit; font-variant-numeric: tabular-nums; }
.scroll { overflow-x: auto; margin: 0.75rem 0 0; }
table { width: 100%; border-collapse: collapse; font-size: 0.875rem; line-height: 1.35; }
th, td { padding: 0.45rem 0 0.45rem 0.9rem; border-bottom: 1px solid var(--grid); }
th:first-child { padding-left: 0; text-align: left; overflow-wrap: anywhere; }
tbody th { font-weight: 600; }
thead th { white-space: nowrap;
  color: var(--muted); font-weight: 500; text-align: right; vertical-align: bottom;
  border-bottom-color: var(--muted);
}
thead small, tbody th small {
  display: block; font-size: 0.92em; font-weight: 400; color: var(--muted);
}
td { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
.run { display: flex; gap: 0.6rem; align-items: baseline; }
.runs .run { min-width: 13rem; }
.sum th, .sum td { border-bottom: 0; border-top: 1px solid var(--muted); font-weight: 600; }
details { margin-top: 0.75rem; font-size: 0.9rem; }
summary { color: var(--muted); cursor: pointer; }
h3 { margin: 1.25rem 0 0; font-size: 0.9375rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 0.35rem 1.25rem;
  margin: 0.75rem 0 0; font-size: 0.9rem; }
dt { font-weight: 600; }
dd { margin: 0; max-width: 44rem; color: var(--muted); }
footer { margin-top: 3rem; padding-top: 1rem; border-top: 1px solid var(--grid);
  color: var(--muted); font-size: 0.8125rem; overflow-wrap: anywhere; }
@media (max-width: 40rem) {
  body { padding: 1.5rem 1rem 3rem; }
  figure > .picture { overflow-x: auto; }
  figure svg { min-width: 40rem; }
  dl { grid-template-columns: 1fr; }
  dd { margin-bottom: 0.5rem; }
}
@media print {
  body { max-width: none; padding: 0; font-size: 10pt; }
  h2 { margin-top: 1.75rem; break-after: avoid; }
  .scroll { overflow: visible; }
  table { font-size: 8pt; }
  th, td { padding-left: 0.5rem; }
  tr { break-inside: avoid; }
  h3 { break-after: avoid; }
}
@page { margin: 15mm; }
)";

std::string Variables(absl::string_view PaletteColor::*shade) {
  std::string css;
  const auto add = [&](const PaletteColor& color) {
    absl::StrAppend(&css, " ", color.name, ": ", color.*shade, ";");
  };
  for (const PaletteColor& color : {kPage, kInk, kMuted, kGrid, kRest, kOnDeep, kOnBright})
    add(color);
  for (const PaletteColor& color : kSeries) add(color);
  return css;
}

}  // namespace

std::string PageStyle() {
  std::string css =
      absl::StrCat(":root { color-scheme: light dark;", Variables(&PaletteColor::light), " }\n",
                   "@media screen and (prefers-color-scheme: dark) {\n  :root {",
                   Variables(&PaletteColor::dark), " }\n}", kRules);
  const auto add = [&](const PaletteColor& color) {
    absl::StrAppend(&css, ".", color.name.substr(2), " { background: var(", color.name,
                    "); color: var(", TextOn(color).name, "); }\n");
  };
  for (const PaletteColor& color : kSeries) add(color);
  add(kRest);
  return css;
}

}  // namespace thinwire
