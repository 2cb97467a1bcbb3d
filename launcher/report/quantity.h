// Numbers as people read them.
#pragma once

#include <cstdint>
#include <string>

#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace thinwire {

// A power of 1000 and the unit that stands for it.
struct Scale {
  double divisor;
  absl::string_view unit;
};

// "B", "kB", ... "PB": so that `value`, as three digits show it, is in [1, 1000).
Scale ByteScale(double value);

// "1.20", "45.6", "789"; at most two decimals.
std::string ThreeDigits(double value);

std::string FormatBytes(double bytes);         // "12.3 MB", "17 B"
std::string FormatPercent(double fraction);    // "27 %", "2.7 %", "0.03 %"
std::string FormatCount(int64_t count);        // groups of three digits, apart by narrow spaces
std::string FormatMessageSize(int64_t bytes);  // "64 KiB" where it is that, else FormatBytes

// Decimals for numbers that stand below each other: the least (but zeros) has two digits; 0 to 4.
int CommonDecimals(absl::Span<const double> values);

}  // namespace thinwire
