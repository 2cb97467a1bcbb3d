// The page's colours: told apart by colour-blind readers (Okabe and Ito), on light and on dark.
#pragma once

#include <cstddef>

#include "absl/strings/string_view.h"

namespace thinwire {

// A script draws with `light`; on the page that becomes the CSS variable `name`, which is `light`
// or, where the reader prefers that, `dark`. Each `light` stands for one name.
struct PaletteColor {
  absl::string_view name;
  absl::string_view light;
  absl::string_view dark;
};

inline constexpr PaletteColor kInk = {"--ink", "#1f2429", "#e8eaed"};
inline constexpr PaletteColor kMuted = {"--muted", "#5f6b76", "#a2adb8"};
inline constexpr PaletteColor kGrid = {"--grid", "#e3e7eb", "#343b43"};
inline constexpr PaletteColor kPage = {"--page", "#ffffff", "#15191d"};
inline constexpr PaletteColor kRest = {"--rest", "#ccd3da", "#4a535d"};

// Text on other colours.
inline constexpr PaletteColor kOnDeep = {"--on-deep", "#fefefe", "#14181c"};
inline constexpr PaletteColor kOnBright = {"--on-bright", "#14181d", "#14181d"};

// Of runs and strategies, which take turns.
inline constexpr PaletteColor kSeries[] = {
    {"--s0", "#0072b2", "#58a9e2"}, {"--s1", "#e69f00", "#f2b536"}, {"--s2", "#009e73", "#35c199"},
    {"--s3", "#d55e00", "#f4813a"}, {"--s4", "#cc79a7", "#e09ac1"}, {"--s5", "#56b4e9", "#9ad6f7"},
    {"--s6", "#7a6a53", "#bba98d"},
};
inline constexpr PaletteColor kTransfer = kSeries[0];
inline constexpr PaletteColor kCodec = kSeries[1];

// What text on `color` is written in.
inline const PaletteColor& TextOn(const PaletteColor& color) {
  for (const int bright : {1, 4, 5}) {
    if (color.name == kSeries[bright].name) return kOnBright;
  }
  return kOnDeep;
}

inline const PaletteColor& SeriesColor(size_t index) {
  return kSeries[index % (sizeof(kSeries) / sizeof(kSeries[0]))];
}

}  // namespace thinwire
