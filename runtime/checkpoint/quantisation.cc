#include "runtime/checkpoint/quantisation.h"

#include <algorithm>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "kernels/core/status_macros.h"
#include "runtime/checkpoint/quant_scheme.h"
#include "runtime/checkpoint/synthetic_model.h"

namespace thinwire {
namespace {

constexpr int kFp16Bits = 16;

// Whether thinwire.json, rptq.safetensors and config.json tell the same story.
absl::Status CheckConsistent(const std::string& dir, const ModelConfig& config,
                             const ThinwireFile& made, const RptqFile& rptq) {
  const std::string thinwire_path = absl::StrCat(dir, "/", kThinwireFileName);
  const std::string rptq_path = absl::StrCat(dir, "/", kRptqFileName);
  const std::string scheme = SchemeName(made.scheme);
  const int weight_bits = config.gptq.has_value() ? config.gptq->bits : kFp16Bits;
  if (made.scheme.weight_bits != weight_bits) {
    return absl::InvalidArgumentError(
        absl::StrCat(thinwire_path, ": scheme ", scheme, " has weights of ",
                     made.scheme.weight_bits, " bits, but ", dir, "/config.json says ",
                     config.gptq.has_value() ? absl::StrCat(weight_bits, " in quantization_config")
                                             : "nothing of a quantisation"));
  }
  if ((made.scheme.vptq.any()) != config.vptq.has_value()) {
    return absl::InvalidArgumentError(absl::StrCat(
        thinwire_path, ": scheme ", scheme, ", but ", dir, "/config.json says ",
        config.vptq.has_value() ? "vptq" : "nothing of vptq", " in quantization_config"));
  }
  if (made.tp != rptq.tp) {
    return absl::InvalidArgumentError(absl::StrCat(thinwire_path, ": tp ", made.tp, ", but ",
                                                   rptq_path, " was ordered for ", rptq.tp));
  }
  for (size_t layer = 0; layer < rptq.layers.size(); ++layer) {
    for (const QuantSite site : kQuantSites) {
      const int bits = SiteBits(made.scheme, site);
      const bool coded = rptq.layers[layer].at(site).coded();
      if (coded == (bits < kFp16Bits)) continue;
      return absl::InvalidArgumentError(absl::StrCat(
          thinwire_path, ": scheme ", scheme, " has activations of ", bits, " bits at ",
          SiteName(site), ", but ", rptq_path, coded ? " codes" : " does not code", " layers.",
          layer, ".", SiteName(site)));
    }
  }
  return absl::OkStatus();
}

// Bytes of one head's row of codes: units of 16 channels, each 2 bytes a bit (kernels/attention).
int64_t RowBytes(const SiteCodes& codes, Range positions) {
  int64_t bits = 0;
  for (int64_t c = 0; c < codes.num_clusters(); ++c) {
    const int64_t begin = std::max<int64_t>(codes.offsets[c], positions.begin);
    const int64_t end = std::min<int64_t>(codes.offsets[c + 1], positions.end);
    if (end > begin) bits += codes.bits[c] * (end - begin);
  }
  return bits / 8;
}

struct HeadRows {
  int64_t sum_bytes = 0;
  int64_t widest = 0;
};

HeadRows RowsOf(const SiteCodes& codes, Range heads, int64_t head_dim) {
  HeadRows rows;
  for (int64_t h = heads.begin; h < heads.end; ++h) {
    const int64_t bytes = RowBytes(codes, {h * head_dim, (h + 1) * head_dim});
    rows.sum_bytes += bytes;
    rows.widest = std::max(rows.widest, bytes);
  }
  return rows;
}

}  // namespace

absl::StatusOr<Quantisation> ReadQuantisation(const std::string& dir, const ModelConfig& config) {
  if (IsSyntheticModel(dir)) return SyntheticQuantisation(dir, config);
  Quantisation quantisation;
  absl::StatusOr<ThinwireFile> made = ReadThinwireFile(dir);
  if (!made.ok() && !absl::IsNotFound(made.status())) return made.status();
  absl::StatusOr<RptqFile> rptq = ReadRptqFile(dir, config);
  if (!rptq.ok() && !absl::IsNotFound(rptq.status())) return rptq.status();
  if (made.ok() != rptq.ok()) {
    const absl::Status& missing = made.ok() ? rptq.status() : made.status();
    return absl::NotFoundError(absl::StrCat(missing.message(), "; expected it beside ",
                                            made.ok() ? kThinwireFileName : kRptqFileName));
  }
  if (!made.ok()) return quantisation;
  TW_RETURN_IF_ERROR(CheckConsistent(dir, config, *made, *rptq));
  quantisation.made = *std::move(made);
  quantisation.rptq = *std::move(rptq);
  return quantisation;
}

std::string SchemeOf(const ModelConfig& config, const Quantisation& quantisation) {
  if (quantisation.made.has_value()) return SchemeName(quantisation.made->scheme);
  if (config.vptq.has_value()) return config.vptq->Name();
  return config.gptq.has_value() ? absl::StrCat("gptq", config.gptq->bits)
                                 : SchemeName(QuantScheme());
}

double KvFootprint::k_bits() const {
  double sum = 0.0;
  for (const Layer& layer : layers) sum += layer.k_bits;
  return layers.empty() ? 0.0 : sum / static_cast<double>(layers.size());
}

double KvFootprint::v_bits() const {
  double sum = 0.0;
  for (const Layer& layer : layers) sum += layer.v_bits;
  return layers.empty() ? 0.0 : sum / static_cast<double>(layers.size());
}

int64_t KvFootprint::bytes_per_token() const {
  int64_t bytes = 0;
  for (const Layer& layer : layers) bytes += layer.bytes_per_token;
  return bytes;
}

KvFootprint KvFootprintOf(const ModelConfig& config, const Quantisation& quantisation,
                          Range kv_heads) {
  KvFootprint footprint;
  const int64_t elements = kv_heads.size() * config.head_dim;
  for (int64_t l = 0; l < config.num_layers; ++l) {
    KvFootprint::Layer& layer = footprint.layers.emplace_back();
    const LayerCodes* codes = quantisation.layer(l);
    if (codes == nullptr || !codes->at(QuantSite::kK).coded()) {
      layer.bytes_per_token = 2 * elements * (kFp16Bits / 8);
      continue;
    }
    footprint.coded = true;
    const HeadRows k = RowsOf(codes->at(QuantSite::kK), kv_heads, config.head_dim);
    const HeadRows v = RowsOf(codes->at(QuantSite::kV), kv_heads, config.head_dim);
    layer.k_bits = 8.0 * static_cast<double>(k.sum_bytes) / static_cast<double>(elements);
    layer.v_bits = 8.0 * static_cast<double>(v.sum_bytes) / static_cast<double>(elements);
    layer.bytes_per_token = kv_heads.size() * (k.widest + v.widest);
  }
  if (footprint.coded && quantisation.made->first_token_exact) {
    footprint.first_token_bytes = config.num_layers * 2 * elements * (kFp16Bits / 8);
  }
  return footprint;
}

}  // namespace thinwire
