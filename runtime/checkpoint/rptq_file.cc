#include "runtime/checkpoint/rptq_file.h"

#include <cmath>
#include <cstring>
#include <map>
#include <optional>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "kernels/core/check.h"
#include "kernels/core/status_macros.h"
#include "runtime/checkpoint/safetensors.h"
#include "runtime/checkpoint/safetensors_writer.h"
#include "runtime/json/json_file.h"

namespace thinwire {
namespace {

constexpr char kFormatPrefix[] = "thinwire-rptq-";
constexpr int kFormatVersion = 1;
constexpr int kUncodedBits = 16;
constexpr int kMaxBits = 8;
constexpr size_t kNumLevels = 16;
constexpr int kLevelBits = 4;
constexpr const char* kGains[] = {"", "rms", "max"};  // by number in the file

std::string TensorName(size_t layer, QuantSite site, absl::string_view part) {
  return absl::StrCat("layers.", layer, ".", SiteName(site), ".", part);
}

// One site being checked: its place and what its messages begin with.
struct SiteContext {
  absl::string_view file;
  size_t layer = 0;
  QuantSite site = QuantSite::kQkvIn;

  template <typename... Args>
  absl::Status Error(absl::string_view part, const Args&... text) const {
    return absl::InvalidArgumentError(absl::StrCat(
        file, ": tensor ", QuotedForMessage(TensorName(layer, site, part)), ": ", text...));
  }
};

// A permutation of [0, order.size()) that maps each run of `block` positions to itself.
absl::Status CheckOrder(const SiteContext& context, absl::Span<const int32_t> order,
                        int64_t block) {
  std::vector<bool> seen(order.size());
  for (size_t j = 0; j < order.size(); ++j) {
    const int64_t begin = static_cast<int64_t>(j) / block * block;
    if (order[j] < begin || order[j] >= begin + block) {
      return context.Error("order", "expected channels within [", begin, ", ", begin + block,
                           ") at positions of this range, found ", order[j], " at ", j);
    }
    if (seen[order[j]]) {
      return context.Error("order", "expected each channel once, found ", order[j],
                           " again at position ", j);
    }
    seen[order[j]] = true;
  }
  return absl::OkStatus();
}

absl::Status CheckOffsets(const SiteContext& context, const SiteCodes& codes, int64_t width,
                          int64_t block) {
  const absl::Span<const int32_t> offsets = codes.offsets;
  if (offsets.size() != codes.bits.size() + 1) {
    return context.Error("offsets", "expected ", codes.bits.size() + 1, " positions for ",
                         codes.bits.size(), " clusters, found ", offsets.size());
  }
  if (offsets.front() != 0 || offsets.back() != width) {
    return context.Error("offsets", "expected to go from 0 to ", width, ", found ", offsets.front(),
                         " to ", offsets.back());
  }
  for (size_t c = 0; c + 1 < offsets.size(); ++c) {
    if (offsets[c] >= offsets[c + 1] || offsets[c + 1] > width) {
      return context.Error("offsets", "expected ascending positions up to ", width, ", found ",
                           offsets[c], " before ", offsets[c + 1]);
    }
    if (codes.coded() && offsets[c] / block != (offsets[c + 1] - 1) / block) {
      return context.Error("offsets", "expected each cluster inside a block of ", block,
                           " channels, found [", offsets[c], ", ", offsets[c + 1], ")");
    }
  }
  return absl::OkStatus();
}

absl::Status CheckBits(const SiteContext& context, const SiteCodes& codes) {
  if (codes.bits.empty()) return context.Error("bits", "expected one or more clusters, found none");
  for (const int bits : codes.bits) {
    const bool allowed = codes.coded() ? bits >= 1 && bits <= kMaxBits : bits == kUncodedBits;
    if (!allowed) {
      return context.Error("bits", "expected ",
                           codes.coded() ? absl::StrCat("1 to ", kMaxBits, " beside a step")
                                         : absl::StrCat(kUncodedBits, " without a step"),
                           ", found ", bits);
    }
  }
  return absl::OkStatus();
}

absl::Status CheckSteps(const SiteContext& context, const SiteCodes& codes, int64_t width) {
  if (codes.zero.size() != codes.step.size() ||
      (codes.coded() && static_cast<int64_t>(codes.step.size()) != width)) {
    return context.Error("step", "expected ", width, " steps and zeros, found ", codes.step.size(),
                         " and ", codes.zero.size());
  }
  for (size_t j = 0; j < codes.step.size(); ++j) {
    if (!std::isfinite(codes.step[j]) || codes.step[j] <= 0) {
      return context.Error("step", "expected finite numbers > 0, found ", codes.step[j],
                           " at position ", j);
    }
    if (!std::isfinite(codes.zero[j])) {
      return context.Error("zero", "expected finite numbers, found ", codes.zero[j],
                           " at position ", j);
    }
  }
  return absl::OkStatus();
}

absl::Status CheckLevels(const SiteContext& context, const SiteCodes& codes) {
  if (codes.levels.empty()) return absl::OkStatus();
  if (codes.levels.size() != kNumLevels) {
    return context.Error("levels", "expected ", kNumLevels, " levels, found ", codes.levels.size());
  }
  for (size_t i = 0; i + 1 < kNumLevels; ++i) {
    if (codes.levels[i] >= codes.levels[i + 1]) {
      return context.Error("levels", "expected ascending levels, found ", codes.levels[i],
                           " before ", codes.levels[i + 1]);
    }
  }
  for (const int bits : codes.bits) {
    if (bits != kLevelBits) {
      return context.Error("bits", "expected ", kLevelBits, " beside levels, found ", bits);
    }
  }
  return absl::OkStatus();
}

absl::Status CheckGain(const SiteContext& context, const SiteCodes& codes) {
  bool known = false;
  for (const char* gain : kGains) known |= codes.gain == gain;
  if (!known) {
    return context.Error("gain", "expected \"\", \"rms\" or \"max\", found ",
                         QuotedForMessage(codes.gain));
  }
  if (!codes.gain.empty() && !codes.coded()) {
    return context.Error("gain", "expected none without a step, found ",
                         QuotedForMessage(codes.gain));
  }
  return absl::OkStatus();
}

// A range by channel or position, or none.
absl::Status CheckRange(const SiteContext& context, absl::string_view part,
                        absl::Span<const float> minimum, absl::Span<const float> maximum,
                        int64_t width) {
  if (minimum.empty() && maximum.empty()) return absl::OkStatus();
  if (static_cast<int64_t>(minimum.size()) != width ||
      static_cast<int64_t>(maximum.size()) != width) {
    return context.Error(part, "expected ", width, " minima and maxima, found ", minimum.size(),
                         " and ", maximum.size());
  }
  for (size_t j = 0; j < minimum.size(); ++j) {
    // Not of infinities or NaNs either.
    if (!(minimum[j] <= maximum[j]) || !std::isfinite(minimum[j]) || !std::isfinite(maximum[j])) {
      return context.Error(part, "expected finite minima up to their maxima, found ", minimum[j],
                           " and ", maximum[j], " at ", j);
    }
  }
  return absl::OkStatus();
}

absl::Status CheckSite(const SiteContext& context, const SiteCodes& codes,
                       const ModelConfig& config, int tp) {
  if (codes.empty()) {
    if (codes == SiteCodes()) return absl::OkStatus();
    return context.Error("order", "expected beside the other tensors of its site, found none");
  }
  const int64_t width = SiteWidth(config, context.site);
  if (static_cast<int64_t>(codes.order.size()) != width) {
    return context.Error("order", "expected ", width, " channels, found ", codes.order.size());
  }
  const int64_t block = SiteBlock(config, context.site, tp);
  TW_RETURN_IF_ERROR(CheckOrder(context, codes.order, block));
  TW_RETURN_IF_ERROR(CheckBits(context, codes));
  TW_RETURN_IF_ERROR(CheckOffsets(context, codes, width, block));
  TW_RETURN_IF_ERROR(CheckSteps(context, codes, width));
  TW_RETURN_IF_ERROR(CheckLevels(context, codes));
  TW_RETURN_IF_ERROR(CheckRange(context, "range", codes.minimum, codes.maximum, width));
  TW_RETURN_IF_ERROR(
      CheckRange(context, "original_range", codes.original_minimum, codes.original_maximum, width));
  return CheckGain(context, codes);
}

// Calls part(name, dtype, vector) for the members of a SiteCodes, const or not: those of 4 bytes.
template <typename Site, typename Part>
void VisitWords(Site& codes, const Part& part) {
  part("order", DType::kI32, codes.order);
  part("offsets", DType::kI32, codes.offsets);
  part("step", DType::kF32, codes.step);
  part("zero", DType::kF32, codes.zero);
}

// Those of 1 byte.
template <typename Site, typename Part>
void VisitBytes(Site& codes, const Part& part) {
  part("bits", DType::kU8, codes.bits);
  part("levels", DType::kU8, codes.levels);
}

std::vector<uint8_t> GainNumber(const SiteCodes& codes) {
  for (size_t i = 1; i < std::size(kGains); ++i) {
    if (codes.gain == kGains[i]) return {static_cast<uint8_t>(i)};
  }
  return {};
}

// The two rows of a range in the file.
std::vector<float> Stacked(const std::vector<float>& minimum, const std::vector<float>& maximum) {
  std::vector<float> rows = minimum;
  rows.insert(rows.end(), maximum.begin(), maximum.end());
  return rows;
}

void Unstack(const std::vector<float>& rows, std::vector<float>& minimum,
             std::vector<float>& maximum) {
  const auto half = rows.begin() + static_cast<std::ptrdiff_t>(rows.size() / 2);
  minimum.assign(rows.begin(), half);
  maximum.assign(half, rows.end());
}

// Calls visit(name, dtype, shape, values) for each tensor of the file, in the order of the file.
template <typename Visit>
void VisitTensors(absl::Span<const LayerCodes> layers, const Visit& visit) {
  for (const bool words : {true, false}) {
    for (size_t layer = 0; layer < layers.size(); ++layer) {
      for (const QuantSite site : kQuantSites) {
        const SiteCodes& codes = layers[layer].at(site);
        const auto part = [&](absl::string_view name, DType dtype, const auto& values) {
          if (values.empty()) return;
          visit(TensorName(layer, site, name), dtype,
                std::vector<int64_t>{static_cast<int64_t>(values.size())}, values);
        };
        const auto range = [&](absl::string_view name, const std::vector<float>& minimum,
                               const std::vector<float>& maximum) {
          if (minimum.empty()) return;
          visit(TensorName(layer, site, name), DType::kF32,
                std::vector<int64_t>{2, static_cast<int64_t>(minimum.size())},
                Stacked(minimum, maximum));
        };
        if (words) {
          VisitWords(codes, part);
          range("range", codes.minimum, codes.maximum);
          range("original_range", codes.original_minimum, codes.original_maximum);
        } else {
          VisitBytes(codes, part);
          part("gain", DType::kU8, GainNumber(codes));
        }
      }
    }
  }
}

// The tensors of the file by name; each is taken once.
class TensorSource {
 public:
  explicit TensorSource(const SafetensorsFile& file) : file_(file) {
    for (const TensorInfo& tensor : file.tensors()) left_[tensor.name] = &tensor;
  }

