#include "runtime/checkpoint/quant_scheme.h"

#include <algorithm>
#include <bit>

#include "absl/status/status.h"
#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/strip.h"
#include "kernels/core/check.h"
#include "kernels/core/status_macros.h"
#include "runtime/json/json_file.h"

namespace thinwire {
namespace {

// Of a shape's name: centroids of 8 bits.
constexpr absl::string_view kByteBooks = "-c8";

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
      "(weights 16, 4, 3 or 2 bits, activations 16, 8 or 4, K and V 16, 8, 4 or 3), found ",
      QuotedForMessage(name)));
}

}  // namespace

absl::StatusOr<VptqShape> ParseVptqShape(absl::string_view name) {
  absl::string_view rest = name;
  VptqShape shape;
  bool good = absl::ConsumePrefix(&rest, "vptq");
  // Takes "<prefix><number>" off the front, if the rest begins so.
  const auto take = [&](absl::string_view prefix, int64_t least, int64_t most, int* value) {
    absl::string_view digits = rest;
    if (!absl::ConsumePrefix(&digits, prefix) || digits.empty() ||
        !absl::ascii_isdigit(digits.front())) {
      return false;
    }
    const size_t size = std::min(digits.find_first_not_of("0123456789"), digits.size());
    const absl::string_view number = digits.substr(0, size);
    good = good && size < 10 && absl::SimpleAtoi(number, value) && absl::StrCat(*value) == number &&
           *value >= least && *value <= most;
    rest = digits.substr(size);
    return true;
  };
  const auto take_centroids = [&](absl::string_view prefix, int* bits) {
    int count = 0;
    if (!take(prefix, 2, 65536, &count)) return false;
    good = good && std::has_single_bit(static_cast<unsigned>(count));
    *bits = good ? std::countr_zero(static_cast<unsigned>(count)) : 0;
    return true;
  };
  int whole = 0, hundredths = 0;
  if (take("-b", 1, 8, &whole)) {
    shape.byte_books = absl::ConsumeSuffix(&rest, kByteBooks);
    const absl::string_view digits = rest;
    good = good && rest.size() == 3 && rest[0] == '.' &&
           absl::SimpleAtoi(digits.substr(1), &hundredths) && absl::ascii_isdigit(digits[1]);
    shape.centibits = 100 * whole + hundredths;
    if (good && shape.centibits <= 800) return shape;
    good = false;
  }
  good = take("-v", 1, 16, &shape.length) && good;
  good = take_centroids("-k", &shape.index_bits) && good;
  shape.residual = take_centroids("-r", &shape.residual_bits);
  take("-g", 2, 64, &shape.num_groups);
  if (take("-o", 1, 50, &shape.outlier_percent)) {
    good = take("v", 2, 16, &shape.outlier_length) && good;
    good = take_centroids("k", &shape.outlier_bits) && good;
  }
  shape.byte_books = absl::ConsumePrefix(&rest, kByteBooks);
  shape.norm = !absl::ConsumePrefix(&rest, "-raw");
  if (good && rest.empty()) return shape;
  return absl::InvalidArgumentError(absl::StrCat(
      "expected such as vptq-v8-k4096, vptq-v8-k4096-r256 or vptq-v6-k256-g2-o1v2k256 (vectors of "
      "1 to 16, 2 to 65536 centroids, a power of two; groups; percent, vectors and centroids of "
      "outlier columns), or vptq-v8-k4096-c8 (centroids of 8 bits), found ",
      QuotedForMessage(name)));
}

std::string VptqShapeName(const VptqShape& shape) {
  if (shape.centibits > 0) {
    return absl::StrFormat("vptq-b%d.%02d%s", shape.centibits / 100, shape.centibits % 100,
                           shape.byte_books ? kByteBooks : "");
  }
  const auto centroids = [](int bits) { return int64_t{1} << bits; };
  std::string name = absl::StrCat("vptq-v", shape.length, "-k", centroids(shape.index_bits));
  if (shape.residual) absl::StrAppend(&name, "-r", centroids(shape.residual_bits));
  if (shape.num_groups > 1) absl::StrAppend(&name, "-g", shape.num_groups);
  if (shape.outlier_percent > 0) {
    absl::StrAppend(&name, "-o", shape.outlier_percent, "v", shape.outlier_length, "k",
                    centroids(shape.outlier_bits));
  }
  return absl::StrCat(name, shape.byte_books ? kByteBooks : "", shape.norm ? "" : "-raw");
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
  scheme.weight_bits = ConsumeBits(&rest, {16, 4, 3, 2});
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
  if (scheme.vptq.any()) {
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
