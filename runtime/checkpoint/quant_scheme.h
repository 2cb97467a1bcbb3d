// How many bits weights, activations and the KV cache have: the names of schemes, and which site of
// a decoder layer gets which width.
#pragma once

#include <array>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace thinwire {

enum class WeightFormat { kDense, kGptq, kVptq };

// Vectors of `length` outputs out of a codebook of 2^index_bits, plus one out of a residual's.
struct VptqShape {
  int length = 0;  // 0: none, or `centibits` says what is wanted instead
  int index_bits = 0;
  bool residual = false;
  int residual_bits = 0;
  int num_groups = 1;  // of columns, each with codebooks of its own
  // The columns that matter most, in percent, rounded up, have vectors of another length and a
  // codebook of their own. 0: none.
  int outlier_percent = 0;
  int outlier_length = 0;
  int outlier_bits = 0;
  // Books of 8-bit numbers, with a scale for each place of a vector (kernels/vptq_linear's
  // byte_book.h), which files hold as fp16 all the same.
  bool byte_books = false;
  bool norm = true;  // a scale and an offset for each column
  // Hundredths of a bit that weights take on average, everything counted, where each matrix has a
  // shape of its own. 0: the fields above hold for all.
  int centibits = 0;

  // Whether this is a shape at all.
  bool any() const { return length > 0 || centibits > 0; }

  friend bool operator==(const VptqShape&, const VptqShape&) = default;
};

// Reads "vptq-v8-k4096-r256-g4-o1v2k256-c8-raw": vectors of 1 to 16, 2 to 65536 centroids, then,
// each or none, a residual's centroids, 2 to 64 groups, 1 to 50 percent of outliers with their
// vectors and centroids, centroids of 8 bits, and columns without scales; numbers of centroids are
// powers of two. Also "vptq-b2.10": 1.00 to 8.00 bits, "-c8" behind it or not. InvalidArgument
// quotes the name and says what is expected.
absl::StatusOr<VptqShape> ParseVptqShape(absl::string_view name);

// What ParseVptqShape reads.
std::string VptqShapeName(const VptqShape& shape);

struct QuantScheme {
  int weight_bits = 16;  // 16, 4, 3 or 2; 16 with vptq
  int act_bits = 16;     // 16, 8 or 4
  int kv_bits = 16;      // 16, 8, 4 or 3
  VptqShape vptq;

  WeightFormat weight_format() const {
    if (vptq.any()) return WeightFormat::kVptq;
    return weight_bits == 16 ? WeightFormat::kDense : WeightFormat::kGptq;
  }
  // Whether anything is rounded at run time: activations or K and V.
  bool has_codes() const { return act_bits != 16 || kv_bits != 16; }

  friend bool operator==(const QuantScheme&, const QuantScheme&) = default;
};

// Reads, for W of 16, 4, 3, 2:
// - "wWaA", A of 16, 8, 4: activations A, K and V like them;
// - "wWaAkvK", K of 16, 8, 4, 3: activations A, K and V K;
// - "wWaKkv", K of 8, 4, 3: K and V K, activations 16.
// - the name of a VptqShape, with "-aAkvK" behind it where anything is rounded at run time.
// InvalidArgument quotes the name and lists what is known.
absl::StatusOr<QuantScheme> ParseScheme(absl::string_view name);

// The names of RPTQ (Yuan et al., arXiv 2304.01089, table 1) where there is one: w16a16, w4a16,
// w4a8, w4a4, w4a4kv, w4a3kv, w3a3kv; else "w4a8kv4", with all three widths. ParseScheme reads it
// back.
std::string SchemeName(const QuantScheme& scheme);

// Where activations of a decoder layer are put in order and coded; R1 to R5 are RPTQ's names.
enum class QuantSite {
  kQkvIn,   // R1: the first norm's output, which q, k and v read; [hidden]
  kQ,       // R2: queries; [num_heads * head_dim]
  kK,       // R2: keys, as cached; [num_kv_heads * head_dim]
  kV,       // R3: values, as cached; [num_kv_heads * head_dim]
  kOutIn,   // R3: the attention's output, which o_proj reads; [num_heads * head_dim]
  kMlpIn,   // R4: the second norm's output, which fc1 or gate and up read; [hidden]
  kDownIn,  // R5: what fc2 or down reads; [ffn]
};

inline constexpr std::array<QuantSite, 7> kQuantSites = {
    QuantSite::kQkvIn, QuantSite::kQ,     QuantSite::kK,     QuantSite::kV,
    QuantSite::kOutIn, QuantSite::kMlpIn, QuantSite::kDownIn};

// "qkv_in", "q", "k", "v", "out_in", "mlp_in", "down_in".
absl::string_view SiteName(QuantSite site);

// Bits of a channel of `site` on average: norm outputs never have fewer than 8, as in RPTQ. 16: not
// coded.
int SiteBits(const QuantScheme& scheme, QuantSite site);

}  // namespace thinwire