  // A vector, or (num_rows > 1) the rows of a matrix one after the other. Leaves `out` empty if
  // there is no such tensor.
  template <typename T>
  absl::Status Take(const std::string& name, DType dtype, std::vector<T>& out,
                    int64_t num_rows = 1) {
    const auto it = left_.find(name);
    if (it == left_.end()) return absl::OkStatus();
    const TensorInfo& tensor = *it->second;
    const bool fits = num_rows == 1 ? tensor.shape.size() == 1
                                    : tensor.shape.size() == 2 && tensor.shape.front() == num_rows;
    if (!tensor.loadable || tensor.dtype != dtype || !fits) {
      return absl::InvalidArgumentError(
          absl::StrCat(file_.path(), ": tensor ", QuotedForMessage(name), ": expected ",
                       num_rows == 1 ? "a vector" : absl::StrCat(num_rows, " rows"), " of ",
                       StoredDTypeName(dtype), ", found ", tensor.DebugString()));
    }
    out.resize(num_rows * tensor.shape.back());
    if (!out.empty()) {
      std::memcpy(out.data(), file_.file().bytes().data() + tensor.offset, tensor.size_bytes);
    }
    left_.erase(it);
    return absl::OkStatus();
  }

  // InvalidArgument if a tensor was not taken.
  absl::Status CheckAllTaken() const {
    if (left_.empty()) return absl::OkStatus();
    for (const TensorInfo& tensor : file_.tensors()) {
      if (!left_.contains(tensor.name)) continue;
      return absl::InvalidArgumentError(
          absl::StrCat(file_.path(), ": tensor ", QuotedForMessage(tensor.name),
                       ": expected only parts of sites of the model's layers, found this"));
    }
    return absl::OkStatus();
  }

