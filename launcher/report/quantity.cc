#include "launcher/report/quantity.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace thinwire {
namespace {

constexpr Scale kByteScales[] = {{1.0, "B"},  {1e3, "kB"},  {1e6, "MB"},
                                 {1e9, "GB"}, {1e12, "TB"}, {1e15, "PB"}};
constexpr absl::string_view kBinaryUnits[] = {"B", "KiB", "MiB", "GiB", "TiB"};
constexpr char kNarrowSpace[] = "\u202f";

}  // namespace

Scale ByteScale(double value) {
  Scale best = kByteScales[0];
  for (const Scale& scale : kByteScales) {
    if (value >= 0.9995 * scale.divisor) best = scale;
  }
  return best;
}

std::string ThreeDigits(double value) {
  const int decimals = value < 9.995 ? 2 : value < 99.95 ? 1 : 0;
  return absl::StrFormat("%.*f", decimals, value);
}

std::string FormatBytes(double bytes) {
  const Scale scale = ByteScale(bytes);
  const double value = bytes / scale.divisor;
  const bool whole = scale.divisor == 1.0 && value == std::round(value);
  return absl::StrCat(whole ? absl::StrFormat("%.0f", value) : ThreeDigits(value), " ", scale.unit);
}

std::string FormatPercent(double fraction) {
  const double percent = 100.0 * fraction;
  if (percent == 0.0) return "0 %";
  if (percent < 0.01) return "< 0.01 %";
  const int decimals = percent < 0.0995 ? 2 : percent < 9.95 ? 1 : 0;
  return absl::StrFormat("%.*f %%", decimals, percent);
}

std::string FormatCount(int64_t count) {
  std::string digits = absl::StrCat(count);
  for (int64_t at = static_cast<int64_t>(digits.size()) - 3; at > (count < 0 ? 1 : 0); at -= 3) {
    digits.insert(at, kNarrowSpace);
  }
  return digits;
}

std::string FormatMessageSize(int64_t bytes) {
  size_t unit = 0;
  int64_t size = bytes;
  while (size >= 1024 && size % 1024 == 0 && unit + 1 < std::size(kBinaryUnits)) {
    size /= 1024;
    ++unit;
  }
  if (size >= 10000) return FormatBytes(static_cast<double>(bytes));
  return absl::StrCat(size, " ", kBinaryUnits[unit]);
}

int CommonDecimals(absl::Span<const double> values) {
  double least = 0.0;
  for (const double value : values) {
    if (value > 0.0 && (least == 0.0 || value < least)) least = value;
  }
  if (least == 0.0) return 0;
  return std::clamp(1 - static_cast<int>(std::floor(std::log10(least))), 0, 4);
}

}  // namespace thinwire
