#include "parallel/wire/strategy.h"

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "kernels/core/status_macros.h"

namespace thinwire {
namespace {

constexpr char kStrategies[] =
    "auto, native, fp16, one-shot-q8, -q6, -q5, -q4, token-owner-q8, -q6, -q5, -q4, "
    "exact";

absl::StatusOr<WireStrategy> ParseStrategy(absl::string_view name) {
  using Kind = WireStrategy::Kind;
  if (name == "native") return WireStrategy{Kind::kNative, 16};
  if (name == "fp16") return WireStrategy{Kind::kFp16, 16};
  if (name == "exact") return WireStrategy{Kind::kExact, 16};
  absl::string_view bits = name;
  const bool one_shot = absl::ConsumePrefix(&bits, "one-shot-q");
  if ((one_shot || absl::ConsumePrefix(&bits, "token-owner-q")) &&
      (bits == "8" || bits == "6" || bits == "5" || bits == "4")) {
    return WireStrategy{one_shot ? Kind::kOneShot : Kind::kTokenOwner, bits[0] - '0'};
  }
  return absl::InvalidArgumentError(
      absl::StrCat("--wire ", name, ": unknown strategy; expected one of ", kStrategies));
}

RowCodec HopOf(const WireStrategy& strategy) {
  switch (strategy.kind) {
    case WireStrategy::Kind::kNative:
    case WireStrategy::Kind::kExact:
      return {RowCodec::Kind::kNative};
    case WireStrategy::Kind::kFp16:
      return {RowCodec::Kind::kFp16};
    case WireStrategy::Kind::kOneShot:
    case WireStrategy::Kind::kTokenOwner:
      break;
  }
  return {RowCodec::Kind::kCodes, 8};
}

}  // namespace

std::string WireStrategyName(const WireStrategy& strategy) {
  switch (strategy.kind) {
    case WireStrategy::Kind::kNative:
      return "native";
    case WireStrategy::Kind::kFp16:
      return "fp16";
    case WireStrategy::Kind::kOneShot:
      return absl::StrCat("one-shot-q", strategy.bits);
    case WireStrategy::Kind::kTokenOwner:
      return absl::StrCat("token-owner-q", strategy.bits);
    case WireStrategy::Kind::kExact:
      return "exact";
  }
  return "unknown";
}

std::string WireName(const WireOptions& options) {
  return options.automatic ? "auto" : WireStrategyName(options.strategy);
}

int NormBits(const WireOptions& options) { return options.norm_bits != 0 ? options.norm_bits : 8; }

absl::StatusOr<WireOptions> ParseWireOptions(absl::string_view name, absl::string_view hop,
                                             absl::string_view norm_codes) {
  WireOptions options;
  options.automatic = name == "auto";
  if (options.automatic) {
    // Until a table is there; and the strategy that decides on the hop.
    options.strategy = {WireStrategy::Kind::kOneShot, 5};
  } else {
    TW_ASSIGN_OR_RETURN(options.strategy, ParseStrategy(name));
  }
  if (hop == "auto") {
    options.hop = HopOf(options.strategy);
  } else if (hop == "native") {
    options.hop = {RowCodec::Kind::kNative};
  } else if (hop == "fp16") {
    options.hop = {RowCodec::Kind::kFp16};
  } else if (hop == "q8") {
    options.hop = {RowCodec::Kind::kCodes, 8};
  } else {
    return absl::InvalidArgumentError(
        absl::StrCat("--hop ", hop, ": expected auto, native, fp16 or q8"));
  }
  if (norm_codes == "8" || norm_codes == "6" || norm_codes == "5" || norm_codes == "4") {
    options.norm_bits = norm_codes[0] - '0';
  } else if (norm_codes != "auto") {
    return absl::InvalidArgumentError(
        absl::StrCat("--norm-codes ", norm_codes, ": expected auto, 8, 6, 5 or 4"));
  }
  if (options.strategy.kind == WireStrategy::Kind::kExact &&
      (options.hop.kind != RowCodec::Kind::kNative || options.norm_bits != 0)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "--wire exact rounds nothing on its way; expected --hop auto or native and --norm-codes "
        "auto, found --hop ",
        hop, " and --norm-codes ", norm_codes));
  }
  return options;
}

}  // namespace thinwire