 private:
  const SafetensorsFile& file_;
  absl::flat_hash_map<absl::string_view, const TensorInfo*> left_;
};

absl::Status TakeSite(TensorSource& source, const SiteContext& context, SiteCodes& codes) {
  absl::Status status;
  const auto part = [&](absl::string_view name, DType dtype, auto& values) {
    if (status.ok()) {
      status = source.Take(TensorName(context.layer, context.site, name), dtype, values);
    }
  };
  VisitWords(codes, part);
  VisitBytes(codes, part);
  std::vector<uint8_t> gain;
  part("gain", DType::kU8, gain);
  TW_RETURN_IF_ERROR(status);
  std::vector<float> rows;
  const auto name = [&](absl::string_view part) {
    return TensorName(context.layer, context.site, part);
  };
  TW_RETURN_IF_ERROR(source.Take(name("range"), DType::kF32, rows, 2));
  Unstack(rows, codes.minimum, codes.maximum);
  rows.clear();
  TW_RETURN_IF_ERROR(source.Take(name("original_range"), DType::kF32, rows, 2));
  Unstack(rows, codes.original_minimum, codes.original_maximum);
  if (gain.empty()) return absl::OkStatus();
  if (gain.size() != 1 || gain[0] == 0 || gain[0] >= std::size(kGains)) {
    return context.Error("gain", "expected one number from 1 to ", std::size(kGains) - 1,
                         ", found ", gain.size(), " of which the first is ", gain[0]);
  }
  codes.gain = kGains[gain[0]];
  return absl::OkStatus();
}

absl::StatusOr<std::string> Metadata(const SafetensorsFile& file, const std::string& key) {
  const auto it = file.metadata().find(key);
  if (it != file.metadata().end()) return it->second;
  return absl::InvalidArgumentError(
      absl::StrCat(file.path(), ": \"__metadata__\": expected \"", key, "\", found none"));
}

absl::Status CheckFormat(const SafetensorsFile& file) {
  TW_ASSIGN_OR_RETURN(const std::string format, Metadata(file, "format"));
  absl::string_view number = format;
  int version = 0;
  if (!absl::ConsumePrefix(&number, kFormatPrefix) || !absl::SimpleAtoi(number, &version)) {
    return absl::InvalidArgumentError(
        absl::StrCat(file.path(), ": \"__metadata__\": expected \"format\" \"", kFormatPrefix,
                     kFormatVersion, "\", found ", QuotedForMessage(format)));
  }
  if (version == kFormatVersion) return absl::OkStatus();
  return absl::UnimplementedError(absl::StrCat(
      file.path(), ": \"__metadata__\": expected format ", kFormatPrefix, kFormatVersion,
      ", found ", QuotedForMessage(format), ": made by another version of thinwire"));
}

}  // namespace

int64_t SiteWidth(const ModelConfig& config, QuantSite site) {
  switch (site) {
    case QuantSite::kQkvIn:
    case QuantSite::kMlpIn:
      return config.hidden;
    case QuantSite::kQ:
    case QuantSite::kOutIn:
      return config.num_heads * config.head_dim;
    case QuantSite::kK:
    case QuantSite::kV:
      return config.num_kv_heads * config.head_dim;
    case QuantSite::kDownIn:
      return config.ffn;
  }
  TW_CHECK(false);
  return 0;
}

int64_t SiteBlock(const ModelConfig& config, QuantSite site, int tp) {
  switch (site) {
    case QuantSite::kQkvIn:
    case QuantSite::kMlpIn:
      return config.hidden;
    case QuantSite::kQ:
    case QuantSite::kK:
    case QuantSite::kV:
    case QuantSite::kOutIn:
      return config.head_dim;
    case QuantSite::kDownIn:
      TW_CHECK(tp >= 0 && (tp == 0 || config.ffn % tp == 0));
      return tp == 0 ? config.ffn : config.ffn / tp;
  }
  TW_CHECK(false);
  return 0;
}

double MeanBits(const SiteCodes& codes) {
  if (codes.empty()) return kUncodedBits;
  int64_t sum = 0;
  for (size_t c = 0; c < codes.bits.size(); ++c) {
    sum += int64_t{codes.bits[c]} * (codes.offsets[c + 1] - codes.offsets[c]);
  }
  return static_cast<double>(sum) / static_cast<double>(codes.order.size());
}

absl::Status CheckRptq(const RptqFile& file, const ModelConfig& config, absl::string_view context) {
  if (static_cast<int64_t>(file.layers.size()) != config.num_layers) {
    return absl::InvalidArgumentError(absl::StrCat(context, ": expected ", config.num_layers,
                                                   " layers, found ", file.layers.size()));
  }
  if (file.tp < 0 || (file.tp > 0 && config.ffn % file.tp != 0)) {
    return absl::InvalidArgumentError(
        absl::StrCat(context, ": \"tp\": expected 0 or a divisor of the ", config.ffn,
                     " channels of down_in, found ", file.tp));
  }
  for (size_t layer = 0; layer < file.layers.size(); ++layer) {
    for (const QuantSite site : kQuantSites) {
      const SiteContext place = {.file = context, .layer = layer, .site = site};
      TW_RETURN_IF_ERROR(CheckSite(place, file.layers[layer].at(site), config, file.tp));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<RptqFile> ReadRptqFile(const std::string& dir, const ModelConfig& config) {
  const std::string path = absl::StrCat(dir, "/", kRptqFileName);
  TW_ASSIGN_OR_RETURN(const SafetensorsFile stored, SafetensorsFile::Open(path));
  TW_RETURN_IF_ERROR(CheckFormat(stored));
  RptqFile file;
  TW_ASSIGN_OR_RETURN(const std::string tp, Metadata(stored, "tp"));
  if (!absl::SimpleAtoi(tp, &file.tp)) {
    return absl::InvalidArgumentError(absl::StrCat(
        path, ": \"__metadata__\": \"tp\": expected a number, found ", QuotedForMessage(tp)));
  }
  file.layers.resize(config.num_layers);
  TensorSource source(stored);
  for (size_t layer = 0; layer < file.layers.size(); ++layer) {
    for (const QuantSite site : kQuantSites) {
      const SiteContext place = {.file = path, .layer = layer, .site = site};
      TW_RETURN_IF_ERROR(TakeSite(source, place, file.layers[layer].at(site)));
    }
  }
  TW_RETURN_IF_ERROR(source.CheckAllTaken());
  TW_RETURN_IF_ERROR(CheckRptq(file, config, path));
  return file;
}

absl::Status WriteRptqFile(const std::string& dir, const RptqFile& file,
                           const ModelConfig& config) {
  const std::string path = absl::StrCat(dir, "/", kRptqFileName);
  TW_RETURN_IF_ERROR(CheckRptq(file, config, path));
  std::vector<TensorSpec> specs;
  VisitTensors(file.layers,
               [&](std::string name, DType dtype, std::vector<int64_t> shape, const auto&) {
                 specs.push_back({std::move(name), dtype, std::move(shape)});
               });
  const std::map<std::string, std::string> metadata = {
      {"format", absl::StrCat(kFormatPrefix, kFormatVersion)}, {"tp", absl::StrCat(file.tp)}};
  TW_ASSIGN_OR_RETURN(SafetensorsWriter writer,
                      SafetensorsWriter::Create(path, std::move(specs), metadata));
  absl::Status status;
  VisitTensors(file.layers, [&](const std::string& name, DType, const std::vector<int64_t>&,
                                const auto& values) {
    if (status.ok()) status = writer.AppendValues(name, absl::MakeConstSpan(values));
  });
  TW_RETURN_IF_ERROR(status);
  return writer.Commit();
}

}  // namespace thinwire
