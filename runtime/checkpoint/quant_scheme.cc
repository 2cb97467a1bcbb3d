#include "runtime/checkpoint/quant_scheme.h"

#include <algorithm>
#include <bit>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "kernels/core/check.h"
#include "kernels/core/status_macros.h"
#include "runtime/json/json_file.h"

namespace thinwire {
namespace {

// Takes one of `widths` off the front of `name`; 0 if it begins with none.
int ConsumeBits(absl::string_view* name, std::initializer_list<int> widths) {
  for (const int bits : widths) {
    if (absl::ConsumePrefix(name, absl::StrCat(bits))) return bits;
  }
  return 0;
}

absl::Status UnknownScheme(absl::string_view name) {
  return absl::InvalidArgumentError(absl::StrCat(
      "expected a scheme such as w16a16, w4a16, w4a8, w4a4, w4a4kv, w4a3kv, w3a3kv or w4a8kv4 "
      "(weights 16, 4 or 3 bits, activations 16, 8 or 4, K and V 16, 8, 4 or 3), found ",
      QuotedForMessage(name)));
}

}  // namespace

absl::StatusOr<VptqShape> ParseVptqShape(absl::string_view name) {
  const std::vector<std::string> words = absl::StrSplit(name, '-');
  const auto number = [&](size_t word, char letter) -> int64_t {
    int64_t value = 0;
    const bool there = word < words.size() && !words[word].empty() && words[word][0] == letter &&
                       absl::SimpleAtoi(words[word].substr(1), &value);
    return there && absl::StrCat(value) == words[word].substr(1) ? value : 0;
  };
  const auto is_size = [](int64_t count) {
    return count > 0 && count <= 65536 && std::has_single_bit(static_cast<uint64_t>(count));
  };
  const int64_t length = number(1, 'v'), count = number(2, 'k'), more = number(3, 'r');
  const bool residual = words.size() == 4;
  if (words[0] != "vptq" || words.size() < 3 || words.size() > 4 || length < 1 || length > 16 ||
      count < 2 || !is_size(count) || (residual && (more < 2 || !is_size(more)))) {
    return absl::InvalidArgumentError(
        absl::StrCat("expected such as vptq-v8-k4096 or vptq-v8-k4096-r256 (vectors of 1 to 16, 2 "
                     "to 65536 centroids, a power of two), found ",
                     QuotedForMessage(name)));
  }
  VptqShape shape = {.length = static_cast<int>(length),
                     .index_bits = std::countr_zero(static_cast<uint64_t>(count)),
                     .residual = residual};
  if (residual) shape.residual_bits = std::countr_zero(static_cast<uint64_t>(more));
  return shape;
}

std::string VptqShapeName(const VptqShape& shape) {
  return absl::StrCat("vptq-v", shape.length, "-k", int64_t{1} << shape.index_bits,
                      shape.residual ? absl::StrCat("-r", int64_t{1} << shape.residual_bits) : "");
}

absl::StatusOr<QuantScheme> ParseScheme(absl::string_view name) {
  if (absl::StartsWith(name, "vptq-")) {
    const size_t acts = name.rfind("-a");
    QuantScheme scheme;
    if (acts != name.npos) {
      TW_ASSIGN_OR_RETURN(scheme, ParseScheme(absl::StrCat("w16", name.substr(acts + 1))));
    }
    TW_ASSIGN_OR_RETURN(scheme.vptq, ParseVptqShape(name.substr(0, acts)));
    return scheme;
  }
  absl::string_view rest = name;
  QuantScheme scheme;
  if (!absl::ConsumePrefix(&rest, "w")) return UnknownScheme(name);
  scheme.weight_bits = ConsumeBits(&rest, {16, 4, 3});
  if (scheme.weight_bits == 0 || !absl::ConsumePrefix(&rest, "a")) return UnknownScheme(name);
  const int second = ConsumeBits(&rest, {16, 8, 4, 3});
  if (second == 0) return UnknownScheme(name);
  const bool known_acts = second != 3;
  if (rest.empty() && known_acts) {
    scheme.act_bits = scheme.kv_bits = second;
    return scheme;
  }
  if (!absl::ConsumePrefix(&rest, "kv")) return UnknownScheme(name);
  if (rest.empty() && second != 16) {
    scheme.kv_bits = second;
    return scheme;
  }
  scheme.act_bits = second;
  scheme.kv_bits = ConsumeBits(&rest, {16, 8, 4, 3});
  if (!known_acts || scheme.kv_bits == 0 || !rest.empty()) return UnknownScheme(name);
  return scheme;
}

std::string SchemeName(const QuantScheme& scheme) {
  if (scheme.vptq.length > 0) {
    return absl::StrCat(
        VptqShapeName(scheme.vptq),
        scheme.has_codes() ? absl::StrCat("-a", scheme.act_bits, "kv", scheme.kv_bits) : "");
  }
  for (const char* name : {"w16a16", "w4a16", "w4a8", "w4a4", "w4a4kv", "w4a3kv", "w3a3kv"}) {
    if (ParseScheme(name).value() == scheme) return name;
  }
  return absl::StrCat("w", scheme.weight_bits, "a", scheme.act_bits, "kv", scheme.kv_bits);
}

absl::string_view SiteName(QuantSite site) {
  switch (site) {
    case QuantSite::kQkvIn:
      return "qkv_in";
    case QuantSite::kQ:
      return "q";
    case QuantSite::kK:
      return "k";
    case QuantSite::kV:
      return "v";
    case QuantSite::kOutIn:
      return "out_in";
    case QuantSite::kMlpIn:
      return "mlp_in";
    case QuantSite::kDownIn:
      return "down_in";
  }
  TW_CHECK(false);
  return "";
}

int SiteBits(const QuantScheme& scheme, QuantSite site) {
  switch (site) {
    case QuantSite::kQkvIn:
    case QuantSite::kMlpIn:
      return std::max(8, scheme.act_bits);
    case QuantSite::kQ:
    case QuantSite::kOutIn:
    case QuantSite::kDownIn:
      return scheme.act_bits;
    case QuantSite::kK:
    case QuantSite::kV:
      return scheme.kv_bits;
  }
  TW_CHECK(false);
  return 0;
}

}  // namespace thinwire
